"""Kernel distance of two sets of features (KID, if they are Inception's)."""

import numpy as np
from jaxtyping import Float

from uvit_jax.errors import UserError
from uvit_jax.metrics.moments import check_features


def kid(
    features_a: Float[np.ndarray, "n d_a"],
    features_b: Float[np.ndarray, "m d_b"],
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 2020,
) -> tuple[float, float]:
    """Mean and population standard deviation of the unbiased squared MMD over random subsets.

    The kernel is k(x, y) = (x . y / d + 1)^3 (Sec. 4 of arXiv:1801.01401), in float64. Subsets are
    drawn without replacement, alternately from either set, with `np.random.RandomState(seed)`:
    torch-fidelity's draws and default seed, hence its numbers. For two sets of one distribution
    values scatter around 0 and may be negative.

    Args:
      features_a: a row a sample.
      features_b: likewise, of the same width.
      subsets: number of random subsets.
      subset_size: rows in each.
      seed: of the draws.

    Raises:
      UserError: for sets of different widths, smaller than a subset, or with NaN or infinity; for a
        subset of fewer than two.
    """
    if subsets < 1:
        raise UserError(f"subsets is {subsets}, expected at least 1")
    if subset_size < 2:
        raise UserError(f"subset_size is {subset_size}, expected at least 2")
    for name, features in (("features_a", features_a), ("features_b", features_b)):
        check_features(name, features, features_a.shape[1])
        if len(features) < subset_size:
            raise UserError(
                f"subset_size is {subset_size}, expected at most {len(features)}, the rows of "
                f"{name}"
            )
    rng = np.random.RandomState(
        seed
    )  # the legacy generator, with which published numbers were drawn
    values = np.empty(subsets)
    for i in range(subsets):
        a = features_a[rng.choice(len(features_a), subset_size, replace=False)]
        b = features_b[rng.choice(len(features_b), subset_size, replace=False)]
        values[i] = _squared_mmd(a.astype(np.float64), b.astype(np.float64))
    return float(values.mean()), float(values.std())


def _squared_mmd(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "n d"]) -> float:
    """The unbiased estimator of Lemma 6 of Gretton et al. (2012), without k(x, x)."""
    n = len(a)
    of_a, of_b = _kernel(a, a), _kernel(b, b)
    within = of_a.sum() - np.trace(of_a) + of_b.sum() - np.trace(of_b)
    return float(within / (n * (n - 1)) - 2 * _kernel(a, b).mean())


def _kernel(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n n"]:
    base = x @ y.T / x.shape[1] + 1
    return np.asarray(base * base * base)  # a tenth of the time of **3
