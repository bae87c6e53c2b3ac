"""Finished samples that an evaluation scores: a folder of images, or an .npz."""

import dataclasses
import logging
import os
import pathlib
from typing import Any

import numpy as np

from uvit_jax.data.image_sources.folders import ImageFolder, open_folder
from uvit_jax.data.image_sources.npz_images import open_npz_images
from uvit_jax.errors import UserError
from uvit_jax.fingerprints import sha256_of_file, sha256_of_json
from uvit_jax.jobs.evaluation.image_streams import (
    ImageStream,
    stream_of_npz,
    stream_of_originals,
)
from uvit_jax.jobs.sampling.sample_folder import (
    NPZ,
    check_complete,
    indices_of,
    read_request,
    sample_files,
)
from uvit_jax.parallel import hosts

LOG = logging.getLogger("uvit_jax")

_GRID = "grid.png"  # written by the job `sample`


def open_samples(name: str) -> ImageStream:
    """The images of an `.npz`, or of a folder with image files of one size.

    In a folder with a `samples.json` the samples are those that it announces, and nothing else. In
    another folder the `grid.png` of the job `sample` is left out, unless it is the only image.

    Raises:
      UserError: for a path that is neither, samples that are incomplete or of several calls, or
        images of several sizes (raised when the first other one is read).
    """
    path = pathlib.Path(name)
    if not path.exists():
        raise UserError(
            f"config.evaluate.samples is {name!r}, which doesn't exist, expected a folder of "
            "images or an .npz"
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
        return stream_of_npz(open_npz_images(path))
    request = read_request(path)
    if request is None:
        return _stream_of_folder(_without_grid(open_folder(path)), str(path))
    if request.format == "npz":
        if not (path / NPZ).exists():
            check_complete(path, request, 0)
        stream = stream_of_npz(open_npz_images(path / NPZ))
        check_complete(path, request, stream.count)
        return stream
    files = sample_files(path, request)
    folder = ImageFolder(path.name, path, files, np.full(len(files), -1, np.int32))
    return _stream_of_folder(folder, str(path))


def _stream_of_folder(folder: ImageFolder, name: str) -> ImageStream:
    stream = stream_of_originals(folder, name, threads=os.cpu_count() or 1)
    return dataclasses.replace(stream, files=tuple(folder.root / file for file in folder.files))


def _without_grid(folder: ImageFolder) -> ImageFolder:
    """The folder without its own grid.png; a metadata.jsonl that lists it keeps it.

    Raises:
      UserError: for samples of several calls in one folder, or a grid whose samples are elsewhere.
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


def found_record(stream: ImageStream) -> dict[str, Any]:
    """The report's record of samples that were found; all hosts call this together."""
    return {
        "count": stream.count,
        "from": stream.name,
        "sha256" if stream.is_npz else "sha256 of names, sizes and times": hosts.first_says(
            hosts.on_first(_fingerprint, stream) or ""
        ),
        "rounding": "as they were found",
    }


def _fingerprint(stream: ImageStream) -> str:
    """A hash that changes when the samples do."""
    if stream.is_npz:
        return sha256_of_file(stream.files[0])
    # Hashing the content of a folder's files would take as long as scoring them.
    files = [(str(file), file.stat()) for file in stream.files]
    return sha256_of_json([(name, stat.st_size, stat.st_mtime_ns) for name, stat in files])
