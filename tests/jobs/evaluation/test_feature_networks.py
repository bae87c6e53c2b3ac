import jax
import numpy as np
import pytest

from tests.jobs.digits_config import experiment
from tests.metrics.test_feature_network import write_inception
from uvit_jax.errors import UserError
from uvit_jax.jobs.evaluation import feature_networks
from uvit_jax.jobs.evaluation.feature_networks import open_feature_network
from uvit_jax.metrics.metric_names import FEATURE_NETWORKS, METRICS
from uvit_jax.metrics.random_filters import random_filters
from uvit_jax.metrics.scores import metric_name


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    """Formula weights, as fields of a config."""
    path, sha256 = write_inception(tmp_path_factory.mktemp("inception"))
    return {
        "evaluate__features": "inception",
        "evaluate__inception": path,
        "evaluate__inception_sha256": sha256,
    }


def test_every_network_that_a_config_may_name_can_be_opened():
    assert tuple(feature_networks._OPENERS) == FEATURE_NETWORKS


def test_the_built_in_features_are_the_default():
    assert open_feature_network(experiment().evaluate).identity == random_filters().identity


def test_other_weights_are_never_the_published_network(inception):
    network = open_feature_network(
        experiment(**inception, evaluate__resize="tf1", evaluate__dtype="bfloat16").evaluate
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
    network = open_feature_network(
        experiment(**inception | {"evaluate__inception_sha256": ""}).evaluate
    )
    assert network.identity["name"] == "Inception-v3 (2015-12-05)"
    assert [metric_name(name, network) for name in ("fid", "sfid", "is", "kid")] == [
        "fid",
        "sfid",
        "is",
        "kid",
    ]


@pytest.mark.slow
def test_each_kind_is_the_networks_own(inception):
    network = open_feature_network(experiment(**inception).evaluate)
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
        open_feature_network(gone.evaluate)
    unnamed = experiment(**inception | {"evaluate__inception_sha256": ""})
    with pytest.raises(
        UserError,
        match=r"^config\.evaluate\.inception is .*, expected 6726825d.* is not called FID$",
    ):
        open_feature_network(unnamed.evaluate)
