"""Prepared data sets on disk: ArrayRecord shards of labelled arrays, written whole and read at random.

A record is the label, int32, then the array's bytes, row by row; both little-endian. Shards hold one record a chunk,
so that a random read touches no other, and uncompressed: Gaussian numbers in float16 shrink by 7 %. Riegeli, the layer
below, keeps a hash with every chunk, so altered bytes are found when they are read.
"""

import contextlib
import hashlib
import math
import os
import pathlib
import struct
import types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from jaxtyping import Bool, Int, Shaped

from uvit_jax.data.manifest import Manifest, Shard
from uvit_jax.data.shard_reader import ShardReader, one_clause
from uvit_jax.errors import UserError

_LABEL = struct.Struct("<i")
_WRITER_OPTIONS = "group_size:1,uncompressed"


def encode_example(label: int, array: Shaped[np.ndarray, "..."]) -> bytes:
    """The bytes of a record: the label as a little-endian int32, then the array's, in C order."""
    return _LABEL.pack(label) + array.tobytes()


class ShardWriter:
    """Writes one shard, which appears whole under its name when the `with` block ends, and not at all if it raises.

    The bytes go to a hidden neighbour, `.<name>.tmp`, are synced to disk and renamed; what a killed process left there
    is overwritten by the next. After the block `.shard` describes the file.

    Args:
      folder: is made if missing.
      name: of the file.
      shape: of the arrays.
      dtype: of the arrays, one of the manifest's DTYPES.
      mirror: whether every image is followed by its mirror image.

    Raises:
      UserError: the folder can't be written to, or its disk is full.
    """

    shard: Shard

    def __init__(
        self, folder: str | os.PathLike[str], name: str, shape: Sequence[int], dtype: str | np.dtype, *, mirror: bool
    ):
        self._path = pathlib.Path(folder) / name
        self._temporary = self._path.with_name(f".{name}.tmp")
        self._shape, self._dtype, self._mirror = tuple(shape), np.dtype(dtype), mirror
        self._examples = 0

    def __enter__(self) -> "ShardWriter":
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # ArrayRecord opens later, in a thread of its own, and would tell of a read-only folder only at the end.
            self._temporary.open("wb").close()
        except OSError as error:
            raise UserError(f"cannot write {self._path}: {error.strerror}; expected a writable folder") from error
        self._writer = ArrayRecordWriter(str(self._temporary), _WRITER_OPTIONS)
        return self

    def write(
        self, label: int, array: Shaped[np.ndarray, "h w c"], mirrored: Shaped[np.ndarray, "h w c"] | None = None
    ) -> None:
        """Adds an example: an array and, where the shard has mirror images, that of its mirror image.

        Raises:
          ValueError: an array of another shape or dtype, or a mirror image missing or not wanted.
        """
        if (mirrored is not None) != self._mirror:
            raise ValueError(f"write: mirrored is {type(mirrored).__name__}, but the shard has mirror={self._mirror}")
        arrays = [array] if mirrored is None else [array, mirrored]
        for each in arrays:
            if each.shape != self._shape or each.dtype != self._dtype:
                raise ValueError(
                    f"write: got {each.dtype} {each.shape}, but the shard's arrays are {self._dtype} {self._shape}"
                )
        for each in arrays:
            self._writer.write(encode_example(label, each))
        self._examples += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
            else:
                with contextlib.suppress(RuntimeError):
                    self._writer.close()
        finally:
            self._temporary.unlink(missing_ok=True)

    def _finish(self) -> None:
        try:
            # Writing goes on in threads: whatever went wrong since the first record is told here.
            self._writer.close()
            with self._temporary.open("rb") as file:
                os.fsync(file.fileno())
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                size = file.tell()
            os.replace(self._temporary, self._path)
        except (RuntimeError, OSError) as error:
            folder = self._path.parent
            if "No space left" in str(error):
                raise UserError(
                    f"no space left in {folder} for {self._path.name}; free some and start again"
                ) from error
            raise UserError(f"cannot write {self._path}: {one_clause(error)}") from error
        records = self._examples * (1 + self._mirror)
        self.shard = Shard(self._path.name, self._examples, records, size, digest)


