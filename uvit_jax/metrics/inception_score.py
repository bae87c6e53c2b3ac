"""Inception Score of logits that arrive batch by batch."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from scipy.special import log_softmax, xlogy

from uvit_jax.errors import UserError
from uvit_jax.metrics.moments import check_features


class InceptionScore:
    """exp(E_x KL(p(y|x) || p(y))) of arXiv:1606.03498 over parts of the samples, in float64.

    Part k of N samples holds samples k N // splits to (k + 1) N // splits - 1, as in the published
    code. ADM's evaluator takes parts of 5,000, which is the same for 50,000 samples in ten parts.

    Attributes:
      num_samples: N, the samples that there will be.
      splits: number of parts.
    """

    def __init__(self, num_samples: int, splits: int = 10):
        """Raises UserError for fewer samples than splits, or no split."""
        if splits < 1:
            raise UserError(f"splits is {splits}, expected at least 1")
        if num_samples < splits:
            raise UserError(
                f"num_samples is {num_samples}, expected at least one for each of {splits} splits"
            )
        self.num_samples, self.splits = num_samples, splits
        self._bounds = np.arange(splits + 1) * num_samples // splits
        self._counts = np.zeros(splits, np.int64)
        # Sums over samples of p [splits, classes] and of sum_y p log p [splits]. The number of
        # classes is that of the first batch.
        self._p, self._p_log_p = np.zeros((splits, 0)), np.zeros(splits)

    def update(self, logits: Float[np.ndarray, "n c"], first: int) -> None:
        """Adds the logits of samples `first`, first + 1, ...

        Batches may come in any order, each sample once.

        Raises:
          UserError: for samples beyond the last, logits with NaN or infinity, or another number of
            classes than before.
        """
        end = first + len(logits)
        if first < 0 or end > self.num_samples:
            raise UserError(
                f"samples are numbered {first} to {end - 1}, expected 0 to {self.num_samples - 1}"
            )
        self._set_num_classes(logits.shape[1])
        check_features("logits", logits, self._p.shape[1])
        log_p = log_softmax(logits.astype(np.float64), axis=1)
        p = np.exp(log_p)
        p_log_p = np.sum(p * log_p, axis=1)
        for k in range(self.splits):
            part = slice(max(self._bounds[k] - first, 0), max(self._bounds[k + 1] - first, 0))
            self._counts[k] += len(p[part])
            self._p[k] += p[part].sum(axis=0)
            self._p_log_p[k] += p_log_p[part].sum()

    def merge(self, other: "InceptionScore") -> None:
        """Adds all samples of `other`, none of which may be among these.

        Raises:
          UserError: for another num_samples, splits or number of classes.
        """
        if (other.num_samples, other.splits) != (self.num_samples, self.splits):
            raise UserError(
                f"scores are of {other.num_samples} samples in {other.splits} splits, expected "
                f"{self.num_samples} in {self.splits}, as those they join"
            )
        if other._p.shape[1]:
            self._set_num_classes(other._p.shape[1])
            self._counts += other._counts
            self._p += other._p
            self._p_log_p += other._p_log_p

    def _set_num_classes(self, classes: int) -> None:
        """Allocates the sums at the first call; raises UserError for another number later."""
        if self._p.shape[1] == 0:
            self._p = np.zeros((self.splits, classes))
        elif self._p.shape[1] != classes:
            raise UserError(f"logits have {classes} columns, expected {self._p.shape[1]} as before")

    def result(self) -> tuple[float, float]:
        """Mean and population standard deviation over the splits.

        Raises:
          UserError: unless every sample was seen exactly once.
        """
        if np.any(self._counts != np.diff(self._bounds)):
            raise UserError(
                f"{self._counts.sum()} samples were seen, expected each of {self.num_samples} once"
            )
        marginal = self._p / self._counts[:, None]
        divergence = self._p_log_p / self._counts - np.sum(xlogy(marginal, marginal), axis=1)
        scores = np.exp(divergence)
        return float(scores.mean()), float(scores.std())

    def arrays(self) -> dict[str, np.ndarray]:
        """State to save; `from_arrays` goes on from it with the same bits."""
        return {
            "num_samples": np.asarray(self.num_samples),
            "counts": self._counts.copy(),
            "p": self._p.copy(),
            "p_log_p": self._p_log_p.copy(),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "InceptionScore":
        """The score whose `arrays()` these are."""
        score = cls(int(arrays["num_samples"]), len(arrays["counts"]))
        score._counts = np.array(arrays["counts"], np.int64)
        score._p, score._p_log_p = (np.array(arrays[name], np.float64) for name in ("p", "p_log_p"))
        return score
