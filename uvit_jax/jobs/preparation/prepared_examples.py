"""What the job `prepare` makes a data set of: images, cropped and perhaps encoded, or the official
features.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import itertools
import json
import logging
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes  # noqa: F401  (NumPy knows the name "bfloat16" from here on)
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

from uvit_jax.data.ahead import ahead
from uvit_jax.data.originals.crops import CROPS, Crop, Size, crop_channels, sides
from uvit_jax.data.originals.decoding import Decoding
from uvit_jax.data.originals.listing import listing_sha256
from uvit_jax.data.originals.official_features import OfficialFeatures, is_official_features
from uvit_jax.data.originals.open import CorruptImage, Original, Originals, open_originals
from uvit_jax.data.prepared.manifest import Manifest
from uvit_jax.data.prepared.shard_writer import Caption
from uvit_jax.errors import UserError
from uvit_jax.experiment.config import Experiment
from uvit_jax.experiment.job_sections import PrepareConfig
from uvit_jax.experiment.opened import open_experiment_autoencoder
from uvit_jax.experiment.text_states import TextStates, open_text_states
from uvit_jax.interop.autoencoder import Autoencoder
from uvit_jax.interop.tokenizer import Tokenizer
from uvit_jax.parallel.mesh import MeshConfig, batch_sharding, make_mesh
from uvit_jax.training.codec import Codec

LOG = logging.getLogger("uvit_jax")

# What the official repository multiplies latents by, except for COCO's.
_OFFICIAL_SCALE = 0.18215


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is stored; a data set is made with one plan from its first shard to its last.

    The fields are those of the manifest, and what else decides which images stand in which shard
    and what is stored of them: a run that goes on with another's shards must agree on all of it.

    Attributes:
      autoencoder_dtype: what the autoencoder computes in; "" without one.
      tokenizer_sha256: of the tokens of captions (`_sha256_of`); "" without captions.
      text_encoder_dtype: what the text encoder computes in; "" without one.
      listing_sha256: of the source's files, labels, captions and classes (`listing_sha256`); "" of
        the official features, whose files are numbered without a gap.
      exif: whether images are turned as their EXIF orientation says.
      unknown_labels: whether the source has classes but every label is -1, so that none is stored.
    """

    source: str
    split: str
    kind: str
    image_size: Size
    shape: tuple[int, ...]
    dtype: str
    mirror: bool
    autoencoder: str
    autoencoder_sha256: str
    autoencoder_dtype: str
    scale: float | None
    shift: float
    crop: str
    text_encoder: str
    text_encoder_sha256: str
    text_encoder_dtype: str
    tokenizer_sha256: str
    context_shape: tuple[int, ...]
    context_dtype: str
    num_images: int
    images_per_shard: int
    listing_sha256: str
    # What later versions added, with what earlier ones did as the default.
    exif: bool = False
    unknown_labels: bool = False

    @property
    def stored_dtype(self) -> np.dtype:
        """The dtype of what is stored."""
        return np.dtype(self.dtype)


@dataclasses.dataclass(frozen=True)
class Example:
    """What is stored of one image: its label (-1 for none), its array, its mirror image's where
    that is stored, and its captions, states and text of each, where the data set has any.
    """

    label: int
    arrays: tuple[np.ndarray, ...]
    captions: tuple[Caption, ...] = ()


@dataclasses.dataclass(frozen=True)
class Ingredients:
    """Examples by their number, to be stored as the plan says, and the states of the empty caption."""

    plan: Plan
    class_names: tuple[str, ...]
    # examples(images) yields lists of examples in order, and the names of images left out.
    examples: Callable[[range], Iterator[tuple[list[Example], list[str]]]]
    empty_context: Callable[[], Float[np.ndarray, "l d"]] | None = None

    def __len__(self) -> int:
        return self.plan.num_images

    def manifest(self, **rest: Any) -> Manifest:
        """The manifest: the plan, and what is known at the end."""
        names = {field.name for field in dataclasses.fields(Manifest)}
        fields = {
            name: value for name, value in dataclasses.asdict(self.plan).items() if name in names
        }
        return Manifest(**fields, class_names=self.class_names, **rest)