class RecordSource:
    """The examples of a prepared data set, read at random from its shards; picklable, and safe to read from threads.

    Opening reads the manifest and the sizes of the shards, nothing else; a shard's reader is opened when it is first
    needed.

    Args:
      folder: of the manifest and the shards.

    Raises:
      UserError: the manifest is missing or damaged, or a shard is missing or not of its size.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = pathlib.Path(folder)
        self.manifest = Manifest.load(folder)
        self._open()

    def _open(self) -> None:
        self._shards = _shard_reader(self.folder, self.manifest)
        # The number of the first example of each shard, and of the first that no shard has.
        self._firsts = np.cumsum([0, *(shard.num_examples for shard in self.manifest.shards)])

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "manifest": self.manifest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return self.manifest.num_examples

    @property
    def name(self) -> str:
        """The original data set's name."""
        return self.manifest.source

    @property
    def class_names(self) -> Sequence[str]:
        """One for each class; its number where the data set has no names."""
        return self.manifest.class_names or tuple(map(str, range(self.num_classes)))

    @property
    def num_classes(self) -> int:
        """Number of classes, the empty label not counted; 0 without labels."""
        return self.manifest.num_classes

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """Shape (h, w, c) of a record's array."""
        h, w, c = self.manifest.shape
        return h, w, c

    @property
    def can_mirror(self) -> bool:
        """Whether mirror images can be read: stored ones, or those of pixels."""
        return self.manifest.mirror or self.manifest.kind == "pixels"

    def read(self, indices: Int[np.ndarray, " n"], mirrored: Bool[np.ndarray, " n"]) -> dict[str, np.ndarray]:
        """The examples of these numbers as one batch, some of them as mirror images.

        Returns:
          "x", `[n, h, w, c]` in the manifest's dtype, and "label", int32 `[n]`, -1 without labels.

        Raises:
          UserError: a record is damaged, its shard can't be read, or mirror images are asked for where there are none.
        """
        count = len(indices)
        if count and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"read: got examples {indices.min()}..{indices.max()} of {len(self)}")
        if not self.can_mirror and mirrored.any():
            raise UserError(
                f"{self.folder} holds no mirror images, as {self.manifest.kind} can't be mirrored once encoded"
            )
        shards = np.searchsorted(self._firsts, indices, side="right") - 1
        records = indices - self._firsts[shards]
        if self.manifest.mirror:
            records = 2 * records + mirrored
        rows = np.empty((count, self._shards.record_bytes - _LABEL.size), np.uint8)
        labels = np.empty(count, np.int32)
        for row, (shard, record) in enumerate(zip(shards.tolist(), records.tolist(), strict=True)):
            data = self._shards.record(shard, record)
            (labels[row],) = _LABEL.unpack_from(data)
            rows[row] = np.frombuffer(data, np.uint8, offset=_LABEL.size)
        x = rows.view(self.manifest.numpy_dtype).reshape(count, *self.manifest.shape)
        if not self.manifest.mirror and mirrored.any():
            x[mirrored] = x[mirrored, :, ::-1]
        return {"x": x, "label": labels}


def verify(folder: str | os.PathLike[str], on_shard: Callable[[int, int], None] = lambda done, total: None) -> Manifest:
    """The manifest of a folder, all of whose shards have been reread and found as they were written.

    Checked are sizes, every record's hash, length, label and, of floats, that they are finite, and SHA-256.

    Args:
      folder: of the manifest and the shards.
      on_shard: called with (shards done, shards in all) after each.

    Raises:
      UserError: the first fault, by shard and record.
    """
    manifest = Manifest.load(folder)
    reader = _shard_reader(pathlib.Path(folder), manifest)
    lowest, highest = (0, manifest.num_classes - 1) if manifest.num_classes else (-1, -1)
    for index, shard in enumerate(manifest.shards):
        path = reader.path(index)
        for number, data in enumerate(reader.scan(index)):
            (label,) = _LABEL.unpack_from(data)
            if not lowest <= label <= highest:
                expected = f"0 to {highest}" if manifest.num_classes else "-1 in a data set without labels"
                raise UserError(f"{path} record {number} has label {label}, expected {expected}")
            array = np.frombuffer(data, manifest.numpy_dtype, offset=_LABEL.size)
            if manifest.dtype != "uint8" and not np.isfinite(array).all():
                raise UserError(f"{path} record {number} holds NaN or infinity, expected finite numbers")
        # Last, as it can't say which record; it also covers what lies between them.
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != shard.sha256:
            raise UserError(f"{path} has SHA-256 {digest}, expected {shard.sha256}: prepare the data set again")
        on_shard(index + 1, len(manifest.shards))
    return manifest


def _shard_reader(folder: pathlib.Path, manifest: Manifest) -> ShardReader:
    record_bytes = _LABEL.size + math.prod(manifest.shape) * manifest.numpy_dtype.itemsize
    return ShardReader(folder, manifest.shards, record_bytes)
