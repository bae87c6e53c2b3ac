"""Atomic writes: a file appears whole or not at all, whenever the process is killed."""

import contextlib
import errno
import os
import pathlib
from collections.abc import Iterator
from typing import BinaryIO

from uvit_jax.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Opens a binary file whose bytes become `path` when the block ends, unless it raises.

    The bytes go to a hidden neighbour (same folder, so the rename never crosses file systems), are
    synced to disk, and take the name with `os.replace`. Missing parent folders are made.

    Raises:
      UserError: the folder can't be made or written to, or its disk or the user's quota of it is
        full.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = temporary.open("wb")
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; expected a writable folder"
        ) from error
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in _FULL:
            raise UserError(
                f"cannot write {path}: {error.strerror}; free some and start again"
            ) from error
        raise
