import jax
import pytest

from tests.jobs.forecast.reports import report_of
from tests.jobs.runs import tiny_experiment
from uvit_jax.jobs.forecast import figures
from uvit_jax.jobs.forecast.hardware import Hardware
from uvit_jax.models.flops import forward_flops
from uvit_jax.parallel.chips import TPUS


def hardware(chips=256):
    return Hardware("v5e", jax.devices() * chips, TPUS["v5e"], TPUS["v5e"].hbm, 200e9)


@pytest.mark.parametrize("asked", [0.0, 0.4, 0.9])
def test_hours_are_those_of_the_share_asked_for_but_never_faster_than_the_roofline(asked):
    experiment = tiny_experiment()
    costs = figures.run_costs(experiment.train, experiment.model, asked, hardware(), report_of())
    share = 0.4 if asked == 0.4 else 0.829
    assert costs["mfu"] == share
    seconds = 3 * 16 * forward_flops(experiment.model) / (256 * 197e12 * share)
    assert costs["hours"] == pytest.approx(experiment.train.steps * seconds / 3600)
    assert costs["chip_hours"] == pytest.approx(256 * costs["hours"])
    assert costs["images_per_second"] == pytest.approx(16 / seconds)


@pytest.mark.parametrize(
    ("asked", "source"), [(0.4, "asked"), (0.9, "schedule"), (0.0, "roofline")]
)
def test_a_share_that_the_roofline_rules_out_gives_way_to_the_schedule(asked, source):
    experiment, report = tiny_experiment(), report_of(schedule={"step": 0.026})
    costs = figures.run_costs(experiment.train, experiment.model, asked, hardware(), report)
    assert costs["mfu_source"] == source
    if source == "schedule":
        assert costs["step_seconds"] == pytest.approx(0.026)
        assert costs["hours"] == pytest.approx(experiment.train.steps * 0.026 / 3600)
