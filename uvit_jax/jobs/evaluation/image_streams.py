"""Images as streams of uint8 batches that can be taken up at any image: of data sets, folders, .npz
files.
"""

import concurrent.futures
import dataclasses
import itertools
import logging
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh
from jaxtyping import UInt8

from uvit_jax.data.ahead import ahead
from uvit_jax.data.originals.crops import CROPS, Size
from uvit_jax.data.originals.folders import ImageFolder, open_folder
from uvit_jax.data.originals.npz_images import NpzImages, open_npz_images
from uvit_jax.data.originals.open import Original, Originals, open_originals
from uvit_jax.data.prepared.manifest import FILE_NAME as MANIFEST
from uvit_jax.data.prepared.record_source import RecordSource
from uvit_jax.data.sources import SOURCES, Source, load_source
from uvit_jax.errors import UserError
from uvit_jax.experiment.config import Experiment
from uvit_jax.experiment.opened import open_experiment_autoencoder
from uvit_jax.interop.state_dict import sha256_of
from uvit_jax.jobs.preparation.prepared_examples import decoding_of
from uvit_jax.jobs.sampling.sample_folder import (
    NPZ,
    check_complete,
    indices_of,
    read_request,
    sample_files,
)
from uvit_jax.parallel.arrays import fetch, place
from uvit_jax.parallel.mesh import batch_parts, batch_sharding
from uvit_jax.telemetry.images import to_uint8
from uvit_jax.training.codec import Codec

LOG = logging.getLogger("uvit_jax")

_GRID = "grid.png"  # of the job `sample`
_ROWS = 256  # read at a time
_READERS = 4  # images under way for each thread


@dataclasses.dataclass(frozen=True, eq=False)
class ImageStream:
    """Images in order.

    Attributes:
      name: what a report calls them.
      count: how many.
      shape: (h, w, c) of each.
      batches: `batches(first)` yields uint8 `[b, h, w, c]` of the images from number `first` on,
        batches of any size.
      record: what else matters about them, for a report.
      files: that hold them, where they are files: an .npz, or one an image.
    """

    name: str
    count: int
    shape: tuple[int, int, int]
    batches: Callable[[int], Iterator[UInt8[np.ndarray, "b h w c"]]]
    record: dict[str, Any] = dataclasses.field(default_factory=dict)
    files: tuple[pathlib.Path, ...] = ()

    @property
    def is_npz(self) -> bool:
        """Whether one file holds all of them."""
        return len(self.files) == 1 and self.files[0].suffix == ".npz"


def regrouped(
    batches: Iterator[UInt8[np.ndarray, "b h w c"]], rows: int
) -> Iterator[UInt8[np.ndarray, "b h w c"]]:
    """The same images, `rows` at a time but for the last."""
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


def open_samples(name: str) -> ImageStream:
    """Finished samples as they are: an `.npz`, or a folder of image files of one size.

    Of a folder with a `samples.json` these are the samples that it announces, and nothing else. Of
    another the `grid.png` that the job `sample` writes beside its samples is none of them, where
    there are others.

    Raises:
      UserError: for a path that is neither, samples that are not all there or are of several calls,
        or images of several sizes (when the other one is met).
    """
    path = pathlib.Path(name)
    if not path.exists():
        raise UserError(
            f"config.evaluate.samples is {name!r}, which doesn't exist, expected a folder of "
            f"images or an .npz"
        )
    if not path.is_dir() and path.suffix != ".npz":
        raise UserError(
            f"config.evaluate.samples is {name!r}, which is a file, expected a folder of images, "
            "or an .npz with images or arr_0, uint8 [n, h, w, c], as np.savez makes of an array"
        )
    try:
        return _open_samples(path)
    except UserError as error:
        raise UserError(f"config.evaluate.samples is {name!r}: {error}") from None


def _open_samples(path: pathlib.Path) -> ImageStream:
    if not path.is_dir():
        return _of_npz(open_npz_images(path))
    request = read_request(path)
    if request is None:
        return _of_folder(_unmixed(open_folder(path)), str(path))
    if request.format == "npz":
        if not (path / NPZ).exists():
            check_complete(path, request, 0)
        stream = _of_npz(open_npz_images(path / NPZ))
        check_complete(path, request, stream.count)
        return stream
    files = sample_files(path, request)
    return _of_folder(
        ImageFolder(path.name, path, files, np.full(len(files), -1, np.int32)), str(path)
    )


