"""Arrays out of an .npz that may be anything: what is wrong with it is told in one way, and nothing
is unpickled.
"""

import pathlib
import zipfile
import zlib
from collections.abc import Collection

import numpy as np

from uvit_jax.errors import UserError


def read_npz(
    path: pathlib.Path, expected: str, names: Collection[str] | None = None
) -> tuple[frozenset[str], dict[str, np.ndarray]]:
    """The names of all arrays in a file, and those arrays that `names` asks for (default: all) and
    that are there.

    Raises:
      UserError: for a file that can't be read, is no .npz or damaged, saying that `expected` was.
    """
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            raise ValueError("it is a single array")
        with found as file:
            held = frozenset(file.files)
            return held, {name: file[name] for name in file.files if names is None or name in names}
    # What NumPy, the archive and its compression raise for damage; NotImplementedError, a
    # RuntimeError, for methods of compression that Python lacks.
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
