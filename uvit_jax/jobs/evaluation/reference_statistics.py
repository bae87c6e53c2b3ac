"""Reference statistics: read from a file, or computed from images and kept in the workdir."""

import contextlib
import dataclasses
import hashlib
import logging
import os
import pathlib
import re
import zipfile
from typing import Any

import numpy as np
from jaxtyping import Float

from uvit_jax.data.image_sources.npz_images import open_npz_images
from uvit_jax.data.prepared.manifest import FILE_NAME as MANIFEST
from uvit_jax.errors import UserError, counted
from uvit_jax.fingerprints import sha256_of_file, sha256_of_json
from uvit_jax.jobs.evaluation.image_streams import ImageStream, Shape, regrouped
from uvit_jax.jobs.evaluation.reference_images import ReferenceSource, open_reference_images
from uvit_jax.metrics.feature_network import Extraction, FeatureNetwork
from uvit_jax.metrics.moments import Moments
from uvit_jax.metrics.reference_file import (
    Reference,
    check_resolution,
    read_reference,
    write_reference,
)
from uvit_jax.parallel import hosts
from uvit_jax.telemetry.progress import Progress

LOG = logging.getLogger("uvit_jax")


def is_statistics(name: str, field: str = "config.evaluate.reference") -> bool:
    """True if a name is that of an .npz of statistics, not of images.

    field: the config field that gives the name, for the error's sentence.

    Raises:
      UserError: for an .npz that can't be read.
    """
    if not name.endswith(".npz"):
        return False
    try:
        with zipfile.ZipFile(name) as archive:
            held = set(archive.namelist())
    except (OSError, zipfile.BadZipFile) as error:
        fault = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{field} is {name!r}, which can't be read ({fault})") from None
    return "mu.npy" in held or not held & {"images.npy", "arr_0.npy"}


def check_images(source: ReferenceSource) -> None:
    """Raises UserError if a reference is statistics already, so that none can be made of it."""
    if is_statistics(source.name, source.field):
        raise UserError(
            f"{source.field} is {source.name!r}, which holds statistics: expected images to make "
            "some of"
        )


def obtain_reference(
    source: ReferenceSource, workdir: pathlib.Path, extraction: Extraction, shape: Shape
) -> Reference:
    """The reference for samples of this shape; all hosts call this together.

    Statistics computed from images are kept in the workdir for the next time.

    Raises:
      UserError: for a reference that can't be had, of other features, or of another size than the
        samples.
    """
    network = extraction.network
    if is_statistics(source.name, source.field):
        reference = hosts.on_all(_read_statistics, source, network)
        check_resolution(reference, shape)
        return reference
    stream = hosts.on_all(open_reference_images, source, shape[:2], extraction.mesh)
    if stream.shape[:2] != shape[:2]:
        raise UserError(
            f"{source.field} is {source.name!r}, whose images have shape {stream.shape}, "
            f"but the samples to be compared with them {shape}: expected a "
            "config.evaluate.reference of that size"
        )
    # Process 0's name for all hosts: each may have its own copy of the data, with other times.
    name = hosts.first_says(_kept_name(source, stream, network))
    path = workdir / "evaluations" / "references" / name
    if not hosts.first_says(path.exists()):
        make_reference(stream, extraction, path, num_features=source.num_features)
    return hosts.on_all(read_reference, path, network)


def _read_statistics(source: ReferenceSource, network: FeatureNetwork) -> Reference:
    try:
        return read_reference(pathlib.Path(source.name), network)
    except UserError as error:
        raise UserError(f"{source.field} is {source.name!r}: {error}") from None


