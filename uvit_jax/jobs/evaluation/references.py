"""What samples are compared with, as `config.evaluate.reference` names it: a file of statistics, or
images made one.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import re
import zipfile
from typing import Any

import numpy as np
from jaxtyping import Float

from uvit_jax.data.originals.npz_images import open_npz_images
from uvit_jax.errors import UserError
from uvit_jax.experiment.config import Experiment
from uvit_jax.jobs.evaluation.image_streams import (
    ImageStream,
    open_reference_images,
    reference_field,
    regrouped,
)
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

Shape = tuple[int, int, int]


def reference_name(experiment: Experiment) -> str:
    """What samples are compared with."""
    return experiment.evaluate.reference or experiment.data.source


def is_statistics(name: str, field: str = "config.evaluate.reference") -> bool:
    """Whether a name is that of a file of statistics, not of images.

    field: that gave the name, for the sentence of an error.

    Raises:
      UserError: for an .npz that isn't there or is none.
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


def obtain_reference(
    experiment: Experiment, workdir: pathlib.Path, extraction: Extraction, shape: Shape
) -> Reference:
    """The reference for samples of this shape; statistics made of images are kept in the workdir
    for the next time.

    All hosts call this together.

    Raises:
      UserError: for a reference that can't be had, or of other features or another size than the
        samples'.
    """
    name, network = reference_name(experiment), extraction.network
    if is_statistics(name, reference_field(experiment)):
        reference = hosts.on_all(_read_statistics, experiment, network)
        check_resolution(reference, shape)
        return reference
    stream = hosts.on_all(open_reference_images, experiment, name, shape[:2], extraction.mesh)
    if stream.shape[:2] != shape[:2]:
        raise UserError(
            f"{reference_field(experiment)} is {name!r}, whose images have shape {stream.shape}, "
            f"but the samples to be compared with them {shape}: expected a "
            "config.evaluate.reference of that size"
        )
    # One name for all hosts: each may have its own copy of the data, written at another time.
    path = (
        workdir
        / "evaluations"
        / "references"
        / hosts.first_says(_kept_name(experiment, stream, network))
    )
    if not hosts.first_says(path.exists()):
        make_reference(experiment, stream, extraction, path)
    return hosts.on_all(read_reference, path, network)


def _read_statistics(experiment: Experiment, network: FeatureNetwork) -> Reference:
    name = reference_name(experiment)
    try:
        return read_reference(pathlib.Path(name), network)
    except UserError as error:
        raise UserError(f"{reference_field(experiment)} is {name!r}: {error}") from None


def make_reference(
    experiment: Experiment, stream: ImageStream, extraction: Extraction, path: pathlib.Path
) -> None:
    """Writes the statistics of all images of a stream, with everything that matters recorded in the
    file.
    """
    network = extraction.network
    pool = Moments(network.widths["pool"])
    spatial = Moments(network.widths["spatial"]) if "spatial" in network.widths else None
    kept = (
        np.linspace(0, stream.count - 1, min(experiment.evaluate.num_features, stream.count))
        .round()
        .astype(int)
    )
    features, first = [], 0
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
    record = reference_record(stream, network)
    hosts.on_all(
        lambda: (
            write_reference(path, pool, spatial, np.concatenate(features), record)
            if hosts.is_first()
            else None
        )
    )


def reference_record(stream: ImageStream, network: FeatureNetwork) -> dict[str, Any]:
    """What a file of statistics says of itself."""
    return {
        "source": stream.name,
        "count": stream.count,
        "shape": list(stream.shape),
        **stream.record,
        "rounding": "8 bits",
        "extractor": network.identity,
    }


def num_features(reference: Reference) -> int:
    """Images of the reference of which there are features, or can be."""
    if reference.features is not None:
        return len(reference.features)
    return open_npz_images(reference.path).shape[0] if reference.images else 0


def with_features(reference: Reference, extraction: Extraction, shape: Shape) -> Reference:
    """The reference with features of the images that its file holds, where it holds those alone."""
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


def _kept_name(experiment: Experiment, stream: ImageStream, network: FeatureNetwork) -> str:
    """A name of its own for everything that the statistics depend on."""
    record = reference_record(stream, network) | {"num_features": experiment.evaluate.num_features}
    record["data"], record["data_dir"] = (
        _fingerprint(reference_name(experiment)),
        experiment.prepare.data_dir,
    )
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:8]
    stem = re.sub(r"[^\w.-]+", "_", stream.name).strip("_")[:60]
    return f"{stem}_{stream.shape[0]}_{digest}.npz"


def _fingerprint(name: str) -> str:
    """What changes when the data do: of a prepared data set its manifest, else every file's name,
    size and time.
    """
    path = pathlib.Path(name).expanduser()
    manifest = path / "manifest.json"
    if manifest.exists():
        return hashlib.sha256(manifest.read_bytes()).hexdigest()
    # A folder's own time says nothing of what was written over, or into a folder inside.
    folders = os.walk(path, followlinks=True)
    files = [os.path.join(folder, file) for folder, _, names in folders for file in names] or [
        str(path)
    ]
    digest = hashlib.sha256(name.encode())
    for file in sorted(files):
        with contextlib.suppress(OSError):  # a link to nowhere; "digits", which is no file
            found = os.stat(file)
            digest.update(
                f"{os.path.relpath(file, path)} {found.st_size} {found.st_mtime_ns}\n".encode()
            )
    return digest.hexdigest()