def _of_folder(folder: ImageFolder, name: str) -> ImageStream:
    stream = _of_originals(folder, None, name, {}, threads=os.cpu_count() or 1)
    return dataclasses.replace(stream, files=tuple(folder.root / file for file in folder.files))


def _unmixed(folder: ImageFolder) -> ImageFolder:
    """The same folder but for its own grid.png; a metadata.jsonl that names it means it.

    Raises:
      UserError: for samples of several calls in one folder, and a grid of samples that are
        elsewhere.
    """
    if folder.class_names or folder.captions:
        return folder
    for index, names in indices_of(list(folder.files)).items():
        if len(names) > 1:
            raise UserError(
                f"it holds {' and '.join(map(repr, names[:2]))}, two images of sample {index}, "
                "expected the samples of one call"
            )
    kept = [i for i, file in enumerate(folder.files) if file != _GRID]
    if not kept and (folder.root / NPZ).exists():
        raise UserError(f"its samples are in {NPZ}, expected {str(folder.root / NPZ)!r}")
    if len(kept) == len(folder) or not kept:
        return folder
    LOG.info("%s is left out: it shows the other %d images", folder.root / _GRID, len(kept))
    return dataclasses.replace(
        folder, files=[folder.files[i] for i in kept], labels=folder.labels[kept]
    )


def open_reference_images(experiment: Experiment, name: str, size: Size, mesh: Mesh) -> ImageStream:
    """The images of a data set, of this side or (height, width): `name` is "digits", an `.npz`, a
    prepared data set, "tfds:<name>" or a folder of images; latents are decoded with
    `config.autoencoder`, pictures of a folder or of TFDS cropped as `config.prepare.crop` says.
    Those of the others have a size, whatever is asked for. They are read in RGB, which of a grey
    picture is the same number thrice.

    Raises:
      UserError: for a name that is none of these, images that can't be cropped so, or latents
        without their autoencoder.
    """
    field = reference_field(experiment)
    if name in SOURCES:
        return _of_source(load_source(name), {})
    try:
        if name.endswith(".npz"):
            return _of_npz(open_npz_images(pathlib.Path(name)))
        if pathlib.Path(name, MANIFEST).exists():
            return _of_records(experiment, RecordSource(name), mesh)
        _check_folder(name)
        config, crop = experiment.prepare, CROPS[experiment.prepare.crop]
        decoding = dataclasses.replace(decoding_of(experiment), channels=3)
        originals = open_originals(name, config.split, config.data_dir, decoding)
        record = {"split": config.split, "crop": config.crop} | (
            {"exif": True} if config.exif else {}
        )
        return _of_originals(
            originals,
            lambda image: crop(image, size),
            originals.name,
            record,
            threads=config.threads,
        )
    except UserError as error:
        raise UserError(
            f"{field} is {name!r}, which samples are to be compared with: {error}"
        ) from None


def reference_field(experiment: Experiment) -> str:
    """The field that names what samples are compared with."""
    return "config.evaluate.reference" if experiment.evaluate.reference else "config.data.source"


def _check_folder(name: str) -> None:
    if name.startswith("tfds:") or pathlib.Path(name).is_dir():
        return
    found = "it is a file" if pathlib.Path(name).exists() else "it doesn't exist"
    raise UserError(
        f"{found}, expected an .npz of statistics or of images, a folder of images, a prepared "
        "data set, 'tfds:<name>' or 'digits'"
    )


def _of_npz(images: NpzImages) -> ImageStream:
    n, *shape = images.shape
    batches = lambda first: images.batches(first, _ROWS)  # noqa: E731
    return ImageStream(
        str(images.path), n, (shape[0], shape[1], shape[2]), batches, files=(images.path,)
    )


