"""Mean and covariance of features that arrive in batches, whatever the sizes of the batches."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.linalg.blas import dsyrk

from uvit_jax.errors import UserError


class Moments:
    """Count, mean and covariance of a stream of rows, in float64.

    The centred scatter of each batch joins that of all before it by the pairwise update of Chan,
    Golub and LeVeque (1979). Unlike sums of squares it keeps its digits where the means are far
    larger than the deviations.

    Attributes:
      width: features of a row, d.
      count: rows seen.
    """

    def __init__(self, width: int):
        self.width, self.count = width, 0
        # The scatter's upper triangle, in Fortran order: BLAS adds to it in place.
        self._mean, self._scatter = np.zeros(width), np.zeros((width, width), order="F")

    def update(self, features: Float[np.ndarray, "n width"]) -> None:
        """Adds n rows.

        Raises:
          UserError: for rows of another width, or with NaN or infinity.
        """
        check_features("features", features, self.width)
        if len(features) == 0:
            return
        values = features.astype(np.float64)
        mean = values.mean(axis=0)
        values -= mean
        rest = values.mean(axis=0)  # rounding error of the first mean
        values -= rest
        self._join(len(values), mean + rest, values)

    def merge(self, other: "Moments") -> None:
        """Adds all rows of `other`.

        Raises:
          UserError: for another width.
        """
        if other.width != self.width:
            raise UserError(
                f"moments have width {other.width}, expected {self.width}, that of those they join"
            )
        if other.count:
            self._scatter += other._scatter
            self._join(other.count, other._mean, np.empty((0, self.width)))

    def _join(self, count: int, mean: np.ndarray, centred: np.ndarray) -> None:
        total, delta = self.count + count, mean - self._mean
        # The difference of the two means is one more centred row: one product adds everything.
        rows = np.concatenate([centred, delta[None] * np.sqrt(self.count / total * count)])
        self._scatter = dsyrk(1.0, rows.T, beta=1.0, c=self._scatter, overwrite_c=True)
        self._mean += delta * (count / total)
        self.count = total

    @property
    def mean(self) -> Float[np.ndarray, " d"]:
        """Mean of each feature. Raises UserError before the first row."""
        if self.count < 1:
            raise UserError("the mean needs at least 1 sample, found 0")
        return self._mean.copy()

    @property
    def covariance(self) -> Float[np.ndarray, "d d"]:
        """Unbiased covariance, as `np.cov`. Raises UserError for fewer than two rows."""
        if self.count < 2:
            raise UserError(f"the covariance needs at least 2 samples, found {self.count}")
        upper = self._scatter / (self.count - 1)
        return np.triu(upper) + np.triu(upper, 1).T

    def arrays(self) -> dict[str, np.ndarray]:
        """State to save; `from_arrays` goes on from it with the same bits."""
        return {
            "count": np.asarray(self.count),
            "mean": self._mean.copy(),
            "scatter": self._scatter.copy(),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Moments":
        """The moments whose `arrays()` these are."""
        moments = cls(len(arrays["mean"]))
        moments.count = int(arrays["count"])
        moments._mean, moments._scatter = (
            np.array(arrays[name], order="F") for name in ("mean", "scatter")
        )
        return moments


class SplitMoments:
    """Moments of two halves of the samples, at the cost of the whole.

    The half of a sample depends on its number alone, and not on its class or prompt where these
    come in turn: even and odd numbers would split the ten digits into two sets of five.

    Attributes:
      halves: moments of the first and of the second half.
    """

    def __init__(self, width: int):
        self.halves = Moments(width), Moments(width)

    def update(self, features: Float[np.ndarray, "n width"], first: int) -> None:
        """Adds samples `first`, first + 1, ...; raises UserError as `Moments.update`."""
        check_features("features", features, self.halves[0].width)
        second = in_second_half(np.arange(first, first + len(features)))
        self.halves[0].update(features[~second])
        self.halves[1].update(features[second])

    def merge(self, other: "SplitMoments") -> None:
        """Adds all samples of `other`, none of which may be among these."""
        for half, more in zip(self.halves, other.halves, strict=True):
            half.merge(more)

    @property
    def whole(self) -> Moments:
        """The moments of both halves together."""
        moments = Moments(self.halves[0].width)
        for half in self.halves:
            moments.merge(half)
        return moments

    def arrays(self) -> dict[str, np.ndarray]:
        """State to save; `from_arrays` goes on from it with the same bits."""
        return {
            f"half{number}_{name}": array
            for number, half in enumerate(self.halves)
            for name, array in half.arrays().items()
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "SplitMoments":
        """The moments whose `arrays()` these are."""
        first, second = (
            Moments.from_arrays(
                {name: arrays[f"half{number}_{name}"] for name in ("count", "mean", "scatter")}
            )
            for number in range(2)
        )
        moments = cls(first.width)
        moments.halves = first, second
        return moments


def in_second_half(numbers: Int[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """True for the samples in the second half of `SplitMoments`.

    The fractional parts of n times the golden ratio are spread evenly, also over the multiples of
    any number: so every class is halved, however many classes there are.
    """
    # As fractions of 2^64; the product wraps around.
    fractions = numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return np.asarray(fractions >> np.uint64(63) == 1)


def check_features(name: str, features: Float[np.ndarray, "n d"], width: int) -> None:
    """Checks rows called `name`: raises UserError for another width, NaN or infinity."""
    if features.shape[1] != width:
        raise UserError(f"{name} have {features.shape[1]} columns, expected {width}")
    bad = len(features) - int(np.isfinite(features).all(axis=1).sum())
    if bad:
        raise UserError(
            f"{name} hold NaN or infinity in {bad} of {len(features)} rows, expected finite numbers"
        )
