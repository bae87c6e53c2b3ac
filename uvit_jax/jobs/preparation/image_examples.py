"""Examples from an image source: cropped, encoded where there is an autoencoder, with captions."""

import concurrent.futures
import logging
from collections.abc import Callable, Iterator

from uvit_jax.data.image_sources.crops import Size, sides
from uvit_jax.data.image_sources.image_source import ImageSource, SourceImage, listing_sha256
from uvit_jax.data.threaded_map import threaded_map
from uvit_jax.errors import UserError
from uvit_jax.experiment.job_sections import PrepareConfig
from uvit_jax.experiment.sections import AutoencoderSection
from uvit_jax.experiment.text_states import TextStates
from uvit_jax.jobs.preparation.cropping import CroppingReader, are_labels_unknown, first_readable
from uvit_jax.jobs.preparation.encoding import batched, encoded, encoded_captions, latents_encoder
from uvit_jax.jobs.preparation.plan import (
    NO_TEXT,
    Plan,
    caption_fields,
    latent_fields,
    pixel_fields,
)
from uvit_jax.jobs.preparation.prepared_examples import Example, PreparedExamples
from uvit_jax.training.codec import Codec

LOG = logging.getLogger("uvit_jax")


def open_image_examples(
    source: ImageSource,
    prepare: PrepareConfig,
    size: Size,
    *,
    codec: Codec | None,
    autoencoder: AutoencoderSection,
    text: TextStates | None,
) -> PreparedExamples:
    """The examples of a source's images; the first of them is read.

    Args:
      source: the images.
      prepare: how they are cropped, batched and stored.
      size: of the crops, in pixels.
      codec: the autoencoder on this host's devices; None to store pixels.
      autoencoder: its section.
      text: the text encoder on this host's devices; None to store no captions.

    Raises:
      UserError: for a size, channels or captions that don't fit the encoders, or a source without
        one readable image.
    """
    _check_size(size, codec)
    first = first_readable(source)
    unknown_labels = are_labels_unknown(source, prepare.on_error)
    _check_channels(source, first, codec)
    _check_captions(source, first, text)
    image_fields = (
        pixel_fields(size, first.image.shape[-1])
        if codec is None
        else latent_fields(codec.autoencoder, autoencoder, size, prepare.dtype)
    )
    plan = Plan(
        source=source.name,
        split=prepare.split,
        image_size=size,
        mirror=prepare.mirror and codec is not None,
        crop=prepare.crop,
        num_images=len(source),
        images_per_shard=prepare.images_per_shard,
        listing_sha256=listing_sha256(source),
        exif=prepare.exif,
        unknown_labels=unknown_labels,
        **image_fields,
        **(NO_TEXT if text is None else caption_fields(text, prepare.dtype)),
    )
    class_names = () if unknown_labels else tuple(source.class_names)
    examples = _examples(source, plan, prepare, codec, text, num_classes=len(class_names))
    empty = None if text is None else lambda: text([""])[0].astype(plan.context_dtype)
    return PreparedExamples(plan, class_names, examples, empty)


def _examples(
    source: ImageSource,
    plan: Plan,
    prepare: PrepareConfig,
    codec: Codec | None,
    text: TextStates | None,
    *,
    num_classes: int,
) -> Callable[[range], Iterator[tuple[list[Example], list[str]]]]:
    """The function that makes the examples of a range of images."""
    encode = None
    if codec is not None:
        encode = latents_encoder(codec, prepare.batch_size, plan.stored_dtype, mirror=plan.mirror)
    read = CroppingReader(source, prepare, plan.image_size, num_classes)

    def examples(images: range) -> Iterator[tuple[list[Example], list[str]]]:
        batch_size, threads = prepare.batch_size, prepare.threads
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            cropped = threaded_map(pool, read, images, max(2 * batch_size, 2 * threads))
            for batch, arrays in encoded(batched(cropped, batch_size), encode, batch_size):
                captions = encoded_captions(batch, text, plan.context_dtype)
                rows = zip(batch, zip(*arrays, strict=True), captions, strict=True) if batch else ()
                yield [Example(each.label, row, said) for each, row, said in rows], batch.errors

    return examples


def _check_size(size: Size, codec: Codec | None) -> None:
    factor = codec.autoencoder.factor if codec else 1
    if any(side % factor for side in sides(size)):
        raise UserError(
            f"config.prepare.image_size is {size}, expected a multiple of the autoencoder's "
            f"{factor}"
        )


def _check_channels(source: ImageSource, first: SourceImage, codec: Codec | None) -> None:
    channels = first.image.shape[-1]
    if codec is not None and channels != 3:
        raise UserError(
            f"{source.name} has images of {channels} channels, expected 3 for an autoencoder"
        )


def _check_captions(source: ImageSource, first: SourceImage, text: TextStates | None) -> None:
    if text is not None and not first.captions:
        raise UserError(
            f"config.text_encoder.name is {text.encoder.name!r}, but {source.name} has no "
            "captions: expected none"
        )
    if text is None and first.captions:
        LOG.info(
            "the captions of %s are not stored: config.text_encoder.name is empty", source.name
        )