def make_reference(
    stream: ImageStream, extraction: Extraction, path: pathlib.Path, *, num_features: int
) -> None:
    """Writes the statistics of all images of a stream, with their record.

    num_features: images, spread evenly over the stream, whose features are kept.
    """
    widths = extraction.network.widths
    pool = Moments(widths["pool"])
    spatial = Moments(widths["spatial"]) if "spatial" in widths else None
    kept = np.linspace(0, stream.count - 1, min(num_features, stream.count)).round().astype(int)
    features, first = [], 0
    LOG.info("computing the statistics of %s", counted(stream.count, "reference image"))
    with Progress(stream.count, description="reference", active=hosts.is_first()) as progress:
        for images in regrouped(stream.batches(0), extraction.rows):
            found = extraction(images)
            pool.update(found["pool"])
            if spatial is not None:
                spatial.update(found["spatial"])
            inside = kept[(kept >= first) & (kept < first + len(images))]
            features.append(found["pool"][inside - first])
            first += len(images)
            progress.update(first)
    record = reference_record(stream, extraction.network)
    hosts.on_first(write_reference, path, pool, spatial, np.concatenate(features), record)


def reference_file(out: str, workdir: pathlib.Path) -> pathlib.Path:
    """The file that a reference is written to: `config.evaluate.out`, or one in the workdir.

    Raises:
      UserError: for another name than an .npz's, or that of a folder.
    """
    if out and not out.endswith(".npz"):
        raise UserError(
            f"config.evaluate.out is {out!r}, expected a name that ends in .npz for the reference"
        )
    path = pathlib.Path(out or workdir / "reference.npz")
    if path.is_dir():
        raise UserError(
            f"config.evaluate.out is {str(path)!r}, which is a folder, expected the name of a file "
            "to write"
        )
    return path


def reference_record(stream: ImageStream, network: FeatureNetwork) -> dict[str, Any]:
    """The metadata of a file of statistics."""
    return {
        "source": stream.name,
        "count": stream.count,
        "shape": list(stream.shape),
        **stream.record,
        "rounding": "8 bits",
        "extractor": network.identity,
    }


def num_features(reference: Reference) -> int:
    """Number of the reference's images whose features are known or can be computed."""
    if reference.features is not None:
        return len(reference.features)
    return open_npz_images(reference.path).shape[0] if reference.images else 0


def with_features(reference: Reference, extraction: Extraction, shape: Shape) -> Reference:
    """The reference with features of the images in its file, if it has images but no features."""
    if reference.features is not None or not reference.images:
        return reference
    images = hosts.on_all(open_npz_images, reference.path)
    if images.shape[1:3] != shape[:2]:
        raise UserError(
            f"{reference.path} holds images of shape {images.shape[1:]}, expected {shape} as the "
            "samples: features of another size can't be compared"
        )
    found: list[Float[np.ndarray, "n d"]] = []
    with Progress(
        images.shape[0], description="reference images", active=hosts.is_first()
    ) as progress:
        for batch in images.batches(0, extraction.rows):
            found.append(extraction(batch)["pool"])
            progress.update(sum(map(len, found)))
    return dataclasses.replace(reference, features=np.concatenate(found))


def _kept_name(source: ReferenceSource, stream: ImageStream, network: FeatureNetwork) -> str:
    """A file name with a hash of everything that the statistics depend on."""
    record = reference_record(stream, network) | {
        "num_features": source.num_features,
        "data": _fingerprint(source.name),
        "data_dir": source.prepare.data_dir,
    }
    stem = re.sub(r"[^\w.-]+", "_", stream.name).strip("_")[:60]
    return f"{stem}_{stream.shape[0]}_{sha256_of_json(record)[:8]}.npz"


def _fingerprint(name: str) -> str:
    """A hash that changes when the data do.

    For a prepared data set it is its manifest's, for others that of all files' names, sizes, times.
    """
    path = pathlib.Path(name).expanduser()
    if (path / MANIFEST).exists():
        return sha256_of_file(path / MANIFEST)
    # A folder's own time changes neither when a file is written over nor in a folder inside.
    folders = os.walk(path, followlinks=True)
    files = [os.path.join(folder, file) for folder, _, names in folders for file in names]
    digest = hashlib.sha256(name.encode())
    for file in sorted(files or [str(path)]):
        with contextlib.suppress(OSError):  # a dangling link, or "digits", which is not a file
            found = os.stat(file)
            digest.update(
                f"{os.path.relpath(file, path)} {found.st_size} {found.st_mtime_ns}\n".encode()
            )
    return digest.hexdigest()
