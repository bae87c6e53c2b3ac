"""CLIP score: how well images fit their texts, by the angle between both CLIP embeddings."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from uvit_jax.errors import UserError

WEIGHT = 100.0  # torchmetrics'; 2.5 in the paper


class ClipScore:
    """The mean of max(100 cos(image, text), 0) over pairs, in float64, on a stream.

    The CLIP-S of arXiv:2104.08718 (Sec. 3) with the weight w = 100 in place of its 2.5, as
    torchmetrics has it and text-to-image papers report it: 40 times the original's numbers.
    """

    def __init__(self) -> None:
        self._total, self._count = np.float64(0), 0

    def update(
        self, image_embeddings: Float[np.ndarray, "n p"], text_embeddings: Float[np.ndarray, "n p"]
    ) -> None:
        """Adds n pairs: row i of the images' embeddings with row i of the texts'.

        Embeddings may have any length: they need not be normalized.

        Raises:
          UserError: for a NaN or infinite embedding, or one of length 0, which has no direction.
            Nothing is added then.
        """
        image, text = (
            _directions(kind, np.asarray(embeddings, np.float64))
            for kind, embeddings in (("image", image_embeddings), ("text", text_embeddings))
        )
        if image.shape != text.shape:
            raise UserError(
                f"the text embeddings have shape {text.shape}, expected {image.shape}, the images'"
            )
        self._total += np.maximum(WEIGHT * np.sum(image * text, axis=1), 0).sum()
        self._count += len(image)

    def result(self) -> float:
        """The score so far, 0 to 100.

        Raises:
          UserError: before any pair was added.
        """
        if not self._count:
            raise UserError("the CLIP score is of 0 pairs, expected at least 1")
        return float(self._total / self._count)

    def arrays(self) -> dict[str, np.ndarray]:
        """State to save: `total` (sum of the pairs' scores, float64) and `count` (int64)."""
        return {
            "total": np.asarray(self._total, np.float64),
            "count": np.asarray(self._count, np.int64),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "ClipScore":
        """The score whose `arrays()` these are."""
        score = cls()
        score._total, score._count = np.float64(arrays["total"]), int(arrays["count"])
        return score


def _directions(kind: str, embeddings: Float[np.ndarray, "n p"]) -> Float[np.ndarray, "n p"]:
    """Rows divided by their lengths."""
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    if bad := np.flatnonzero(~(np.isfinite(norms) & (norms > 0))).tolist():
        raise UserError(
            f"the {kind} embedding in row {bad[0]} has length {norms[bad[0], 0]}, expected a "
            "finite length above 0"
        )
    return np.asarray(embeddings / norms)
