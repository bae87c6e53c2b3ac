"""Which metrics the features, the reference and the number of samples allow."""

from uvit_jax.errors import UserError
from uvit_jax.experiment.job_sections import EvaluateConfig
from uvit_jax.metrics.feature_network import FeatureNetwork
from uvit_jax.metrics.metric_names import METRICS, SAMPLE_METRICS

# Samples that a metric needs: for a covariance, pairs, ten parts, or 3 neighbours of a sample.
_LEAST = {"fid": 2, "sfid": 2, "is": 10, "kid": 2, "precision": 4, "recall": 4}
# Reference images with features that a metric needs: for pairs, or for k neighbours of an image.
_LEAST_OF_REFERENCE = {"kid": 2, "precision": 4, "recall": 4, "density": 6, "coverage": 6}


def choose_metrics(
    evaluate: EvaluateConfig,
    network: FeatureNetwork,
    *,
    has_spatial: bool,
    num_reference: int,
    has_texts: bool,
    num_samples: int,
) -> tuple[tuple[str, ...], dict[str, str]]:
    """The metrics to compute and, where "all" is asked for, why the others are left out.

    Args:
      has_spatial: True if the reference has spatial statistics.
      num_reference: number of the reference's images with features.
      has_texts: True if samples are drawn from texts.

    Raises:
      UserError: for a metric that is asked for by name and can't be had.
    """
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
        elif name == "clip" and not evaluate.clip:
            refused[name] = "config.evaluate.clip is empty"
        elif name == "clip" and not has_texts:
            refused[name] = "the samples are of no texts"
    if "all" in evaluate.asked:
        found = tuple(name for name in METRICS if name not in refused)
        if not found:
            raise UserError(
                f"config.evaluate.metrics is 'all', but none can be had: for one, {refused['fid']}"
            )
        return found, refused
    for name in evaluate.asked:
        if name in refused:
            raise UserError(f"config.evaluate.metrics has {name!r}, but {refused[name]}")
    return tuple(name for name in METRICS if name in evaluate.asked), {}
