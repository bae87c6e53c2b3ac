import jax
import numpy as np
import pytest

from tests.jobs.digits_config import experiment
from tests.metrics.small_network import small_network
from tests.metrics.test_feature_network import write_inception
from uvit_jax.errors import UserError
from uvit_jax.jobs.evaluation import feature_networks
from uvit_jax.jobs.evaluation.feature_networks import choose_metrics, open_feature_network
from uvit_jax.metrics.metric_names import METRICS
from uvit_jax.metrics.random_filters import random_filters
from uvit_jax.metrics.scores import metric_name

EVERYTHING = {
    "has_spatial": True,
    "num_reference": 10_000,
    "has_texts": True,
    "num_samples": 50_000,
}


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    """Formula weights, as fields of a config."""
    path, sha256 = write_inception(tmp_path_factory.mktemp("inception"))
    return {
        "evaluate__features": "inception",
        "evaluate__inception": path,
        "evaluate__inception_sha256": sha256,
    }


def choose(metrics="all", network=None, clip="some", **changes):
    made = experiment(evaluate__metrics=metrics, evaluate__clip=clip)
    return choose_metrics(made, network or small_network(), **EVERYTHING | changes)


def test_the_built_in_features_are_the_default():
    assert open_feature_network(experiment()).identity == random_filters().identity


def test_other_weights_are_never_the_published_network(inception):
    network = open_feature_network(
        experiment(**inception, evaluate__resize="tf1", evaluate__dtype="bfloat16")
    )
    assert network.identity == {
        "name": "Inception-v3 with other weights",
        "sha256": inception["evaluate__inception_sha256"],
        "resize": "tf1",
        "dtype": "bfloat16",
    }
    assert network.widths == {"pool": 2048, "spatial": 2023, "logits": 1008}
    names = [metric_name(name, network) for name in METRICS if name != "clip"]
    assert all(name.startswith("other_inception_") for name in names)
    assert not any("fid" in name for name in names)


def test_only_the_published_weights_give_a_fid(inception, monkeypatch):
    from uvit_jax.interop import inception as interop

    monkeypatch.setattr(interop, "SHA256", inception["evaluate__inception_sha256"])
    network = open_feature_network(experiment(**inception | {"evaluate__inception_sha256": ""}))
    assert network.identity["name"] == "Inception-v3 (2015-12-05)"
    assert [metric_name(name, network) for name in ("fid", "sfid", "is", "kid")] == [
        "fid",
        "sfid",
        "is",
        "kid",
    ]


@pytest.mark.slow
def test_each_kind_is_the_networks_own(inception):
    network = open_feature_network(experiment(**inception))
    opened = feature_networks.open_inception(
        inception["evaluate__inception"], sha256=inception["evaluate__inception_sha256"]
    )
    images = np.random.default_rng(0).integers(256, size=(1, 32, 32, 3), dtype=np.uint8)
    kinds = ("logits", "pool", "spatial")
    found = jax.jit(lambda params, images: network.apply(params, images, kinds))(
        network.params, images
    )
    names = ("logits1008", "pool2048", "spatial2023")
    expected = jax.jit(lambda params, images: opened.features(params, images, names))(
        opened.params, images
    )
    for kind, name in zip(kinds, names, strict=True):
        np.testing.assert_allclose(found[kind], expected[name], rtol=1e-4, atol=1e-5)


def test_weights_that_cannot_be_had_name_the_field(tmp_path, inception):
    gone = experiment(
        evaluate__features="inception", evaluate__inception=str(tmp_path / "gone.pth")
    )
    with pytest.raises(
        UserError, match=r"^config\.evaluate\.inception is '\S+gone\.pth': there is no Inception-v3"
    ):
        open_feature_network(gone)
    unnamed = experiment(**inception | {"evaluate__inception_sha256": ""})
    with pytest.raises(
        UserError,
        match=r"^config\.evaluate\.inception is .*, expected 6726825d.* is not called FID$",
    ):
        open_feature_network(unnamed)


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
def test_a_metric_asked_for_that_cannot_be_had_is_told(metrics, changes, message):
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
def test_an_unknown_metric_is_told_with_those_that_are_known(text):
    with pytest.raises(
        UserError, match=r"^config\.evaluate\.metrics is '.*', expected one of 'all', 'fid', 'sfid'"
    ):
        experiment(evaluate__metrics=text)
