"""Batches of cropped images to what is stored of them: pixels or latents, and captions' states."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from uvit_jax.data.prepared.shard_writer import Caption
from uvit_jax.errors import UserError
from uvit_jax.experiment.text_states import TextStates
from uvit_jax.jobs.preparation.cropping import CroppedImage
from uvit_jax.parallel.batches import one_ahead, padded
from uvit_jax.parallel.mesh import batch_sharding
from uvit_jax.training.codec import Codec

Encode = Callable[[UInt8[np.ndarray, "b h w 3"]], tuple[Float[Array, "b i j z"], ...]]


class CroppedBatch(list[CroppedImage]):
    """The readable images of a batch, and the errors of the others."""

    def __init__(self, images: list[CroppedImage]):
        super().__init__(each for each in images if each.image is not None)
        self.errors = [each.error for each in images if each.image is None]


def batched(images: Iterator[CroppedImage], size: int) -> Iterator[CroppedBatch]:
    """The images, `size` at a time but for the last batch."""
    while batch := list(itertools.islice(images, size)):
        yield CroppedBatch(batch)


def latents_encoder(codec: Codec, batch_size: int, dtype: np.dtype, *, mirror: bool) -> Encode:
    """Images to their latents (and those of their mirror images), on all devices of this host.

    Raises:
      UserError: where the devices don't divide the batch.
    """
    if batch_size % codec.mesh.size:
        raise UserError(
            f"config.prepare.batch_size is {batch_size}, expected a multiple of this host's "
            f"{codec.mesh.size} devices"
        )

    def encode(params: Any, images: Array) -> tuple[Array, ...]:
        x = images.astype(jnp.float32) / 127.5 - 1
        views = (x, x[:, :, ::-1]) if mirror else (x,)
        return tuple(codec.encode(params, view).astype(jnp.dtype(dtype)) for view in views)

    program = jax.jit(encode)
    return lambda images: program(codec.params, jax.device_put(images, batch_sharding(codec.mesh)))


def encoded(
    batches: Iterator[CroppedBatch], encode: Encode | None, batch_size: int
) -> Iterator[tuple[CroppedBatch, list[np.ndarray]]]:
    """Each batch and the arrays stored of its images, pixels where `encode` is None.

    The next batch is dispatched to the devices before one is fetched.
    """

    def dispatched() -> Iterator[tuple[CroppedBatch, Any]]:
        for batch in batches:
            images = [each.image for each in batch if each.image is not None]
            if not images:
                yield batch, ()
            elif encode is None:
                yield batch, (np.stack(images),)
            else:
                yield batch, encode(padded(np.stack(images), batch_size))

    for batch, arrays in one_ahead(dispatched()):
        yield batch, [array[: len(batch)] for array in jax.device_get(arrays)]


def encoded_captions(
    batch: CroppedBatch, text: TextStates | None, dtype: str
) -> Iterator[tuple[Caption, ...]]:
    """States (in this dtype) and text of each caption of each image; () each without `text`."""
    if text is None:
        yield from [()] * len(batch)
        return
    texts = [caption for each in batch for caption in each.captions]
    pairs = zip(text(texts).astype(dtype), texts, strict=True)
    for each in batch:
        yield tuple(itertools.islice(pairs, len(each.captions)))
