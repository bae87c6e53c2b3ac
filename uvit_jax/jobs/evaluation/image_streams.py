"""Streams of images in uint8 batches that can start at any image."""

import concurrent.futures
import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import UInt8

from uvit_jax.data.image_sources.image_source import ImageSource, SourceImage
from uvit_jax.data.image_sources.npz_images import NpzImages
from uvit_jax.data.threaded_map import threaded_map
from uvit_jax.data.training_data import TrainingData
from uvit_jax.errors import UserError
from uvit_jax.telemetry.images import to_uint8

Batches = Iterator[UInt8[np.ndarray, "b h w c"]]
Crop = Callable[[UInt8[np.ndarray, "_h _w _c"]], UInt8[np.ndarray, "h w c"]]
Shape = tuple[int, int, int]

ROWS = 256  # images read at a time
_READS_PER_THREAD = 4  # reads queued for each thread


@dataclasses.dataclass(frozen=True, eq=False)
class ImageStream:
    """Images in order.

    Attributes:
      name: name in reports.
      count: number of images.
      shape: (h, w, c) of each.
      batches: `batches(first)` yields uint8 `[b, h, w, c]` of the images from number `first` on, in
        batches of any size.
      record: what else a report says of them.
      files: the files that hold them, if any: an .npz, or one file an image.
    """

    name: str
    count: int
    shape: Shape
    batches: Callable[[int], Batches]
    record: dict[str, Any] = dataclasses.field(default_factory=dict)
    files: tuple[pathlib.Path, ...] = ()

    @property
    def is_npz(self) -> bool:
        """True if one .npz holds all of them."""
        return len(self.files) == 1 and self.files[0].suffix == ".npz"


def regrouped(batches: Batches, rows: int) -> Batches:
    """The same images in batches of `rows`; the last may be smaller."""
    held: list[np.ndarray] = []
    for batch in batches:
        while len(batch):
            wanted = rows - sum(map(len, held))
            held.append(batch[:wanted])
            batch = batch[wanted:]
            if sum(map(len, held)) == rows:
                yield np.concatenate(held)
                held = []
    if held:
        yield np.concatenate(held)


def stream_of_npz(images: NpzImages) -> ImageStream:
    """The images of an .npz."""
    n, h, w, c = images.shape
    return ImageStream(
        str(images.path),
        n,
        (h, w, c),
        lambda first: images.batches(first, ROWS),
        files=(images.path,),
    )


def stream_of_originals(
    originals: ImageSource,
    name: str,
    *,
    crop: Crop | None = None,
    record: dict[str, Any] | None = None,
    threads: int,
) -> ImageStream:
    """The images of a folder or of TFDS, read and cropped by threads.

    Raises:
      UserError: for no images, and for a first image that can't be read or cropped. `batches`
        raises it for any other such image, and for one of another size.
    """
    if not len(originals):
        raise UserError(f"{name} holds no images, expected at least one")
    first_one = originals[0]
    h, w, c = shape = _cropped(first_one, crop, name).shape

    def read(index: int) -> UInt8[np.ndarray, "h w c"]:
        original = originals[index]
        image = _cropped(original, crop, name)
        if image.shape != shape:
            raise UserError(
                f"{original.name} of {name} is {_size(image.shape)}, expected {_size(shape)} as "
                f"{first_one.name}"
            )
        return image

    def batches(first: int) -> Batches:
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            images = threaded_map(
                pool, read, range(first, len(originals)), _READS_PER_THREAD * threads
            )
            while batch := list(itertools.islice(images, ROWS)):
                yield np.stack(batch)

    return ImageStream(name, len(originals), (h, w, c), batches, record or {})


def _cropped(original: SourceImage, crop: Crop | None, name: str) -> UInt8[np.ndarray, "h w c"]:
    try:
        return original.image if crop is None else crop(original.image)
    except UserError as error:
        raise UserError(f"{original.name} of {name}: {error}") from None


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def stream_of_pixels(source: TrainingData, record: dict[str, Any] | None = None) -> ImageStream:
    """The images of a training data set of pixels; floats in [-1, 1] become bytes."""

    def batches(first: int) -> Batches:
        for x in read_x(source, first):
            yield x if x.dtype == np.uint8 else to_uint8(x)

    return ImageStream(source.name, len(source), source.sample_shape, batches, record or {})


def read_x(source: TrainingData, first: int) -> Iterator[np.ndarray]:
    """The field "x" of the examples from number `first` on, unmirrored, `ROWS` at a time."""
    for begin in range(first, len(source), ROWS):
        indices = np.arange(begin, min(begin + ROWS, len(source)))
        yield source.read(indices, np.zeros(len(indices), bool), fields=["x"])["x"]
