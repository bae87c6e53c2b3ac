import pytest

from uvit_jax.telemetry.throughput import Throughput


def test_rates_are_those_of_the_window():
    window = Throughput().window(steps=50, images=6400, seconds=4.0)
    assert window == {"images_per_sec": 1600.0, "steps_per_sec": 12.5, "mfu": None}


def test_mfu_counts_three_forward_passes():
    throughput = Throughput(forward_flops_per_image=2e9, peak_flops=2e12)
    # 3 * 2e9 FLOPs * 100 images in 1 s on 2e12 FLOP/s
    assert throughput.window(steps=1, images=100, seconds=1.0)["mfu"] == pytest.approx(0.3)


@pytest.mark.parametrize(
    "throughput", [Throughput(forward_flops_per_image=1e9), Throughput(peak_flops=275e12)]
)
def test_mfu_is_none_where_the_flops_or_the_peak_are_unknown(throughput):
    assert throughput.window(steps=1, images=8, seconds=1.0)["mfu"] is None


def test_a_window_without_time_is_refused():
    with pytest.raises(ValueError, match="seconds is 0"):
        Throughput().window(steps=1, images=1, seconds=0.0)
