"""The states of the empty caption of a text data set, for dropped captions and guidance."""

import hashlib
import io
import os
import pathlib

import numpy as np
from jaxtyping import Float

from uvit_jax.data.prepared.manifest import Manifest
from uvit_jax.errors import UserError
from uvit_jax.files import atomic_write

FILE_NAME = "empty_context.npy"


def save_empty_context(
    folder: str | os.PathLike[str], states: Float[np.ndarray, "tokens width"]
) -> str:
    """Writes the states of "" as `empty_context.npy`; returns the file's SHA-256.

    The file is NumPy's own; bfloat16, which that has no name for, is kept as float32.

    Args:
      folder: of the data set; is made if missing.
      states: in the manifest's `context_dtype`.

    Raises:
      UserError: the folder can't be written to, or its disk is full.
    """
    path = pathlib.Path(folder) / FILE_NAME
    buffer = io.BytesIO()
    np.save(
        buffer,
        states.astype(np.float32) if states.dtype.name == "bfloat16" else states,
        allow_pickle=False,
    )
    data = buffer.getvalue()
    try:
        with atomic_write(path) as file:
            file.write(data)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; expected room for {len(data)} bytes"
        ) from error
    return hashlib.sha256(data).hexdigest()


def load_empty_context(
    folder: str | os.PathLike[str], manifest: Manifest
) -> Float[np.ndarray, "tokens width"]:
    """The states of "" of a text data set, in its `context_dtype`.

    Raises:
      UserError: the file is missing, is not the one that the manifest was written for, or holds
        other than such states.
    """
    path = pathlib.Path(folder) / FILE_NAME
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}; expected the states of the empty caption"
        ) from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != manifest.empty_context_sha256:
        raise UserError(
            f"{path} has SHA-256 {digest}, expected {manifest.empty_context_sha256}: copy or "
            f"prepare the data set again"
        )
    try:
        states = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UserError(
            f"{path} is not an array ({error}), expected the states of the empty caption"
        ) from error
    if states.shape != manifest.context_shape or states.dtype.kind != "f":
        raise UserError(
            f"{path} is {states.dtype} {states.shape}, expected floats {manifest.context_shape}"
        )
    if not np.isfinite(states).all():
        raise UserError(f"{path} holds NaN or infinity, expected finite numbers")
    return states.astype(manifest.context_dtype)
