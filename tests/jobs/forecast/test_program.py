import pytest

from uvit_jax.jobs.forecast.program import Refusal, read_refusal
from uvit_jax.parallel.chips import GiB


@pytest.mark.parametrize(
    ("message", "needed", "limit"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (21.39G) exceeds available HBM (15.75G).",
            21.39,
            15.75,
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 512.5M of 15.75G hbm. "
            "Exceeded hbm capacity by ...",
            0.50048828125,
            15.75,
        ),
    ],
)
def test_a_refusal_is_read(message, needed, limit):
    refusal = read_refusal(message)
    assert (refusal.needed / GiB, refusal.limit / GiB) == pytest.approx((needed, limit))
    assert read_refusal("RESOURCE_EXHAUSTED: something else") == Refusal(None, None)
