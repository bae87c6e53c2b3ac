"""The bytes of the records of a prepared data set, and the arrays in them.

An example is its label, in a text data set where its captions are, and its array; a caption is its
states, then its text. Numbers are little-endian, arrays in C order; nothing is pickled.
"""

import math
import pathlib
import struct
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int32, Shaped

from uvit_jax.data.prepared.manifest import Manifest
from uvit_jax.data.prepared.shard_reader import ShardReader

_LABEL = struct.Struct("<i")
_LABEL_AND_CAPTIONS = struct.Struct("<iii")


def encode_example(
    label: int, array: Shaped[np.ndarray, "..."], captions: range | None = None
) -> bytes:
    """The bytes of an example: the label as an int32, then the array's.

    In a text data set two int32 are between them: the number of its first caption among those of
    the shard, and how many it has.
    """
    if captions is None:
        return _LABEL.pack(label) + array.tobytes()
    return _LABEL_AND_CAPTIONS.pack(label, captions.start, len(captions)) + array.tobytes()


def encode_caption(states: Float[np.ndarray, "tokens width"], text: str) -> bytes:
    """The bytes of a caption: its states', then its text in UTF-8."""
    return states.tobytes() + text.encode()


class ExampleReader:
    """The examples of a data set's shards; safe to use from threads.

    Raises:
      UserError: a shard is missing or not of its size.
    """

    def __init__(self, folder: pathlib.Path, manifest: Manifest):
        self._head = _LABEL_AND_CAPTIONS if manifest.has_text else _LABEL
        self._shape, self._dtype = manifest.shape, manifest.numpy_dtype
        self._array_bytes = math.prod(self._shape) * self._dtype.itemsize
        record_bytes = self._head.size + self._array_bytes
        self.records = ShardReader(
            folder, manifest.shards, record_bytes, readers=1 + manifest.has_text
        )

    def stack(
        self, shards: Sequence[int], numbers: Sequence[int]
    ) -> tuple[Int32[np.ndarray, "n head"], Shaped[np.ndarray, "n h w c"]]:
        """The records of these numbers in these shards: their heads and their arrays.

        A head is the label and, in a text data set, the number of the first caption in the shard
        and their count.

        Raises:
          UserError: a record is damaged or has no captions in a text data set, or its shard can't
            be read.
        """
        heads = np.empty((len(shards), self._head.size // 4), np.int32)
        rows = np.empty((len(shards), self._array_bytes), np.uint8)
        for row, (shard, number) in enumerate(zip(shards, numbers, strict=True)):
            data = self.records.record(shard, number)
            heads[row] = self._head.unpack_from(data)
            rows[row] = np.frombuffer(data, np.uint8, offset=self._head.size)
        if self._head is _LABEL_AND_CAPTIONS:
            _, firsts, counts = heads.T
            for row in np.flatnonzero((firsts < 0) | (counts < 1)).tolist():
                detail = f"it has {counts[row]} captions from number {firsts[row]} on"
                raise self.records.fault(shards[row], numbers[row], detail)
        return heads, rows.view(self._dtype).reshape(-1, *self._shape)

    def scan(self, shard: int) -> Iterator[tuple[tuple[int, ...], Shaped[np.ndarray, "h w c"]]]:
        """The heads and arrays of all records of a shard, in order.

        Raises:
          UserError: a record is damaged, the shard can't be read or has another number of records.
        """
        for data in self.records.scan(shard):
            array = np.frombuffer(data, self._dtype, offset=self._head.size)
            yield self._head.unpack_from(data), array.reshape(self._shape)


class CaptionReader:
    """The captions of a text data set's shards; safe to use from threads.

    Raises:
      UserError: a file of captions is missing or not of its size.
    """

    def __init__(self, folder: pathlib.Path, manifest: Manifest):
        self._shape, self._dtype = manifest.context_shape, np.dtype(manifest.context_dtype)
        self._states_bytes = math.prod(self._shape) * self._dtype.itemsize
        files = [shard.captions for shard in manifest.shards if shard.captions is not None]
        self.records = ShardReader(folder, files, self._states_bytes, readers=2, longer=True)

    def stack(
        self, shards: Sequence[int], numbers: Sequence[int]
    ) -> Float[np.ndarray, "n tokens width"]:
        """The states of the captions of these numbers in these shards.

        Raises:
          UserError: a record is damaged, or its file can't be read.
        """
        rows = np.empty((len(shards), self._states_bytes), np.uint8)
        for row, (shard, number) in enumerate(zip(shards, numbers, strict=True)):
            rows[row] = np.frombuffer(
                self.records.record(shard, number), np.uint8, self._states_bytes
            )
        return rows.view(self._dtype).reshape(-1, *self._shape)

    def text(self, shard: int, number: int) -> str:
        """The text of a caption.

        Raises:
          UserError: the record is damaged, or its file can't be read.
        """
        return self._text(shard, number, self.records.record(shard, number))

    def scan(self, shard: int) -> Iterator[tuple[Float[np.ndarray, "tokens width"], str]]:
        """The states and texts of all captions of a shard, in order.

        Raises:
          UserError: a record is damaged, the file can't be read or has another number of records.
        """
        for number, data in enumerate(self.records.scan(shard)):
            states = np.frombuffer(data, self._dtype, math.prod(self._shape)).reshape(self._shape)
            yield states, self._text(shard, number, data)

    def _text(self, shard: int, number: int, data: bytes) -> str:
        try:
            return data[self._states_bytes :].decode()
        except UnicodeDecodeError as error:
            detail = f"its text has the byte 0x{error.object[error.start]:02x}, which is not UTF-8"
            raise self.records.fault(shard, number, detail) from None
