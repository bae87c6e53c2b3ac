"""A feature network of a few features, for tests of what is done with features."""

import jax.numpy as jnp
import numpy as np

from uvit_jax.metrics.feature_network import FeatureNetwork

WIDTHS = {"pool": 6, "spatial": 5, "logits": 12}


def small_network(**changes) -> FeatureNetwork:
    """Features that are sums of an image's mean colours, with some fields changed."""
    rng = np.random.default_rng(0)
    params = {
        kind: rng.standard_normal((3, width)).astype(np.float32) for kind, width in WIDTHS.items()
    }

    def apply(params, images, kinds):
        colours = (images.astype(jnp.float32) / 255).mean((1, 2)) * jnp.ones(3)
        return {kind: colours @ params[kind] for kind in kinds}

    fields = {
        "name": "small",
        "sha256": "a" * 64,
        "prefix": "small_",
        "widths": WIDTHS,
        "settings": {"resize": "none", "dtype": "float32"},
        "params": params,
        "apply": apply,
    }
    return FeatureNetwork(**fields | changes)


def random_features(count: int, seed: int = 0, shift: float = 0.0) -> dict[str, np.ndarray]:
    """Features of this many samples, of each kind."""
    rng = np.random.default_rng(seed)
    return {
        kind: (rng.standard_normal((count, width)) + shift).astype(np.float32)
        for kind, width in WIDTHS.items()
    }
