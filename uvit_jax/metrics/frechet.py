"""The Frechet distance of two Gaussians (FID, if of Inception's features) and its bias."""

import numpy as np
import scipy.linalg
from jaxtyping import Float

from uvit_jax.errors import UserError
from uvit_jax.metrics.moments import SplitMoments

# Relative to the largest entry: the error of covariances that were stored in single precision.
_STORED_ROUNDING = 1e-5


class FrechetReference:
    """A Gaussian to compare many others with: its covariance is decomposed once."""

    def __init__(
        self, mean: Float[np.ndarray, " m"], covariance: Float[np.ndarray, "rows columns"]
    ):
        """Raises UserError for numbers that are not a mean `[d]` and a covariance `[d, d]`."""
        self._mean, self._factor = _gaussian("reference", mean, covariance)

    def distance(
        self, mean: Float[np.ndarray, " m"], covariance: Float[np.ndarray, "rows columns"]
    ) -> float:
        """The squared distance |mu_a - mu_b|^2 + Tr(A + B - 2 (A B)^(1/2)).

        Eq. 6 of arXiv:1706.08500. For any factors A = F F^T and B = G G^T, A B has the eigenvalues
        of (F^T G)(F^T G)^T, so the trace of the root is the sum of F^T G's singular values. These
        are never squared: a singular covariance (fewer samples than features, repeated images)
        costs no digits, and no complex root arises. The distance is never negative.

        Raises:
          UserError: for numbers that are not a mean and a covariance, or of another width than the
            reference's.
        """
        mean, factor = _gaussian("compared", mean, covariance)
        if len(mean) != len(self._mean):
            raise UserError(
                f"the compared mean has width {len(mean)}, expected {len(self._mean)}, the "
                "reference's"
            )
        product = self._factor.T @ factor
        root = (
            scipy.linalg.svdvals(product, overwrite_a=True, check_finite=False).sum()
            if product.size
            else 0.0
        )
        traces = np.sum(self._factor**2) + np.sum(factor**2)
        return float(np.sum((self._mean - mean) ** 2) + max(traces - 2 * root, 0.0))


def frechet_distance(
    mean_a: Float[np.ndarray, " m_a"],
    cov_a: Float[np.ndarray, "rows_a columns_a"],
    mean_b: Float[np.ndarray, " m_b"],
    cov_b: Float[np.ndarray, "rows_b columns_b"],
) -> float:
    """The squared Frechet distance of two Gaussians, Eq. 6 of arXiv:1706.08500; 0 and up.

    >>> frechet_distance(np.zeros(2), np.eye(2), np.ones(2), np.eye(2))
    2.0

    Args:
      mean_a: mean `[d]` of the first.
      cov_a: its covariance `[d, d]`, which may be singular.
      mean_b: mean `[d]` of the second.
      cov_b: its covariance `[d, d]`.

    Raises:
      UserError: for other shapes, NaN or infinity, or a covariance that is not symmetric or has a
        negative eigenvalue.
    """
    return FrechetReference(mean_a, cov_a).distance(mean_b, cov_b)


def frechet_bias(
    reference: FrechetReference, samples: SplitMoments, whole: float | None = None
) -> float:
    """Estimates how far the distance of n samples exceeds that of infinitely many.

    To first order the excess is c / n (Sec. 3 of arXiv:1911.07023), hence 2 c / n for each half:
    the mean of the halves' distances minus the whole's is the whole's own excess. The estimate is
    itself random, and needs n well above the number of features.

    Args:
      whole: `reference.distance` of all samples, if it is known already.

    Raises:
      UserError: for fewer than four samples, or samples of another width than the reference's.
    """
    if whole is None:
        moments = samples.whole
        whole = reference.distance(moments.mean, moments.covariance)
    halves = [reference.distance(half.mean, half.covariance) for half in samples.halves]
    return sum(halves) / 2 - whole


def _gaussian(name: str, mean: np.ndarray, covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean in float64, and F `[d, rank]` with F F^T = covariance."""
    width = len(mean)
    if covariance.shape != (width, width):
        raise UserError(
            f"the {name} covariance has shape {covariance.shape}, expected {(width, width)} as "
            "its mean"
        )
    mean, covariance = mean.astype(np.float64), covariance.astype(np.float64)
    for part, values in (("mean", mean), ("covariance", covariance)):
        if not np.isfinite(values).all():
            raise UserError(f"the {name} {part} holds NaN or infinity, expected finite numbers")
    tolerance = _STORED_ROUNDING * np.max(np.abs(covariance), initial=0.0)
    difference = np.max(np.abs(covariance - covariance.T), initial=0.0)
    if difference > tolerance:
        raise UserError(
            f"the {name} covariance differs from its transpose by {difference:g}, expected symmetry"
        )
    values, vectors = scipy.linalg.eigh(
        (covariance + covariance.T) / 2, driver="evd", check_finite=False
    )
    if values[0] < -tolerance * np.sqrt(width):
        raise UserError(
            f"the {name} covariance has the eigenvalue {values[0]:g}, expected none below 0"
        )
    # Smaller eigenvalues are rounded zeros; their roots would add up.
    kept = values > width * np.finfo(np.float64).eps * values[-1]
    return mean, vectors[:, kept] * np.sqrt(values[kept])
