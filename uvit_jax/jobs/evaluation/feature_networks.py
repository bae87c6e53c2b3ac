"""The feature networks that `config.evaluate.features` names."""

from collections.abc import Callable, Mapping, Sequence

from jaxtyping import Array

from uvit_jax.errors import UserError
from uvit_jax.experiment.job_sections import EvaluateConfig
from uvit_jax.interop.inception import open_inception
from uvit_jax.metrics.feature_network import FeatureNetwork
from uvit_jax.metrics.random_filters import random_filters
from uvit_jax.models.frozen.inception import WIDTHS
from uvit_jax.training.state import Params

# Kinds of features, and the names of these features in Inception-v3.
_INCEPTION = {"pool": "pool2048", "spatial": "spatial2023", "logits": "logits1008"}
_UNVERIFIED = "other_inception_"


def open_feature_network(evaluate: EvaluateConfig) -> FeatureNetwork:
    """The network that `config.evaluate.features` names, with its weights.

    Raises:
      UserError: for weights that can't be had, are damaged or not the published ones.
    """
    return _OPENERS[evaluate.features](evaluate)


def _open_random_filters(evaluate: EvaluateConfig) -> FeatureNetwork:
    return random_filters()


def _open_inception(evaluate: EvaluateConfig) -> FeatureNetwork:
    try:
        inception = open_inception(
            evaluate.inception,
            dtype=evaluate.dtype,
            resize=evaluate.resize,
            sha256=evaluate.inception_sha256,
        )
    except UserError as error:
        fault = str(error).replace("inception_sha256", "config.evaluate.inception_sha256")
        raise UserError(f"config.evaluate.inception is {evaluate.inception!r}: {fault}") from None

    def apply(params: Params, images: Array, kinds: Sequence[str]) -> dict[str, Array]:
        found = inception.features(params, images, [_INCEPTION[kind] for kind in kinds])
        return {kind: found[_INCEPTION[kind]] for kind in kinds}

    name = "Inception-v3 (2015-12-05)" if inception.published else "Inception-v3 with other weights"
    return FeatureNetwork(
        name=name,
        sha256=inception.sha256,
        prefix="" if inception.published else _UNVERIFIED,
        widths={kind: WIDTHS[name] for kind, name in _INCEPTION.items()},
        settings={"resize": evaluate.resize, "dtype": evaluate.dtype},
        params=inception.params,
        apply=apply,
    )


# By the names of `metrics.metric_names.FEATURE_NETWORKS`, which configs are checked against.
_OPENERS: Mapping[str, Callable[[EvaluateConfig], FeatureNetwork]] = {
    "own": _open_random_filters,
    "inception": _open_inception,
}
