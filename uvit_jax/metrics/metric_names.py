"""Names of the metrics and of the feature networks, apart from the code that computes them."""

from collections.abc import Mapping

# The feature networks by name: `uvit_jax.jobs.evaluation.feature_networks` opens them.
FEATURE_NETWORKS = ("own", "inception")
# The metrics by name, and the kinds of features that each needs of the samples.
METRICS: Mapping[str, tuple[str, ...]] = {
    "fid": ("pool",),
    "sfid": ("spatial",),
    "is": ("logits",),
    "kid": ("pool",),
    "precision": ("pool",),
    "recall": ("pool",),
    "density": ("pool",),
    "coverage": ("pool",),
    "clip": (),
}
# Metrics of single samples, not of moments: they need features of the reference's images.
SAMPLE_METRICS = ("kid", "precision", "recall", "density", "coverage")
