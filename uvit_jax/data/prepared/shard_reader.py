"""Random access to the records of shards; every error names the shard and the record."""

import collections
import os
import pathlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from uvit_jax.data.prepared.array_record_library import array_record
from uvit_jax.data.prepared.shard import Shard
from uvit_jax.errors import UserError
from uvit_jax.fingerprints import sha256_of_file

# No read-ahead and no threads of its own: callers read in parallel from several threads.
_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
# Bytes fetched beyond a record are wasted in random reads, so the buffer is small.
_BUFFER_BYTES = 16 * 1024


class ShardReader:
    """Records of a folder's shards by number; safe to call from threads.

    Readers are opened when first needed and stay open, the least recently used making room where
    there are more shards than half of the files that a process may have open. Opening this object
    looks at nothing but the files' sizes.

    Args:
      folder: of the shards.
      shards: what the manifest says of them.
      record_bytes: the length of each record.
      readers: how many of these objects share the files that the process may have open.
      longer: True if records may be longer than that.

    Raises:
      UserError: a shard is missing or not of its size, or there is no ArrayRecord here.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        shards: Sequence[Shard],
        record_bytes: int,
        *,
        readers: int = 1,
        longer: bool = False,
    ):
        self._paths = [folder / shard.name for shard in shards]
        self._record_bytes, self._longer = record_bytes, longer
        self._shards = shards
        for path, shard in zip(self._paths, shards, strict=True):
            _check_size(path, shard)
        self._open: collections.OrderedDict[int, Any] = collections.OrderedDict()
        array_record()  # a missing package is named before the first record
        limit = _files_limit()
        self._most_open = len(shards) if limit is None else max(1, limit // (2 * readers))
        self._lock = threading.Lock()

    def record(self, shard: int, number: int) -> bytes:
        """The bytes of one record of the shard of this number.

        Raises:
          UserError: the record is damaged or the shard can't be read.
        """
        reader = self._reader(shard)
        try:
            # A range of one takes a third of the time of a list, even a long one, whose cost grows
            # with the shard.
            (data,) = reader.read(number, number + 1)
        except (RuntimeError, IndexError, ValueError) as error:
            raise self.fault(shard, number, one_clause(error)) from error
        if len(data) < self._record_bytes or (len(data) > self._record_bytes and not self._longer):
            expected = f"{'at least ' if self._longer else ''}{self._record_bytes}"
            raise self.fault(shard, number, f"it has {len(data)} bytes instead of {expected}")
        return data

    def scan(self, shard: int) -> Iterator[bytes]:
        """All records of a shard in order.

        Raises:
          UserError: a record is damaged, the shard can't be read or has another number of records.
        """
        expected, found = self._shards[shard].num_records, self._reader(shard).num_records()
        if found != expected:
            raise UserError(
                f"{self._paths[shard]} has {found} records, expected {expected}: prepare the data "
                f"set again"
            )
        return (self.record(shard, number) for number in range(expected))

    def check_sha256(self, shard: int) -> None:
        """Reads a shard's file once more, as bytes.

        Raises:
          UserError: they are not those that were written.
        """
        path, expected = self._paths[shard], self._shards[shard].sha256
        digest = sha256_of_file(path)
        if digest != expected:
            raise UserError(
                f"{path} has SHA-256 {digest}, expected {expected}: prepare the data set again"
            )

    def path(self, shard: int) -> pathlib.Path:
        """The file of a shard."""
        return self._paths[shard]

    def fault(self, shard: int, number: int, detail: str) -> UserError:
        """The error for a record that is not as it was written."""
        return UserError(
            f"{self._paths[shard]} record {number} is damaged ({detail}): prepare the data set "
            f"again"
        )

    def _reader(self, shard: int) -> Any:
        with self._lock:
            reader = self._open.get(shard)
            if reader is None:
                reader = self._open[shard] = _open(self._paths[shard])
                if len(self._open) > self._most_open:
                    self._open.popitem(last=False)  # closed once no thread reads from it any more
            else:
                self._open.move_to_end(shard)
            return reader


def one_clause(error: Exception) -> str:
    """The first clause of a library's error, cut to 200 letters."""
    return " ".join(str(error).split(";")[0].split())[:200]


def _files_limit() -> int | None:
    """Number of files that the process may have open; None for no limit."""
    import resource  # Imported late: Windows lacks it, as it lacks ArrayRecord.

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def _open(path: pathlib.Path) -> Any:
    """Opens an ArrayRecordReader on a shard."""
    reader = array_record().ArrayRecordReader(
        str(path), _OPTIONS, file_reader_buffer_size=_BUFFER_BYTES
    )
    if not reader.ok():
        # It doesn't say why: the operating system does, where the file itself is readable the fault
        # is inside.
        try:
            path.open("rb").close()
        except OSError as error:
            raise UserError(
                f"cannot read {path}: {error.strerror}; expected a shard of the manifest"
            ) from error
        raise UserError(
            f"{path} is damaged (its index of records can't be read): prepare the data set again"
        )
    return reader


def _check_size(path: pathlib.Path, shard: Shard) -> None:
    try:
        size = os.stat(path).st_size
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}; expected a shard of the manifest"
        ) from error
    if size != shard.num_bytes:
        raise UserError(
            f"{path} has {size} bytes, expected {shard.num_bytes}: copy or prepare it again"
        )
