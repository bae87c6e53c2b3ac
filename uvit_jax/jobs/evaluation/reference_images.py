"""Images that reference statistics are computed from, as `config.evaluate.reference` names them."""

import dataclasses
import pathlib

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh

from uvit_jax.data.image_sources.crops import CROPS, Size
from uvit_jax.data.image_sources.decoding import Decoding
from uvit_jax.data.image_sources.npz_images import open_npz_images
from uvit_jax.data.image_sources.registry import is_image_source, open_image_source
from uvit_jax.data.prepared.manifest import FILE_NAME as MANIFEST
from uvit_jax.data.prepared.manifest import Manifest
from uvit_jax.data.prepared.prepared_data import PreparedData
from uvit_jax.data.training_data import BUILT_IN, load_built_in
from uvit_jax.errors import UserError
from uvit_jax.experiment.config import Experiment
from uvit_jax.experiment.job_sections import PrepareConfig
from uvit_jax.experiment.opened import open_experiment_autoencoder
from uvit_jax.experiment.sections import AutoencoderSection
from uvit_jax.interop.autoencoder import Autoencoder
from uvit_jax.interop.state_dict import sha256_of
from uvit_jax.jobs.evaluation.image_streams import (
    ROWS,
    Batches,
    ImageStream,
    read_x,
    stream_of_npz,
    stream_of_originals,
    stream_of_pixels,
)
from uvit_jax.parallel.arrays import fetch, place
from uvit_jax.parallel.batches import padded, round_up
from uvit_jax.parallel.mesh import batch_parts, batch_sharding
from uvit_jax.telemetry.images import to_uint8
from uvit_jax.training.codec import Codec


@dataclasses.dataclass(frozen=True)
class ReferenceSource:
    """The data that samples are compared with, and how its images are read.

    Attributes:
      name: "digits", an .npz of statistics or of images, a prepared data set, or an image source:
        a folder of images, "tfds:<name>", ...
      field: the config field that gives the name, for error sentences.
      num_features: images whose features are kept beside the statistics.
      prepare: how images of an image source are read and cropped.
      autoencoder: decodes a data set of latents.
    """

    name: str
    field: str
    num_features: int
    prepare: PrepareConfig
    autoencoder: AutoencoderSection

    def size(self, model_size: Size) -> Size:
        """The size that images are cropped to; 0 for data that have a size of their own.

        model_size: of the network's input.

        Raises:
          UserError: if no size is given and the network's input is latents.
        """
        name = self.name
        if name in BUILT_IN or name.endswith(".npz") or pathlib.Path(name, MANIFEST).exists():
            return 0
        if self.prepare.image_size:
            return self.prepare.image_size
        if self.autoencoder.name:
            raise UserError(
                "config.prepare.image_size is 0, expected the side of the reference's images (the "
                "model is of latents)"
            )
        return model_size


def reference_source(experiment: Experiment) -> ReferenceSource:
    """The data set that `config.evaluate.reference` names, or else `config.data.source`."""
    evaluate = experiment.evaluate
    return ReferenceSource(
        name=evaluate.reference or experiment.data.source,
        field="config.evaluate.reference" if evaluate.reference else "config.data.source",
        num_features=evaluate.num_features,
        prepare=experiment.prepare,
        autoencoder=experiment.autoencoder,
    )


def open_reference_images(source: ReferenceSource, size: Size, mesh: Mesh) -> ImageStream:
    """The images of a reference, in RGB, where a grey channel is repeated three times.

    Pictures of an image source are cropped to `size` as `config.prepare.crop` says; latents are
    decoded with `config.autoencoder`. All others have a size of their own.

    Raises:
      UserError: for a name that is none of these, images that can't be cropped so, or latents
        without their autoencoder.
    """
    name = source.name
    if name in BUILT_IN:
        return stream_of_pixels(load_built_in(name))
    try:
        if name.endswith(".npz"):
            return stream_of_npz(open_npz_images(pathlib.Path(name)))
        if pathlib.Path(name, MANIFEST).exists():
            return _stream_of_prepared(PreparedData(name), source.autoencoder, mesh)
        return _stream_of_pictures(name, source.prepare, size)
    except UserError as error:
        raise UserError(
            f"{source.field} is {name!r}, which samples are to be compared with: {error}"
        ) from None


def _stream_of_pictures(name: str, prepare: PrepareConfig, size: Size) -> ImageStream:
    if not is_image_source(name):
        found = "it is a file" if pathlib.Path(name).exists() else "it doesn't exist"
        raise UserError(
            f"{found}, expected an .npz of statistics or of images, a folder of images, a prepared "
            "data set, 'tfds:<name>', 'hf:<name>', 'wds:<tars>' or 'digits'"
        )
    crop = CROPS[prepare.crop]
    originals = open_image_source(
        name, prepare.split, prepare.data_dir, Decoding(3, prepare.max_pixels, prepare.exif)
    )
    return stream_of_originals(
        originals,
        originals.name,
        crop=lambda image: crop(image, size),
        record=_reading(prepare),
        threads=prepare.threads,
    )


def _reading(made_with: PrepareConfig | Manifest) -> dict[str, str | bool]:
    """The record of how images were read."""
    exif = {"exif": True} if made_with.exif else {}
    return {"split": made_with.split, "crop": made_with.crop, **exif}


def _stream_of_prepared(data: PreparedData, section: AutoencoderSection, mesh: Mesh) -> ImageStream:
    manifest = data.manifest
    if manifest.kind == "pixels":
        return stream_of_pixels(data, _reading(manifest))
    autoencoder = _open_autoencoder(data, section)
    codec = Codec(autoencoder, mesh, section.batch_size)
    program = jax.jit(codec.decode)
    rows = round_up(ROWS, batch_parts(mesh))
    has_variance = manifest.kind == "moments"

    def batches(first: int) -> Batches:
        for x in read_x(data, first):
            mean = x[..., : x.shape[-1] // 2] if has_variance else x
            z = place(padded(mean.astype(np.float32), rows), batch_sharding(mesh))
            yield to_uint8(fetch(program(codec.params, z))[: len(mean)])

    h, w, _ = manifest.shape
    shape = (h * autoencoder.factor, w * autoencoder.factor, 3)
    record = _reading(manifest) | {
        "decoded with": autoencoder.name,
        "sha256 of all its weights": sha256_of(dict(flatten_dict(autoencoder.params))),
        "decoder dtype": section.dtype,
        "latents": "means of moments" if has_variance else "stored",
    }
    return ImageStream(data.name, len(data), shape, batches, record)


def _open_autoencoder(data: PreparedData, section: AutoencoderSection) -> Autoencoder:
    """The autoencoder of a data set's latents; raises UserError for none or another one."""
    manifest, autoencoder = data.manifest, open_experiment_autoencoder(section)
    if autoencoder is None:
        raise UserError(
            f"{data.folder} holds latents, and config.autoencoder.name is empty: expected "
            f"{manifest.autoencoder!r} to decode them with, or a reference of images"
        )
    if manifest.autoencoder_sha256 and autoencoder.sha256 != manifest.autoencoder_sha256:
        raise UserError(
            f"config.autoencoder.name is {autoencoder.name!r}, whose encoder (SHA-256 "
            f"{autoencoder.sha256[:12]}) is not the one of the latents in {data.folder}: "
            f"expected {manifest.autoencoder!r} ({manifest.autoencoder_sha256[:12]})"
        )
    return autoencoder
