import jax
import numpy as np
import pytest

from tests.jobs.runs import tiny_experiment
from uvit_jax.experiment.assembled import assemble
from uvit_jax.experiment.data_card import DataCard
from uvit_jax.experiment.job_sections import SampleConfig
from uvit_jax.jobs.sampling import pictures
from uvit_jax.jobs.sampling.conditions import Conditions, open_conditions
from uvit_jax.jobs.sampling.gallery import open_gallery
from uvit_jax.telemetry.writers import MetricWriter


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": 5, "guidance_scale": 1.0}, "dpmsolver++, 5 evaluations, guidance 1"),
        ({"steps": 1, "order": 1}, "dpmsolver++, 1 evaluation, guidance 0"),
        (
            {"solver": "heun", "steps": 10, "denoise_to_zero": True},
            "heun, 11 evaluations, guidance 0",
        ),
        ({"method": "adaptive"}, "dpmsolver++, adaptive steps, guidance 0"),
    ],
)
def test_a_grids_title_says_how_often_the_network_was_evaluated(changes, said):
    assert pictures.title_of("the ema weights of step 60", SampleConfig(**changes)) == (
        f"the ema weights of step 60, {said}"
    )


def test_few_classes_stand_side_by_side_more_than_once(tmp_path):
    conditions = Conditions(np.arange(3), None, ("a", "b", "c"))
    page = pictures.save_grid(
        np.zeros((24, 8, 8, 1), np.uint8), conditions, tmp_path / "grid.png", "a title"
    )
    # Six columns of tiles 64 pixels wide, with gaps between, by four rows.
    assert page.shape[1] == 2 * 14 + 6 * (64 + 8) - 8
    assert page.shape[0] < page.shape[1]


def test_a_strip_of_an_adaptive_sampler_has_steps_of_its_own(tmp_path):
    experiment = tiny_experiment(
        sample__method="adaptive", sample__order=3, sample__steps=1, model__depth=1
    )
    assembled = assemble(experiment, DataCard("none"))
    params = jax.jit(assembled.init_params)(jax.random.key(0))
    conditions = open_conditions(experiment, assembled.card, count=0)
    gallery = open_gallery(
        assembled,
        experiment.diffusion,
        experiment.sample,
        conditions,
        count=1,
        writer=MetricWriter(tmp_path, 0, active=False),
        folder=tmp_path,
    )
    pictures.save_strip(gallery.strip, gallery.generation, params, tmp_path / "strip.png")
    assert (tmp_path / "strip.png").stat().st_size > 0
