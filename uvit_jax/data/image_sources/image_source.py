"""The interface that every kind of image source has, and the hash by which one is recognised."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from uvit_jax.errors import UserError


class CorruptImage(UserError):
    """An image that can't be decoded or has no known class; the other images may be fine."""


@dataclasses.dataclass(frozen=True)
class SourceImage:
    """One image of a source, before any crop.

    Attributes:
      image: pixels as they were found, of any size.
      label: its class; -1 for none.
      captions: its captions; () for none.
      name: for errors and reports: the file within its folder, or "train[17]".
    """

    image: UInt8[np.ndarray, "h w c"]
    label: int
    captions: tuple[str, ...]
    name: str


@runtime_checkable
class ImageSource(Protocol):
    """Random access to the images of a data set; picklable, and safe to call from threads."""

    @property
    def name(self) -> str:
        """Name for the manifest: a folder's name, "coco:<folder>:train2014", "tfds:cifar10", ..."""
        ...

    @property
    def class_names(self) -> Sequence[str]:
        """One for each class; () where images have no labels."""
        ...

    def __len__(self) -> int: ...

    def label(self, index: int) -> int:
        """The label of this image, which is not decoded; -1 for an unknown one."""
        ...

    def __getitem__(self, index: int) -> SourceImage:
        """The image at this index.

        Raises:
          CorruptImage: for one that can't be decoded.
        """
        ...

    def listing(self) -> list[Any]:
        """The values that identify the images in order, with labels and captions, for JSON."""
        ...


def listing_sha256(source: ImageSource) -> str:
    """A hash of file names, labels and captions in order, and of the classes' names.

    A resumed `prepare` sees by it that its source has changed. It covers names, not contents: about
    a second for ImageNet.
    """
    return hashlib.sha256(json.dumps(source.listing()).encode()).hexdigest()
