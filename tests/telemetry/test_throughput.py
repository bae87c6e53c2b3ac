import types

import jax
import pytest

from uvit_jax.telemetry.throughput import PEAK_BF16_FLOPS, Throughput, peak_flops


def devices(*kinds):
    return [types.SimpleNamespace(device_kind=kind) for kind in kinds]


def test_rates_are_those_of_the_window():
    window = Throughput().window(steps=50, images=6400, seconds=4.0)
    assert window == {"images_per_sec": 1600.0, "steps_per_sec": 12.5, "mfu": None}


def test_mfu_counts_three_forward_passes_over_all_devices(monkeypatch):
    monkeypatch.setitem(PEAK_BF16_FLOPS, "Abacus", 1e12)
    throughput = Throughput(forward_flops_per_image=2e9, devices=devices("Abacus", "Abacus"))
    # 3 * 2e9 FLOPs * 100 images in 1 s on 2e12 FLOP/s
    assert throughput.window(steps=1, images=100, seconds=1.0)["mfu"] == pytest.approx(0.3)


def test_mfu_is_none_on_a_cpu():
    throughput = Throughput(forward_flops_per_image=1e9, devices=jax.devices("cpu"))
    assert throughput.window(steps=1, images=8, seconds=1.0)["mfu"] is None


def test_mfu_is_none_where_the_flops_are_unknown():
    assert (
        Throughput(devices=devices("TPU v4")).window(steps=1, images=8, seconds=1.0)["mfu"] is None
    )


def test_the_table_holds_one_jax_devices_peak():
    assert peak_flops(devices("TPU v5 lite")) == 197e12  # not that of its prefix "TPU v5"
    assert peak_flops(devices("TPU v5")) == 459e12
    assert peak_flops(devices(*["TPU v3"] * 2)) == 123e12  # two devices a chip
    assert (
        peak_flops(devices("NVIDIA H100 80GB HBM3")) == 989.5e12
    )  # dense, not the sheet's sparse 1,979


def test_one_unknown_device_makes_the_peak_unknown():
    assert peak_flops(devices("TPU v4", "TPU v99")) is None
    assert peak_flops(devices("NVIDIA A100-SXM4-40GB MIG 1g.5gb")) is None
    assert peak_flops([]) is None


def test_a_window_without_time_is_refused():
    with pytest.raises(ValueError, match="seconds is 0"):
        Throughput().window(steps=1, images=1, seconds=0.0)
