"""What the job `prepare` makes a data set of: images, cropped and perhaps encoded, or the official features."""

import collections
import concurrent.futures
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes  # noqa: F401  (NumPy knows the name "bfloat16" from here on)
import numpy as np
from jaxtyping import Array, Float, UInt8

from uvit_jax.data.crops import CROPS
from uvit_jax.data.manifest import Manifest
from uvit_jax.data.official_features import OfficialFeatures, is_official_features
from uvit_jax.data.originals import CorruptImage, Originals, open_originals
from uvit_jax.errors import UserError
from uvit_jax.interop.autoencoder import Autoencoder
from uvit_jax.jobs.config import Experiment
from uvit_jax.jobs.sections import PrepareConfig
from uvit_jax.jobs.setup import open_experiment_autoencoder
from uvit_jax.parallel.mesh import MeshConfig, batch_sharding, make_mesh
from uvit_jax.training.codec import Codec

# What the official repository multiplies latents by, except for COCO's.
_OFFICIAL_SCALE = 0.18215


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is stored; a data set is made with one plan from its first shard to its last.

    The fields are those of the manifest, and which images stand in which shard.
    """

    source: str
    split: str
    kind: str
    image_size: int
    shape: tuple[int, ...]
    dtype: str
    mirror: bool
    autoencoder: str
    autoencoder_sha256: str
    scale: float | None
    shift: float
    crop: str
    num_images: int
    images_per_shard: int

    @property
    def stored_dtype(self) -> np.dtype:
        """The dtype of what is stored."""
        return np.dtype(self.dtype)


@dataclasses.dataclass(frozen=True)
class Example:
    """What is stored of one image: its label (-1 for none), its array, and its mirror image's where that is stored."""

    label: int
    arrays: tuple[np.ndarray, ...]


@dataclasses.dataclass(frozen=True)
class Ingredients:
    """Examples by their number, to be stored as the plan says."""

    plan: Plan
    class_names: tuple[str, ...]
    # examples(images) yields lists of examples in order, and the names of images left out.
    examples: Callable[[range], Iterator[tuple[list[Example], list[str]]]]

    def __len__(self) -> int:
        return self.plan.num_images

    def manifest(self, **rest: Any) -> Manifest:
        """The manifest: the plan, and what is known at the end."""
        names = {field.name for field in dataclasses.fields(Manifest)}
        fields = {name: value for name, value in dataclasses.asdict(self.plan).items() if name in names}
        return Manifest(**fields, class_names=self.class_names, text_encoder="", **rest)


def open_ingredients(experiment: Experiment) -> Ingredients:
    """What `config.prepare` reads and how it is to be stored; weights and the first image are read, nothing is written.

    Raises:
      UserError: for a source, an autoencoder or a size that can't be.
    """
    config = experiment.prepare
    if not config.source:
        raise UserError(
            "config.prepare.source is empty, expected a folder of images, 'tfds:<name>', or a folder of the official "
            "repository's features"
        )
    if is_official_features(config.source):
        return _features(experiment)
    originals = open_originals(config.source, config.split, config.data_dir)
    autoencoder = open_experiment_autoencoder(experiment) if config.latents else None
    return _images(experiment, originals, autoencoder)


def _features(experiment: Experiment) -> Ingredients:
    config = experiment.prepare
    features = OfficialFeatures(config.source)
    plan = Plan(
        source=f"official features: {pathlib.Path(config.source).name}",
        split=config.split,
        kind="moments",
        image_size=8 * features.shape[0],
        shape=features.shape,
        dtype=config.dtype,
        mirror=config.mirror,
        autoencoder=experiment.autoencoder.name or "autoencoder_kl",
        autoencoder_sha256="",
        scale=experiment.autoencoder.scale or _OFFICIAL_SCALE,
        shift=0.0,
        crop="adm",
        num_images=len(features),
        images_per_shard=config.images_per_shard,
    )

    def examples(images: range) -> Iterator[tuple[list[Example], list[str]]]:
        with concurrent.futures.ThreadPoolExecutor(config.threads) as pool:
            for moments, label in _ahead(pool, features.__getitem__, images, 4 * config.threads):
                stored = moments.astype(plan.stored_dtype)
                yield [Example(int(label), tuple(stored) if plan.mirror else (stored[0],))], []

    return Ingredients(plan, (), examples)


