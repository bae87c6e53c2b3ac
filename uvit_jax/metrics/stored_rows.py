"""Rows appended to a file, so that what a metric needs at the end is not held in memory."""

import contextlib
import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import DTypeLike

from uvit_jax.errors import UserError


class StoredRows:
    """Arrays of one shape and dtype in a file without a header; a killed run goes on at any row.

    Attributes:
      path: the file.
      count: rows in it.
    """

    def __init__(
        self, path: pathlib.Path, shape: Sequence[int], dtype: DTypeLike, *, count: int = 0
    ):
        """Opens the file and truncates it to `count` rows.

        Raises:
          UserError: if the file can't be written, or has fewer rows.
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
        """Appends rows `[n, *shape]`.

        Raises:
          UserError: if the disk is full.
        """
        assert rows.shape[1:] == self._shape, (
            f"rows of shape {rows.shape[1:]}, expected {self._shape}"
        )
        with self._disk_errors():
            self._file.write(np.ascontiguousarray(rows, self._dtype).tobytes())
        self.count += len(rows)

    def sync(self) -> None:
        """Writes all rows through to the disk. Raises UserError if it is full."""
        with self._disk_errors():
            self._file.flush()
            os.fsync(self._file.fileno())

    def read(self) -> np.ndarray:
        """All rows `[count, *shape]`, a memory map. Raises UserError if the disk is full."""
        with self._disk_errors():
            self._file.flush()
        if not self.count:
            return np.zeros((0, *self._shape), self._dtype)
        return np.memmap(self.path, self._dtype, mode="r", shape=(self.count, *self._shape))

    def close(self) -> None:
        """Flushes and closes the file."""
        self._file.close()

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"cannot write {self.path}: {error.strerror}; free some and start again"
            ) from error