def open_ingredients(experiment: Experiment) -> Ingredients:
    """What `config.prepare` reads and how it is to be stored; weights and the first image are read,
    nothing is written.

    Raises:
      UserError: for a source, an autoencoder or a size that can't be.
    """
    config = experiment.prepare
    if not config.source:
        raise UserError(
            "config.prepare.source is empty, expected a folder of images, 'tfds:<name>', or a "
            "folder of the official repository's features"
        )
    if is_official_features(config.source):
        return _features(experiment)
    try:
        originals = open_originals(
            config.source,
            config.split,
            config.data_dir,
            decoding_of(experiment),
            texts=bool(experiment.text_encoder.name),
        )
    except UserError as error:
        fields = ("source", "split", "data_dir")
        raise UserError(
            f"config.prepare.{error}" if str(error).startswith(fields) else str(error)
        ) from None
    autoencoder = open_experiment_autoencoder(experiment.autoencoder) if config.latents else None
    mesh = make_mesh(MeshConfig(), jax.local_devices())
    text = open_text_states(experiment.text_encoder, mesh) if experiment.text_encoder.name else None
    return _images(experiment, originals, autoencoder, text, mesh)


def decoding_of(experiment: Experiment) -> Decoding:
    """How image files become the pixels that the config's model, or its autoencoder, is of."""
    config = experiment.prepare
    channels = 3 if experiment.autoencoder.name else experiment.model.in_channels
    return Decoding(channels, config.max_pixels, config.exif)


def _features(experiment: Experiment) -> Ingredients:
    config = experiment.prepare
    features = OfficialFeatures(config.source)
    if first_label := features[0][1]:  # They are in the order of their classes.
        LOG.warning(
            "the labels of %s begin with %d, so that the classes below are without images, which "
            "the model has rows for: labels are kept as they are, expected from 0 on",
            config.source,
            first_label,
        )
    plan = Plan(
        source=f"official features: {pathlib.Path(config.source).name}",
        split=config.split,
        kind="moments",
        image_size=_size(8 * features.shape[0], 8 * features.shape[1]),
        shape=features.shape,
        dtype=config.dtype,
        mirror=config.mirror,
        autoencoder=experiment.autoencoder.name or "autoencoder_kl",
        autoencoder_sha256="",
        autoencoder_dtype="",
        scale=experiment.autoencoder.scale or _OFFICIAL_SCALE,
        shift=0.0,
        crop="adm",
        **_NO_TEXT,
        num_images=len(features),
        images_per_shard=config.images_per_shard,
        listing_sha256="",
    )

    def examples(images: range) -> Iterator[tuple[list[Example], list[str]]]:
        with concurrent.futures.ThreadPoolExecutor(config.threads) as pool:
            for moments, label in ahead(pool, features.__getitem__, images, 4 * config.threads):
                stored = moments.astype(plan.stored_dtype)
                yield [Example(int(label), tuple(stored) if plan.mirror else (stored[0],))], []

    return Ingredients(plan, (), examples)


def _images(
    experiment: Experiment,
    originals: Originals,
    autoencoder: Autoencoder | None,
    text: TextStates | None,
    mesh: Mesh,
) -> Ingredients:
    config = experiment.prepare
    factor = autoencoder.factor if autoencoder else 1
    h, w = (
        sides(config.image_size)
        if config.image_size
        else (factor * side for side in experiment.model.input_size)
    )
    size = _size(h, w)
    if h % factor or w % factor:
        raise UserError(
            f"config.prepare.image_size is {size}, expected a multiple of the autoencoder's "
            f"{factor}"
        )
    first, unknown_labels = _first(originals), _are_labels_unknown(originals, config)
    channels = first.image.shape[-1]
    if autoencoder is not None and channels != 3:
        raise UserError(
            f"{originals.name} has images of {channels} channels, expected 3 for an autoencoder"
        )
    if text is not None and not first.captions:
        raise UserError(
            f"config.text_encoder.name is {text.encoder.name!r}, but {originals.name} has no "
            f"captions: expected none"
        )
    if text is None and first.captions:
        LOG.info(
            "the captions of %s are not stored: config.text_encoder.name is empty", originals.name
        )
    plan = Plan(
        source=originals.name,
        split=config.split,
        image_size=size,
        mirror=config.mirror and autoencoder is not None,
        crop=config.crop,
        num_images=len(originals),
        images_per_shard=config.images_per_shard,
        listing_sha256=listing_sha256(originals),
        exif=config.exif,
        unknown_labels=unknown_labels,
        **_latents(experiment, autoencoder, size, channels),
        **(_NO_TEXT if text is None else _text(experiment, text)),
    )
    encode = _encoder(experiment, autoencoder, plan, mesh) if autoencoder else None
    class_names = () if unknown_labels else tuple(originals.class_names)
    read = functools.partial(_read, originals, CROPS[config.crop], size, config, len(class_names))

    def examples(images: range) -> Iterator[tuple[list[Example], list[str]]]:
        with concurrent.futures.ThreadPoolExecutor(config.threads) as pool:
            ready = ahead(pool, read, images, max(2 * config.batch_size, 2 * config.threads))
            batches = _batches(ready, config.batch_size)
            for items, arrays in _encoded(batches, encode, config.batch_size):
                captions = _captions(items, text, plan.context_dtype)
                rows = zip(items, zip(*arrays, strict=True), captions, strict=True) if items else ()
                yield [Example(item.label, row, said) for item, row, said in rows], items.faults

    empty = None if text is None else lambda: text([""])[0].astype(plan.context_dtype)
    return Ingredients(plan, class_names, examples, empty)


