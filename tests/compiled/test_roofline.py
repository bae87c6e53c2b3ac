import dataclasses

import pytest

from uvit_jax.compiled.roofline import Work, mfu, roofline
from uvit_jax.parallel.chips import TPUS, peak_flops
from uvit_jax.telemetry.throughput import Throughput

CHIP = TPUS["v5e"]
# Two seconds of arithmetic, half a second of memory, one second of ICI, a quarter of DCN.
WORK = Work(2 * 197e12, 0.5 * 819e9, 200e9, 0.25 * 25e9 / 8)


def test_the_slowest_resource_sets_the_bound():
    line = roofline(WORK, CHIP, 200e9)
    assert dataclasses.astuple(line) == pytest.approx((2, 0.5, 1, 0.25))
    assert (line.bound, line.limit, line.no_overlap) == (
        pytest.approx(2),
        "compute",
        pytest.approx(3.75),
    )
    slow = roofline(dataclasses.replace(WORK, ici_bytes=2e12), CHIP, 200e9)
    assert (slow.bound, slow.limit) == (pytest.approx(10), "ici")


def test_a_network_of_unknown_speed_is_left_out_and_said_to_be():
    line = roofline(WORK, dataclasses.replace(CHIP, dcn_bandwidth=None), None)
    assert (line.ici, line.dcn) == (None, None)
    assert line.no_overlap == pytest.approx(2.5)
    alone = roofline(Work(1e12, 1e9), CHIP, 0.0)
    assert (alone.ici, alone.dcn) == (0, 0)


def test_mfu_is_the_one_that_training_reports():
    peak = peak_flops(["TPU v5e"] * 4)
    window = Throughput(2.66e11, peak).window(steps=10, images=1000, seconds=5.0)
    assert mfu(3 * 2.66e11 * 1000, 5.0, 4, CHIP) == pytest.approx(window["mfu"])
