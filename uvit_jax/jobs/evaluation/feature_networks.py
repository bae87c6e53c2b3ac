"""The feature extractors that `config.evaluate` names, and which metrics they allow."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Array

from uvit_jax.errors import UserError
from uvit_jax.experiment.config import Experiment
from uvit_jax.interop.inception import open_inception
from uvit_jax.metrics.feature_network import FeatureNetwork
from uvit_jax.metrics.metric_names import METRICS, SAMPLE_METRICS
from uvit_jax.metrics.random_filters import random_filters
from uvit_jax.models.frozen.inception import WIDTHS

# What metrics call the features of Inception-v3.
_INCEPTION = {"pool": "pool2048", "spatial": "spatial2023", "logits": "logits1008"}
_UNVERIFIED = "other_inception_"
# Samples that a metric needs: for a covariance or pairs, parts of the Inception Score, neighbours
# beside oneself.
_LEAST = {"fid": 2, "sfid": 2, "is": 10, "kid": 2, "precision": 4, "recall": 4}
# Images of the reference whose features a metric needs: pairs, and the k nearest neighbours beside
# oneself.
_LEAST_OF_REFERENCE = {"kid": 2, "precision": 4, "recall": 4, "density": 6, "coverage": 6}


def open_feature_network(experiment: Experiment) -> FeatureNetwork:
    """The extractor that `config.evaluate.features` names, its weights read.

    Raises:
      UserError: for weights that can't be had, are damaged or not the published ones.
    """
    config = experiment.evaluate
    if config.features == "own":
        return random_filters()
    try:
        inception = open_inception(
            config.inception,
            dtype=config.dtype,
            resize=config.resize,
            sha256=config.inception_sha256,
        )
    except UserError as error:
        raise UserError(f"config.evaluate.inception is {config.inception!r}: {error}") from None

    def apply(params: Any, images: Array, kinds: Sequence[str]) -> dict[str, Array]:
        found = inception.features(params, images, [_INCEPTION[kind] for kind in kinds])
        return {kind: found[_INCEPTION[kind]] for kind in kinds}

    return FeatureNetwork(
        name="Inception-v3 (2015-12-05)"
        if inception.published
        else "Inception-v3 with other weights",
        sha256=inception.sha256,
        prefix="" if inception.published else _UNVERIFIED,
        widths={kind: WIDTHS[name] for kind, name in _INCEPTION.items()},
        settings={"resize": config.resize, "dtype": config.dtype},
        params=inception.params,
        apply=apply,
    )


def choose_metrics(
    experiment: Experiment,
    network: FeatureNetwork,
    *,
    has_spatial: bool,
    num_reference: int,
    has_texts: bool,
    num_samples: int,
) -> tuple[tuple[str, ...], dict[str, str]]:
    """The metrics to compute and, where "all" is asked for, why each other one is not.

    has_spatial: whether the reference has spatial statistics; num_reference: images of it that
    there are features of; has_texts: whether samples are of texts.

    Raises:
      UserError: for one that is asked for by name and can't be had.
    """
    config = experiment.evaluate
    refused: dict[str, str] = {}
    for name, kinds in METRICS.items():
        lacking = [kind for kind in kinds if kind not in network.widths]
        if lacking:
            refused[name] = f"{network.name} has no {lacking[0]} features"
        elif name == "sfid" and not has_spatial:
            refused[name] = "the reference has no spatial statistics (mu_s, sigma_s)"
        elif name in SAMPLE_METRICS and not num_reference:
            refused[name] = "the reference has neither features nor images"
        elif name in SAMPLE_METRICS and num_reference < _LEAST_OF_REFERENCE[name]:
            refused[name] = (
                f"the reference has {num_reference} images, expected at least "
                f"{_LEAST_OF_REFERENCE[name]}"
            )
        elif num_samples < _LEAST.get(name, 1):
            refused[name] = (
                f"the number of samples is {num_samples}, expected at least {_LEAST[name]}"
            )
        elif name == "clip" and not config.clip:
            refused[name] = "config.evaluate.clip is empty"
        elif name == "clip" and not has_texts:
            refused[name] = "the samples are of no texts"
    if "all" in config.asked:
        found = tuple(name for name in METRICS if name not in refused)
        if not found:
            raise UserError(
                f"config.evaluate.metrics is 'all', but none can be had: for one, {refused['fid']}"
            )
        return found, refused
    for name in config.asked:
        if name in refused:
            raise UserError(f"config.evaluate.metrics has {name!r}, but {refused[name]}")
    return tuple(name for name in METRICS if name in config.asked), {}
