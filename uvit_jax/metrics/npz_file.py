"""Reads an .npz from anywhere: one error for all kinds of damage, and nothing is unpickled."""

import pathlib
import zipfile
import zlib
from collections.abc import Collection

import numpy as np

from uvit_jax.errors import UserError


def read_npz(
    path: pathlib.Path, expected: str, names: Collection[str] | None = None
) -> tuple[frozenset[str], dict[str, np.ndarray]]:
    """The names of all arrays in a file, and the arrays of those in `names` (default: all).

    Raises:
      UserError: for a file that can't be read, is damaged or not an .npz; `expected` ends its
        sentence.
    """
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            raise ValueError("it is a single array")
        with found as file:
            held = frozenset(file.files)
            return held, {name: file[name] for name in file.files if names is None or name in names}
    # These are what NumPy, zipfile and zlib raise for damage; a compression method that Python
    # lacks raises NotImplementedError, a RuntimeError.
    except (
        OSError,
        ValueError,
        EOFError,
        KeyError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        fault = (error.strerror if isinstance(error, OSError) else None) or " ".join(
            str(error).split()
        )
        raise UserError(f"{path} can't be read ({fault}), expected {expected}") from None
