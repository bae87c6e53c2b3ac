"""Metrics that can be had, and why others can't."""

import pytest

from tests.jobs.digits_config import experiment
from tests.metrics.small_network import small_network
from uvit_jax.errors import UserError
from uvit_jax.jobs.evaluation.metric_choice import choose_metrics
from uvit_jax.metrics.metric_names import METRICS
from uvit_jax.metrics.random_filters import random_filters

EVERYTHING = {
    "has_spatial": True,
    "num_reference": 10_000,
    "has_texts": True,
    "num_samples": 50_000,
}


def choose(metrics="all", network=None, clip="some", **changes):
    made = experiment(evaluate__metrics=metrics, evaluate__clip=clip).evaluate
    return choose_metrics(made, network or small_network(), **EVERYTHING | changes)


def test_all_metrics_are_all_that_can_be_had():
    assert choose() == (tuple(METRICS), {})
    metrics, refused = choose(network=random_filters(), num_reference=0, clip="", has_texts=False)
    assert metrics == ("fid",)
    assert refused == {
        "sfid": "own features v1 has no spatial features",
        "is": "own features v1 has no logits features",
        **dict.fromkeys(
            ("kid", "precision", "recall", "density", "coverage"),
            "the reference has neither features nor images",
        ),
        "clip": "config.evaluate.clip is empty",
    }
    _, refused = choose(has_spatial=False, has_texts=False)
    assert refused == {
        "sfid": "the reference has no spatial statistics (mu_s, sigma_s)",
        "clip": "the samples are of no texts",
    }


def test_metrics_asked_for_come_once_and_in_their_own_order():
    assert choose("recall, fid,recall ,is", num_reference=6) == (("fid", "is", "recall"), {})


@pytest.mark.parametrize(
    ("metrics", "changes", "message"),
    [
        (
            "fid,is",
            {"network": random_filters()},
            "has 'is', but own features v1 has no logits features",
        ),
        (
            "kid",
            {"num_reference": 0},
            "has 'kid', but the reference has neither features nor images",
        ),
        (
            "recall",
            {"num_reference": 3},
            "has 'recall', but the reference has 3 images, expected at least 4",
        ),
        (
            "density",
            {"num_reference": 5},
            "has 'density', but the reference has 5 images, expected at least 6",
        ),
        ("sfid", {"has_spatial": False}, "has 'sfid', but the reference has no spatial statistics"),
        ("clip", {"clip": ""}, "has 'clip', but config.evaluate.clip is empty"),
        ("clip", {"has_texts": False}, "has 'clip', but the samples are of no texts"),
        (
            "is",
            {"num_samples": 9},
            "has 'is', but the number of samples is 9, expected at least 10",
        ),
        (
            "recall",
            {"num_samples": 3},
            "has 'recall', but the number of samples is 3, expected at least 4",
        ),
        (
            "fid",
            {"num_samples": 1},
            "has 'fid', but the number of samples is 1, expected at least 2",
        ),
    ],
)
def test_a_metric_asked_for_that_cannot_be_had_is_refused(metrics, changes, message):
    with pytest.raises(UserError, match=rf"^config\.evaluate\.metrics {message}"):
        choose(metrics, **changes)


def test_a_reference_of_few_images_has_few_metrics_of_them():
    metrics, refused = choose(num_reference=3)
    assert metrics == ("fid", "sfid", "is", "kid", "clip")
    assert set(refused) == {"precision", "recall", "density", "coverage"}


def test_few_samples_have_few_metrics_and_one_has_none():
    assert choose(num_samples=3)[0] == ("fid", "sfid", "kid", "density", "coverage", "clip")
    with pytest.raises(
        UserError,
        match=r"is 'all', but none can be had: for one, the number of samples is 1, expected",
    ):
        choose(num_samples=1, num_reference=0, has_texts=False)


@pytest.mark.parametrize("text", ["", "fid,,is", "FID", "ssim"])
def test_an_unknown_metric_is_refused_with_those_that_are_known(text):
    with pytest.raises(
        UserError, match=r"^config\.evaluate\.metrics is '.*', expected one of 'all', 'fid', 'sfid'"
    ):
        experiment(evaluate__metrics=text)
