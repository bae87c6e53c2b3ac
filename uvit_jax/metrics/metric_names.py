"""The names of the metrics; importing them needs none of what computes them."""

from collections.abc import Mapping

# What can be asked for, and the kinds of features each needs of the samples.
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
# These compare single samples, not moments: they need features of the reference's images.
OF_SAMPLES = ("kid", "precision", "recall", "density", "coverage")