def _of_originals(
    originals: Originals,
    crop: Callable[[np.ndarray], np.ndarray] | None,
    name: str,
    record: dict,
    *,
    threads: int,
) -> ImageStream:
    if not len(originals):
        raise UserError(f"{name} holds no images, expected at least one")
    first_one = originals[0]
    shape = _cropped(first_one, crop, name).shape

    def read(index: int) -> UInt8[np.ndarray, "h w c"]:
        original = originals[index]
        image = _cropped(original, crop, name)
        if image.shape != shape:
            raise UserError(
                f"{original.name} of {name} is {_size(image.shape)}, expected {_size(shape)} as "
                f"{first_one.name}"
            )
        return image

    def batches(first: int) -> Iterator[UInt8[np.ndarray, "b h w c"]]:
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            images = ahead(pool, read, range(first, len(originals)), _READERS * threads)
            while batch := list(itertools.islice(images, _ROWS)):
                yield np.stack(batch)

    return ImageStream(name, len(originals), (shape[0], shape[1], shape[2]), batches, record)


def _cropped(
    original: Original, crop: Callable[[np.ndarray], np.ndarray] | None, name: str
) -> UInt8[np.ndarray, "h w c"]:
    try:
        return original.image if crop is None else crop(original.image)
    except UserError as error:
        raise UserError(f"{original.name} of {name}: {error}") from None


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _of_source(source: Source, record: dict[str, Any]) -> ImageStream:
    """Of pixels: bytes as they are, floats in [-1, 1] as bytes."""

    def batches(first: int) -> Iterator[UInt8[np.ndarray, "b h w c"]]:
        for begin in range(first, len(source), _ROWS):
            x = _read(source, begin)
            yield x if x.dtype == np.uint8 else to_uint8(x)

    return ImageStream(source.name, len(source), source.sample_shape, batches, record)


def _read(source: Source, begin: int) -> np.ndarray:
    indices = np.arange(begin, min(begin + _ROWS, len(source)))
    return source.read(indices, np.zeros(len(indices), bool), fields=["x"])["x"]


def _of_records(experiment: Experiment, source: RecordSource, mesh: Mesh) -> ImageStream:
    manifest = source.manifest
    record = {"split": manifest.split, "crop": manifest.crop} | (
        {"exif": True} if manifest.exif else {}
    )
    if manifest.kind == "pixels":
        return _of_source(source, record)
    autoencoder = open_experiment_autoencoder(experiment.autoencoder)
    if autoencoder is None:
        raise UserError(
            f"{source.folder} holds latents, and config.autoencoder.name is empty: expected "
            f"{manifest.autoencoder!r} to decode them with, or a reference of images"
        )
    if manifest.autoencoder_sha256 and autoencoder.sha256 != manifest.autoencoder_sha256:
        raise UserError(
            f"config.autoencoder.name is {autoencoder.name!r}, whose encoder (SHA-256 "
            f"{autoencoder.sha256[:12]}) is not the one of the latents in {source.folder}: "
            f"expected {manifest.autoencoder!r} ({manifest.autoencoder_sha256[:12]})"
        )
    codec = Codec(autoencoder, mesh, experiment.autoencoder.batch_size)
    program = jax.jit(codec.decode)
    rows = -(-_ROWS // batch_parts(mesh)) * batch_parts(mesh)

    def batches(first: int) -> Iterator[UInt8[np.ndarray, "b h w c"]]:
        for begin in range(first, len(source), _ROWS):
            x = _read(source, begin)
            # Of moments, their mean; one shape for every batch, hence one compiled program.
            z = x[..., : x.shape[-1] // 2] if manifest.kind == "moments" else x
            filled = np.zeros((rows, *z.shape[1:]), np.float32)
            filled[: len(z)] = z
            yield to_uint8(
                fetch(program(codec.params, place(filled, batch_sharding(mesh))))[: len(z)]
            )

    h, w, _ = manifest.shape
    shape = (h * autoencoder.factor, w * autoencoder.factor, 3)
    decoded = {
        "decoded with": autoencoder.name,
        "sha256 of all its weights": sha256_of(dict(flatten_dict(autoencoder.params))),
        "decoder dtype": experiment.autoencoder.dtype,
        "latents": "means of moments" if manifest.kind == "moments" else "stored",
    }
    return ImageStream(source.name, len(source), shape, batches, record | decoded)
