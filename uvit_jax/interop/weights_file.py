"""Reads the arrays of a file of weights, whatever its suffix, executing nothing in it."""

import functools
import json
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import safetensors

from uvit_jax.errors import UserError
from uvit_jax.interop.file_kinds import check_content, weights_kind
from uvit_jax.interop.hub import INDEX
from uvit_jax.interop.torch_file import read_tensors
from uvit_jax.interop.torch_legacy_file import read_legacy_tensors
from uvit_jax.interop.torch_pickle import Choose, all_of
from uvit_jax.interop.wrappers import own_names

_PART = re.compile(r"(.+)-\d{5}-of-\d{5}(\.\w+)")


def read_arrays(
    path: str | os.PathLike[str], anchors: Sequence[str] = (), *, weights: str | None = None
) -> dict[str, np.ndarray]:
    """The arrays of a network, by the network's own names.

    Args:
      path: a file of torch.save or of safetensors, one of several such files, or their index
        (`*.index.json`).
      anchors: as for `own_names`.
      weights: as for `own_names`.

    Raises:
      UserError: for a file that is missing, damaged or something else, which is named; one that
        asks for more than tensors; or one that holds several such networks.
    """
    path = pathlib.Path(path)
    part = _PART.fullmatch(path.name)
    if part and path.with_name(f"{part[1]}{part[2]}{INDEX}").is_file():
        path = path.with_name(f"{part[1]}{part[2]}{INDEX}")
    if path.name.endswith(INDEX):
        files = _indexed(path)
        arrays = {name: array for file in files for name, array in _read(file, all_of).items()}
        return {
            name: arrays[theirs]
            for theirs, name in own_names(arrays, anchors, path, weights=weights).items()
        }
    return _read(path, functools.partial(own_names, anchors=anchors, path=path, weights=weights))


def _read(path: pathlib.Path, choose: Choose) -> dict[str, np.ndarray]:
    kind = weights_kind(path)
    if kind == "torch":
        return read_tensors(path, choose)
    if kind == "torch_legacy":
        return read_legacy_tensors(path, choose)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return {
                name: _tensor(file, theirs, path) for theirs, name in choose(file.keys()).items()
            }
    # The last three are NumPy's, for shapes beyond memory.
    except (safetensors.SafetensorError, ValueError, OverflowError, MemoryError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{path} is not a whole safetensors file ({error}): download or copy it again"
        ) from None


def _tensor(file: Any, name: str, path: pathlib.Path) -> np.ndarray:
    """One array of an open safetensors file."""
    try:
        return file.get_tensor(name)
    except AttributeError:  # the library asks NumPy for a dtype that NumPy lacks
        dtype = file.get_slice(name).get_dtype()
        raise UserError(
            f"{path} holds {name} in {dtype}, expected float32, float16 or bfloat16"
        ) from None


def _indexed(path: pathlib.Path) -> list[pathlib.Path]:
    """The files that an index names, all of them beside it."""
    if not path.is_file():
        raise UserError(f"there is no weights file {path}")
    check_content(path)
    try:
        files = sorted(set(json.loads(path.read_bytes())["weight_map"].values()))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path} is not an index of weights ({type(error).__name__}: {error})"
        ) from None
    if not files or not all(
        isinstance(file, str) and pathlib.PurePath(file).name == file for file in files
    ):
        raise UserError(f"{path} names the files {files}, expected names of files beside it")
    if absent := [file for file in files if not path.with_name(file).is_file()]:
        raise UserError(
            f"{path} names {len(files)} files, of which {absent[0]} is not beside it: download "
            "them all"
        )
    return [path.with_name(file) for file in files]
