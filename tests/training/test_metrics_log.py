import pytest

from uvit_jax.training.loop import Window
from uvit_jax.training.metrics_log import bound_in_words


@pytest.mark.parametrize(
    ("idle", "said"),
    [
        ({}, ""),
        ({"data": 0.9}, ""),
        ({"data": 3.4, "log": 2.0, "hook": 0.0}, "waiting 34 % for data"),
        ({"data": 0.1, "log": 5.0, "hook": 1.0}, "waiting 50 % for logging"),
        ({"hook": 11.0}, "waiting 100 % for checkpoints"),
    ],
)
def test_the_wait_that_bounds_a_run_is_said_and_hidden_ones_are_not(idle, said):
    window = Window({"loss": 1.0}, 5, seconds=10.0, data_seconds=9.0, idle=idle)
    assert bound_in_words(window) == said
