"""The interface of data that training reads, and the data sets that need no preparing.

Examples are read a batch at a time: `{"x": [n, h, w, c], "label": int32 [n]}` and, for images with
captions, "context" `[n, tokens, width]`: the states of one caption of each.
"""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int, UInt64

from uvit_jax.errors import UserError
from uvit_jax.extras import import_extra


@runtime_checkable
class TrainingData(Protocol):
    """Random access to examples, and what a config is checked against before anything runs."""

    @property
    def name(self) -> str:
        """Name for configs and reports."""
        ...

    @property
    def class_names(self) -> Sequence[str]:
        """One for each class."""
        ...

    def __len__(self) -> int: ...

    def read(
        self,
        indices: Int[np.ndarray, " n"],
        mirrored: Bool[np.ndarray, " n"],
        draws: UInt64[np.ndarray, " n"] | None = None,
        fields: Collection[str] | None = None,
    ) -> dict[str, np.ndarray]:
        """The examples of these indices, stacked; called from threads.

        Args:
          indices: of the examples.
          mirrored: which of them are read as mirror images.
          draws: random words, each of which picks one of its example's captions; None for the
            first.
          fields: names of the arrays that are wanted; None for all.

        Returns:
          "x" `[n, h, w, c]`, "label" int32 `[n]` and, where there are captions, "context" `[n,
          tokens, width]`.
        """
        ...

    @property
    def can_mirror(self) -> bool:
        """True if examples can be read as mirror images."""
        ...

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """Shape (h, w, c) of an example."""
        ...

    @property
    def context_shape(self) -> tuple[int, ...]:
        """Shape (tokens, width) of a caption's states; () without captions."""
        ...

    @property
    def num_classes(self) -> int:
        """Number of classes, the empty label not counted."""
        ...


@dataclasses.dataclass(frozen=True)
class ArrayData:
    """A data set in memory.

    Attributes:
      name: for configs and reports.
      images: pixels in [-1, 1].
      labels: class of each image, 0..num_classes-1.
      class_names: one for each class.
    """

    name: str
    images: Float[np.ndarray, "n h w c"]
    labels: Int[np.ndarray, " n"]
    class_names: Sequence[str]

    def __post_init__(self):
        outside = (self.labels < 0) | (self.labels >= max(len(self.class_names), 1))
        if outside.any():
            raise UserError(
                f"{self.name!r} has {self.labels[outside][0]} among its labels, expected one in "
                f"0..{len(self.class_names) - 1} for each of its {len(self.images)} images"
            )

    def __len__(self) -> int:
        return len(self.images)

    def read(
        self,
        indices: Int[np.ndarray, " n"],
        mirrored: Bool[np.ndarray, " n"],
        draws: UInt64[np.ndarray, " n"] | None = None,
        fields: Collection[str] | None = None,
    ) -> dict[str, np.ndarray]:
        """The examples of these indices, stacked; where `mirrored`, left and right are exchanged.

        Returns:
          "x", float32 `[n, h, w, c]` in [-1, 1], and "label", int32 `[n]`, or those of them that
          `fields` names. `draws` is unused: there are no captions.
        """
        x = self.images[indices]
        x[mirrored] = x[mirrored, :, ::-1]
        batch = {"x": x, "label": self.labels[indices].astype(np.int32)}
        return batch if fields is None else {name: batch[name] for name in fields}

    @property
    def can_mirror(self) -> bool:
        """True: pixels always can."""
        return True

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """Shape (h, w, c) of an example."""
        h, w, c = self.images.shape[1:]
        return h, w, c

    @property
    def context_shape(self) -> tuple[int, ...]:
        """(): it has no captions."""
        return ()

    @property
    def num_classes(self) -> int:
        """Number of classes, the empty label not counted."""
        return len(self.class_names)


def digits() -> ArrayData:
    """The 1,797 handwritten digits of 8x8 pixels in scikit-learn's package; needs no network.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits (UCI, 1998), the
    test part. Their 17 grey levels 0..16 become -1..1.

    Raises:
      UserError: scikit-learn isn't installed.
    """
    # Imported late: it takes a second.
    data = import_extra("sklearn.datasets", "digits", "source is 'digits'").load_digits()
    images = (data.images / 8 - 1).astype(np.float32)[..., None]
    return ArrayData(
        "digits", images, data.target.astype(np.int32), [str(digit) for digit in range(10)]
    )


# Data sets that need no folder, by name.
BUILT_IN: dict[str, Callable[[], TrainingData]] = {"digits": digits}


def load_built_in(name: str) -> TrainingData:
    """The built-in data set of this name.

    Raises:
      UserError: for an unknown name, or one whose extra isn't installed.
    """
    if name not in BUILT_IN:
        raise UserError(f"source is {name!r}, expected one of {', '.join(map(repr, BUILT_IN))}")
    return BUILT_IN[name]()