def _size(height: int, width: int) -> Size:
    return height if height == width else (height, width)


def _latents(
    experiment: Experiment, autoencoder: Autoencoder | None, size: Size, channels: int
) -> dict[str, Any]:
    """The plan's fields on what is stored of an image."""
    if autoencoder is None:
        without = {
            "autoencoder": "",
            "autoencoder_sha256": "",
            "autoencoder_dtype": "",
            "scale": None,
            "shift": 0.0,
        }
        return {"kind": "pixels", "shape": (*sides(size), channels), "dtype": "uint8", **without}
    h, w = (side // autoencoder.factor for side in sides(size))
    return {
        "kind": "moments" if autoencoder.has_variance else "latents",
        "shape": (h, w, autoencoder.latent_channels * (2 if autoencoder.has_variance else 1)),
        "dtype": experiment.prepare.dtype,
        "autoencoder": autoencoder.name,
        "autoencoder_sha256": autoencoder.sha256,
        "autoencoder_dtype": experiment.autoencoder.dtype,
        "scale": autoencoder.scale
        if experiment.autoencoder.scale is None
        else experiment.autoencoder.scale,
        "shift": autoencoder.shift,
    }


def _text(experiment: Experiment, text: TextStates) -> dict[str, Any]:
    """The plan's fields on what is stored of a caption."""
    return {
        "text_encoder": text.encoder.name,
        "text_encoder_sha256": text.encoder.sha256,
        "text_encoder_dtype": experiment.text_encoder.dtype,
        "tokenizer_sha256": _sha256_of(text.tokenizer),
        "context_shape": text.shape,
        "context_dtype": experiment.prepare.dtype,
    }


_NO_TEXT: dict[str, Any] = {
    "text_encoder": "",
    "text_encoder_sha256": "",
    "text_encoder_dtype": "",
    "tokenizer_sha256": "",
    "context_shape": (),
    "context_dtype": "",
}


def _sha256_of(tokenizer: Tokenizer) -> str:
    """The hash of what decides a cleaned text's ids: the same for every file of the same tokens."""
    model = json.loads(tokenizer.backend.to_str())["model"]
    # Written as "a b" or as ["a", "b"], by the library's version.
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    ids = (tokenizer.start, tokenizer.end, tokenizer.pad, tokenizer.context_length)
    return hashlib.sha256(
        json.dumps([sorted(model["vocab"].items()), merges, ids]).encode()
    ).hexdigest()


@dataclasses.dataclass(frozen=True)
class _Cropped:
    """An original as an image of the wanted size; without an image, the fault of one that can't be
    read.
    """

    label: int
    image: UInt8[np.ndarray, "h w c"] | None
    captions: tuple[str, ...] = ()
    fault: str = ""


class _Batch(list[_Cropped]):
    """The readable ones of a batch, and the faults of the others."""

    def __init__(self, items: list[_Cropped]):
        super().__init__(item for item in items if item.image is not None)
        self.faults = [item.fault for item in items if item.image is None]


def _first(originals: Originals) -> Original:
    """The first original that can be read: all have its number of channels, and captions or none."""
    fault = ""
    for i in range(len(originals)):
        try:
            return originals[i]
        except CorruptImage as error:
            fault = fault or str(error)
    raise UserError(
        f"none of the {len(originals)} images of {originals.name} can be read (first: {fault})"
    )


def _are_labels_unknown(originals: Originals, config: PrepareConfig) -> bool:
    """Whether a source of classes gives no image its class, as published test splits do.

    Where images are to be skipped, one known label is enough: the images without are left out. Else
    the first decides, and one of the other kind stops the job.
    """
    if not originals.class_names:
        return False
    looked_at = range(len(originals) if config.on_error == "skip" else 1)
    if any(originals.label(i) >= 0 for i in looked_at):
        return False
    LOG.info("the labels of %s are unknown (-1): it is prepared without labels", originals.name)
    return True


def _check_label(original: Original, source: str, num_classes: int) -> None:
    """Refuses a label outside the classes' numbers; one that is known, where the others are not."""
    shown = f"{original.name} of {source} has the label {original.label}"
    if not num_classes and original.label != -1:
        raise UserError(
            f"{shown}, but the first image -1 (unknown), expected labels for all or for none "
            "(config.prepare.on_error=skip leaves out the images without)"
        )
    if num_classes and not 0 <= original.label < num_classes:
        unknown = " (unknown)" if original.label == -1 else ""
        raise CorruptImage(f"{shown}{unknown}, expected 0 to {num_classes - 1}")


def _read(
    originals: Originals,
    crop: Crop,
    size: Size,
    config: PrepareConfig,
    num_classes: int,
    index: int,
) -> _Cropped:
    try:
        original = originals[index]
        _check_label(original, originals.name, num_classes)
    except CorruptImage as error:
        if config.on_error == "stop":
            raise UserError(
                f"{error} (config.prepare.on_error=skip leaves such images out)"
            ) from None
        return _Cropped(-1, None, fault=str(error))
    try:
        return _Cropped(
            original.label, crop_channels(crop, original.image, size), original.captions
        )
    except UserError as error:
        raise UserError(f"{original.name}: {error}") from None


def _batches(items: Iterator[_Cropped], size: int) -> Iterator[_Batch]:
    while batch := list(itertools.islice(items, size)):
        yield _Batch(batch)


def _encoded(
    batches: Iterator[_Batch], encode: Callable | None, batch_size: int
) -> Iterator[tuple[_Batch, list[np.ndarray]]]:
    """Each batch and what is stored of its images; the next one is handed to the devices before one
    is fetched.
    """
    pending: tuple[_Batch, Any] | None = None
    for batch in batches:
        images = [item.image for item in batch if item.image is not None]
        following: tuple[_Batch, Any]
        if not images:
            following = batch, ()
        elif encode is None:
            following = batch, (np.stack(images),)
        else:
            # One shape for every batch, hence one compiled program.
            filled = np.zeros((batch_size, *images[0].shape), np.uint8)
            filled[: len(images)] = images
            following = batch, encode(filled)
        if pending is not None:
            yield _fetched(*pending)
        pending = following
    if pending is not None:
        yield _fetched(*pending)


def _fetched(batch: _Batch, arrays: Any) -> tuple[_Batch, list[np.ndarray]]:
    return batch, [array[: len(batch)] for array in jax.device_get(arrays)]


def _captions(batch: _Batch, text: TextStates | None, dtype: str) -> Iterator[tuple[Caption, ...]]:
    """States and text of each caption of each image."""
    if text is None:
        yield from [()] * len(batch)
        return
    texts = [caption for item in batch for caption in item.captions]
    pairs = zip(text(texts).astype(dtype), texts, strict=True)
    for item in batch:
        yield tuple(itertools.islice(pairs, len(item.captions)))


def _encoder(
    experiment: Experiment, autoencoder: Autoencoder, plan: Plan, mesh: Mesh
) -> Callable[[UInt8[np.ndarray, "b h w 3"]], tuple[Float[Array, "b i j z"], ...]]:
    """Images to what is stored of them (and of their mirror images), on all devices of this host."""
    batch_size = experiment.prepare.batch_size
    if batch_size % mesh.size:
        raise UserError(
            f"config.prepare.batch_size is {batch_size}, expected a multiple of this host's "
            f"{mesh.size} devices"
        )
    codec = Codec(autoencoder, mesh, experiment.autoencoder.batch_size)
    dtype = jnp.dtype(plan.stored_dtype)

    def encode(params: Any, images: Array) -> tuple[Array, ...]:
        x = images.astype(jnp.float32) / 127.5 - 1
        views = (x, x[:, :, ::-1]) if plan.mirror else (x,)
        return tuple(codec.encode(params, view).astype(dtype) for view in views)

    program = jax.jit(encode)
    return lambda images: program(codec.params, jax.device_put(images, batch_sharding(mesh)))
