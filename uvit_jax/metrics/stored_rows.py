"""Rows appended to a file as they come: what a metric needs whole at the end need not stand in
memory until then.
"""

import contextlib
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from uvit_jax.errors import UserError


class StoredRows:
    """Arrays of one shape and dtype, one after another in a file without a header; a killed run
    goes on after any row.

    Attributes:
      path: of the file.
      count: rows in it.
    """

    def __init__(self, path: pathlib.Path, shape: Sequence[int], dtype: Any, *, count: int = 0):
        """Opens the file and cuts it after `count` rows, which must be there.

        Raises:
          UserError: the file can't be written, or has fewer rows.
        """
        self.path, self.count = path, count
        self._shape, self._dtype = tuple(shape), np.dtype(dtype)
        self._row_bytes = int(np.prod(self._shape)) * self._dtype.itemsize
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            found = path.stat().st_size if path.exists() else 0
            if found < count * self._row_bytes:
                raise UserError(
                    f"{path} has {found // self._row_bytes} rows, expected at least {count}: "
                    "delete its folder to start again"
                )
            self._file = path.open("r+b" if path.exists() else "w+b")
            self._file.truncate(count * self._row_bytes)
            self._file.seek(0, os.SEEK_END)
        except OSError as error:
            raise UserError(
                f"cannot write {path}: {error.strerror}; expected a writable folder"
            ) from error

    def append(self, rows: np.ndarray) -> None:
        """Writes rows `[n, *shape]` behind those that are there.

        Raises:
          UserError: the disk is full.
        """
        assert rows.shape[1:] == self._shape, (
            f"rows of shape {rows.shape[1:]}, expected {self._shape}"
        )
        with self._telling_of_the_disk():
            self._file.write(np.ascontiguousarray(rows, self._dtype).tobytes())
        self.count += len(rows)

    def sync(self) -> None:
        """All rows are on the disk, not only with the operating system. Raises UserError where it
        is full.
        """
        with self._telling_of_the_disk():
            self._file.flush()
            os.fsync(self._file.fileno())

    def read(self) -> np.ndarray:
        """All rows `[count, *shape]`, read from the file as they are used. Raises UserError where
        the disk is full.
        """
        with self._telling_of_the_disk():
            self._file.flush()
        if not self.count:
            return np.zeros((0, *self._shape), self._dtype)
        return np.memmap(self.path, self._dtype, mode="r", shape=(self.count, *self._shape))

    def close(self) -> None:
        """Flushes and closes the file."""
        self._file.close()

    @contextlib.contextmanager
    def _telling_of_the_disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"cannot write {self.path}: {error.strerror}; free some and start again"
            ) from error
