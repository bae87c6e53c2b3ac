"""Writes the shards of a prepared data set, each whole or not at all.

Shards hold one record a chunk, so that a random read touches no other, and uncompressed: Gaussian
numbers in float16 shrink by 7 %. Riegeli, the layer below, keeps a hash with every chunk, so
altered bytes are found when they are read.
"""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import types
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from uvit_jax.data.prepared.array_record_library import array_record
from uvit_jax.data.prepared.records import encode_caption, encode_example
from uvit_jax.data.prepared.shard import Shard
from uvit_jax.data.prepared.shard_reader import one_clause
from uvit_jax.errors import UserError

_WRITER_OPTIONS = "group_size:1,uncompressed"

# A caption: its states, and its text.
Caption = tuple[Float[np.ndarray, "tokens width"], str]


class ShardWriter:
    """Writes one shard, which appears whole when the `with` block ends; not at all if it raises.

    The bytes go to a hidden neighbour, `.<name>.tmp`, are synced to disk and renamed; what a killed
    process left there is overwritten by the next. The captions of a text data set go to a file of
    their own, `00000.captions.array_record` beside `00000.array_record`, which appears before the
    shard: a shard that is there has its captions. After the block `.shard` describes both files.

    Args:
      folder: is made if missing.
      name: of the file.
      shape: of the arrays.
      dtype: of the arrays, one of the manifest's DTYPES.
      mirror: True if every image is followed by its mirror image.
      context_shape: of the captions' states, (tokens, width); None without captions.
      context_dtype: of the captions' states, one of the manifest's CONTEXT_DTYPES; None without
        captions.

    Raises:
      UserError: the folder can't be written to, or its disk is full.
    """

    shard: Shard

    def __init__(
        self,
        folder: str | os.PathLike[str],
        name: str,
        shape: Sequence[int],
        dtype: str | np.dtype,
        *,
        mirror: bool,
        context_shape: Sequence[int] | None = None,
        context_dtype: str | np.dtype | None = None,
    ):
        if (context_shape is None) != (context_dtype is None):
            raise ValueError(
                f"ShardWriter: context_shape is {context_shape} and context_dtype {context_dtype}"
            )
        path = pathlib.Path(folder) / name
        self._images = _File(path)
        self._texts = (
            None
            if context_shape is None
            else _File(path.with_name(f"{path.stem}.captions{path.suffix}"))
        )
        self._shape, self._dtype, self._mirror = tuple(shape), np.dtype(dtype), mirror
        self._context = (tuple(context_shape or ()), np.dtype(context_dtype or np.float32))
        self._examples = 0

    def __enter__(self) -> "ShardWriter":
        try:
            for file in self._files():
                file.open()
        except BaseException:
            self._discard()
            raise
        return self

    def write(
        self,
        label: int,
        array: Shaped[np.ndarray, "h w c"],
        mirrored: Shaped[np.ndarray, "h w c"] | None = None,
        *,
        captions: Sequence[Caption] | None = None,
    ) -> None:
        """Adds an example: its array and, where the shard has them, its mirror image and captions.

        Raises:
          ValueError: an array of another shape or dtype, or a mirror image or captions missing or
            not wanted.
        """
        arrays = [array] if mirrored is None else [array, mirrored]
        self._check(arrays, captions)
        numbers = None
        if self._texts is not None and captions is not None:
            records = [encode_caption(states, text) for states, text in captions]
            numbers = range(self._texts.num_records, self._texts.num_records + len(records))
            for record in records:
                self._texts.write(record)
        for each in arrays:
            self._images.write(encode_example(label, each, numbers))
        self._examples += 1

    def _check(self, arrays: Sequence[np.ndarray], captions: Sequence[Caption] | None) -> None:
        if (len(arrays) > 1) != self._mirror:
            given = "ndarray" if len(arrays) > 1 else "NoneType"
            raise ValueError(f"write: mirrored is {given}, but the shard has mirror={self._mirror}")
        if bool(captions) != (self._texts is not None):
            expected = "none" if self._texts is None else "at least one for each image"
            raise ValueError(f"write: captions is {captions!r:.60}, but the shard has {expected}")
        wanted = [(each, (self._shape, self._dtype), "arrays") for each in arrays]
        wanted += [(states, self._context, "contexts") for states, _ in captions or ()]
        for each, (shape, dtype), what in wanted:
            if each.shape != shape or each.dtype != dtype:
                raise ValueError(
                    f"write: got {each.dtype} {each.shape}, but the shard's {what} are {dtype} "
                    f"{shape}"
                )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._discard()

    def _finish(self) -> None:
        size, digest = self._images.close()
        shard = Shard(
            self._images.path.name, self._examples, self._images.num_records, size, digest
        )
        if self._texts is not None:
            size, digest = self._texts.close()
            shard = dataclasses.replace(
                shard,
                num_captions=self._texts.num_records,
                captions_name=self._texts.path.name,
                captions_bytes=size,
                captions_sha256=digest,
            )
            # If the process dies here, no older shard is left beside captions of another.
            self._images.remove()
            self._texts.rename()
        self._images.rename()
        self.shard = shard

    def _discard(self) -> None:
        for file in self._files():
            file.discard()

    def _files(self) -> list["_File"]:
        return [self._images] if self._texts is None else [self._images, self._texts]


class _File:
    """One file of records on its way, under a hidden name until `rename`."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.num_records = 0
        self._temporary = path.with_name(f".{path.name}.tmp")
        self._writer: Any = None  # an ArrayRecordWriter while the file is open

    def open(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # ArrayRecord opens the file later, in a thread, and reports a read-only folder only at
            # the end.
            self._temporary.open("wb").close()
        except OSError as error:
            raise UserError(
                f"cannot write {self.path}: {error.strerror}; expected a writable folder"
            ) from error
        self._writer = array_record().ArrayRecordWriter(str(self._temporary), _WRITER_OPTIONS)

    def write(self, record: bytes) -> None:
        assert self._writer is not None
        self._writer.write(record)
        self.num_records += 1

    def close(self) -> tuple[int, str]:
        """Syncs the file to disk; returns its size and SHA-256."""
        try:
            # ArrayRecord writes in threads: errors since the first record are raised here.
            self._close()
            with self._temporary.open("rb") as file:
                os.fsync(file.fileno())
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                return file.tell(), digest
        except (RuntimeError, OSError) as error:
            raise self._fault(error) from error

    def rename(self) -> None:
        """Gives the closed file its name."""
        try:
            os.replace(self._temporary, self.path)
        except OSError as error:
            raise self._fault(error) from error

    def remove(self) -> None:
        """Removes what an earlier time has left under the name."""
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise self._fault(error) from error

    def discard(self) -> None:
        """Leaves nothing under the hidden name."""
        with contextlib.suppress(RuntimeError):
            self._close()
        with contextlib.suppress(OSError):  # The error that led here says more.
            self._temporary.unlink(missing_ok=True)

    def _close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def _fault(self, error: Exception) -> UserError:
        if "No space left" in str(error):
            return UserError(
                f"no space left in {self.path.parent} for {self.path.name}; free some and start "
                f"again"
            )
        return UserError(f"cannot write {self.path}: {one_clause(error)}")