def _images(experiment: Experiment, originals: Originals, autoencoder: Autoencoder | None) -> Ingredients:
    config = experiment.prepare
    h, w = experiment.model.input_size
    factor = autoencoder.factor if autoencoder else 1
    if not config.image_size and h != w:
        raise UserError(
            f"config.prepare.image_size is 0 and the model's images are {h}x{w}, expected a size: images are square"
        )
    size = config.image_size or h * factor
    if size % factor:
        raise UserError(f"config.prepare.image_size is {size}, expected a multiple of the autoencoder's {factor}")
    first = _first_image(originals)
    if autoencoder is not None and first.shape[-1] != 3:
        raise UserError(f"{originals.name} has images of {first.shape[-1]} channels, expected 3 for an autoencoder")
    if autoencoder is None:
        kind, channels, scale = "pixels", first.shape[-1], None
    else:
        kind = "moments" if autoencoder.has_variance else "latents"
        channels = autoencoder.latent_channels * (2 if autoencoder.has_variance else 1)
        scale = autoencoder.scale if experiment.autoencoder.scale is None else experiment.autoencoder.scale
    plan = Plan(
        source=originals.name,
        split=config.split,
        kind=kind,
        image_size=size,
        shape=(size // factor, size // factor, channels),
        dtype=config.dtype if autoencoder else "uint8",
        mirror=config.mirror and autoencoder is not None,
        autoencoder=autoencoder.name if autoencoder else "",
        autoencoder_sha256=autoencoder.sha256 if autoencoder else "",
        scale=scale,
        shift=autoencoder.shift if autoencoder else 0.0,
        crop=config.crop,
        num_images=len(originals),
        images_per_shard=config.images_per_shard,
    )
    encode = _encoder(experiment, autoencoder, plan) if autoencoder else None
    read = functools.partial(_read, originals, CROPS[config.crop], size, config)

    def examples(images: range) -> Iterator[tuple[list[Example], list[str]]]:
        with concurrent.futures.ThreadPoolExecutor(config.threads) as pool:
            ready = _ahead(pool, read, images, max(2 * config.batch_size, 2 * config.threads))
            batches = _batches(ready, config.batch_size)
            yield from (_encoded(batches, encode, config.batch_size) if encode else map(_stored, batches))

    return Ingredients(plan, tuple(originals.class_names), examples)


@dataclasses.dataclass(frozen=True)
class _Cropped:
    """A label and a square image; without an image, the fault of one that can't be read."""

    label: int
    image: UInt8[np.ndarray, "s s c"] | None
    fault: str = ""


def _first_image(originals: Originals) -> UInt8[np.ndarray, "h w c"]:
    """The first image that can be read: they all have its number of channels."""
    for i in range(len(originals)):
        try:
            return originals[i].image
        except CorruptImage:
            continue
    raise UserError(f"none of the {len(originals)} images of {originals.name} can be read")


def _read(originals: Originals, crop: Callable, size: int, config: PrepareConfig, index: int) -> _Cropped:
    try:
        original = originals[index]
    except CorruptImage as error:
        if config.on_error == "stop":
            raise UserError(f"{error} (config.prepare.on_error=skip leaves such images out)") from None
        return _Cropped(-1, None, str(error))
    try:
        return _Cropped(original.label, crop(original.image, size))
    except UserError as error:
        raise UserError(f"{original.name}: {error}") from None


def _ahead(pool: concurrent.futures.Executor, function: Callable, items: Sequence[Any], depth: int) -> Iterator[Any]:
    """function(item) for each item in order, `depth` of them under way."""
    waiting: collections.deque[concurrent.futures.Future] = collections.deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _batches(items: Iterator[_Cropped], size: int) -> Iterator[list[_Cropped]]:
    batch: list[_Cropped] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _stored(batch: list[_Cropped]) -> tuple[list[Example], list[str]]:
    examples = [Example(item.label, (item.image,)) for item in batch if item.image is not None]
    return examples, [item.fault for item in batch if item.image is None]


def _encoded(
    batches: Iterator[list[_Cropped]], encode: Callable, batch_size: int
) -> Iterator[tuple[list[Example], list[str]]]:
    """Each batch encoded, while the next one is already handed to the devices."""
    pending: tuple[list[int], list[str], Any] | None = None
    for batch in batches:
        images = [item.image for item in batch if item.image is not None]
        labels = [item.label for item in batch if item.image is not None]
        # One shape for every batch, hence one compiled program.
        filled = np.zeros((batch_size, *images[0].shape), np.uint8) if images else None
        if filled is not None:
            filled[: len(images)] = images
        following = (labels, [item.fault for item in batch if item.image is None], encode(filled) if images else ())
        if pending is not None:
            yield _fetched(*pending)
        pending = following
    if pending is not None:
        yield _fetched(*pending)


def _fetched(labels: list[int], faults: list[str], encoded: Sequence[Array]) -> tuple[list[Example], list[str]]:
    arrays = jax.device_get(list(encoded))
    return [Example(label, tuple(array[i] for array in arrays)) for i, label in enumerate(labels)], faults


def _encoder(
    experiment: Experiment, autoencoder: Autoencoder, plan: Plan
) -> Callable[[UInt8[np.ndarray, "b h w 3"]], tuple[Float[Array, "b i j z"], ...]]:
    """Images to what is stored of them (and of their mirror images), on all devices of this host."""
    mesh = make_mesh(MeshConfig(), jax.local_devices())
    batch_size = experiment.prepare.batch_size
    if batch_size % mesh.size:
        raise UserError(
            f"config.prepare.batch_size is {batch_size}, expected a multiple of this host's {mesh.size} devices"
        )
    codec = Codec(autoencoder, mesh, experiment.autoencoder.batch_size)
    dtype = jnp.dtype(plan.stored_dtype)

    def encode(params: Any, images: Array) -> tuple[Array, ...]:
        x = images.astype(jnp.float32) / 127.5 - 1
        views = (x, x[:, :, ::-1]) if plan.mirror else (x,)
        return tuple(codec.encode(params, view).astype(dtype) for view in views)

    program = jax.jit(encode)
    return lambda images: program(codec.params, jax.device_put(images, batch_sharding(mesh)))
