import numpy as np
import pytest

from uvit_jax.jobs import pictures
from uvit_jax.jobs.conditions import Conditions
from uvit_jax.jobs.sections import SampleConfig


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": 5, "guidance_scale": 1.0}, "dpmsolver++, 5 evaluations, guidance 1"),
        ({"steps": 1, "order": 1}, "dpmsolver++, 1 evaluation, guidance 0"),
        ({"solver": "heun", "steps": 10, "denoise_to_zero": True}, "heun, 11 evaluations, guidance 0"),
        ({"method": "adaptive"}, "dpmsolver++, adaptive steps, guidance 0"),
    ],
)
def test_a_grids_title_says_how_often_the_network_was_evaluated(changes, said):
    assert pictures.title_of("the ema weights of step 60", SampleConfig(**changes)) == (
        f"the ema weights of step 60, {said}"
    )


def test_few_classes_stand_side_by_side_more_than_once(tmp_path):
    conditions = Conditions(np.arange(3), None, ("a", "b", "c"))
    page = pictures.save_grid(np.zeros((24, 8, 8, 1), np.uint8), conditions, tmp_path / "grid.png", "a title")
    # Six columns of tiles 64 pixels wide, with gaps between, by four rows.
    assert page.shape[1] == 2 * 14 + 6 * (64 + 8) - 8
    assert page.shape[0] < page.shape[1]
