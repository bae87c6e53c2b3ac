"""From a source to batches on the devices: shuffled, repeated, split over hosts, prefetched and resumable."""

import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence

import grain
import jax
import numpy as np
from absl import flags
from jax.sharding import NamedSharding
from jaxtyping import Bool, Int, UInt64

from uvit_jax.data.sources import Source
from uvit_jax.errors import UserError

Batch = dict[str, jax.Array]
# Keep the random bits of the flips and of the captions apart from each other and from any other use of the same seed.
_FLIPS = 0x666C6970
_CAPTIONS = 0x63617074


def train_batches(
    source: Source,
    *,
    fields: Sequence[str],
    batch_size: int,
    seed: int,
    sharding: NamedSharding,
    flip: bool = False,
    prefetch: int = 2,
    workers: int = 0,
) -> grain.DatasetIterator[Batch]:
    """An endless iterator over batches `{name: array [batch_size, ...]}`, global arrays split as `sharding` says.

    Every epoch is another permutation, drawn from (seed, epoch). Batch k is a function of (seed, k) alone: it holds
    the same examples in the same order whatever the number of hosts (each reads its own contiguous part of it), of
    workers and of batches fetched ahead. The iterator's `get_state` is the number of batches handed out, on every
    host the same, so it can be saved at any step; `set_state` goes there without reading what lies before.

    Args:
      source: random access to examples.
      fields: the names of an example's arrays that are wanted. With "context", every visit of an example shows one of
        its captions, drawn anew; without, no caption is read.
      batch_size: examples in a global batch.
      seed: of the shuffle, the flips and the captions drawn.
      sharding: of the batches; splits the first dimension.
      flip: whether every visit of an example shows it or its mirror image, at even odds.
      prefetch: batches made ready on the devices ahead of time; as many are read at once (by each worker).
      workers: processes that read; 0 for threads of this one, which is faster wherever a source reads without the
        interpreter's lock, as records do.

    Raises:
      UserError: the source is empty, or has no mirror images to flip or no captions; or batches don't divide over the
        hosts. While iterating: what the source raises.
    """
    hosts = jax.process_count()
    if len(source) == 0:
        raise UserError(f"{source.name!r} has 0 examples, expected at least one")
    if flip and not source.can_mirror:
        raise UserError(f"flip is True, but {source.name!r} holds no mirror images and its examples can't be mirrored")
    if "context" in fields and not source.context_shape:
        raise UserError(f"{source.name!r} holds no captions, expected a data set prepared with a text encoder")
    if batch_size % hosts:
        raise UserError(f"batch_size is {batch_size}, expected a multiple of the {hosts} hosts")
    if not 0 <= seed < 2**32:
        raise UserError(f"seed is {seed}, expected a number from 0 to {2**32 - 1}")
    if workers and not flags.FLAGS.is_parsed():
        # Grain hands its flags to the workers, and who uses this without a command line has parsed none.
        flags.FLAGS.mark_as_parsed()
    read = _BatchReader(source, tuple(fields), batch_size, seed, flip, hosts, jax.process_index())
    reading = grain.ReadOptions(num_threads=prefetch, prefetch_buffer_size=prefetch)

    def start(first: int) -> grain.DatasetIterator[Batch]:
        batches = grain.MapDataset.range(first, sys.maxsize).map(read).to_iter_dataset(reading)
        if workers:
            # Through pipes: shared memory is no faster here, leaks what is under way when closed, and Docker has 64 MB.
            options = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
            batches = grain.experimental.WithOptionsIterDataset(batches, options)
            processes = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=max(prefetch, 1))
            batches = batches.mp_prefetch(processes)
        on_devices = batches.map(functools.partial(_to_devices, sharding))
        iterator = iter(grain.experimental.ThreadPrefetchIterDataset(on_devices, prefetch_buffer_size=prefetch))
        if prefetch:  # Grain would start a thread without bounds for 0.
            iterator.start_prefetch()
        return iterator

    return _Batches(start)


@dataclasses.dataclass(frozen=True)
class _BatchReader:
    """This host's part of batch k, read from the source; sent to worker processes as a whole."""

    source: Source
    fields: tuple[str, ...]
    batch_size: int
    seed: int
    flip: bool
    hosts: int
    host: int

    def __call__(self, k: int) -> dict[str, np.ndarray]:
        part = self.batch_size // self.hosts
        first = k * self.batch_size + self.host * part
        indices = _shuffled(first, part, len(self.source), self.seed)
        mirrored = _flips(first, part, self.seed) if self.flip else np.zeros(part, bool)
        draws = _words(first, part, self.seed, _CAPTIONS) if "context" in self.fields else None
        return self.source.read(indices, mirrored, draws, self.fields)


def _shuffled(first: int, count: int, size: int, seed: int) -> Int[np.ndarray, " count"]:
    """The examples at positions first..first+count-1 of the endless stream of epochs.

    The order is that of Grain's own `MapDataset.shuffle(seed).repeat()`, whose layers take more than twice as long.
    """
    shuffle = grain.experimental.index_shuffle
    epochs, positions = np.divmod(np.arange(first, first + count), size)
    seeds = (seed + epochs) % 2**32
    pairs = zip(positions.tolist(), seeds.tolist(), strict=True)
    return np.array([shuffle(position, max_index=size - 1, seed=s, rounds=4) for position, s in pairs])


def _flips(first: int, count: int, seed: int) -> Bool[np.ndarray, " count"]:
    """For the same positions whether a mirror image is shown: the top bit of a random word."""
    return _words(first, count, seed, _FLIPS) >= 2**63


def _words(first: int, count: int, seed: int, stream: int) -> UInt64[np.ndarray, " count"]:
    """For the same positions a random word each, of the Philox stream of this seed and this number."""
    block, skip = divmod(first, 4)  # Philox counts blocks of four words.
    return np.random.Philox(key=np.array([seed, stream], np.uint64), counter=block).random_raw(skip + count)[skip:]


def _to_devices(sharding: NamedSharding, batch: dict[str, np.ndarray]) -> Batch:
    return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}


class _Batches(grain.DatasetIterator[Batch]):
    """Counts the batches handed out; `start(k)` gives the running iterator from batch k on."""

    def __init__(self, start: Callable[[int], grain.DatasetIterator[Batch]]):
        super().__init__()
        self._start = start
        self._next_index = 0
        self._running: grain.DatasetIterator[Batch] | None = None

    def __next__(self) -> Batch:
        self.start_prefetch()
        assert self._running is not None
        batch = next(self._running)
        self._next_index += 1
        return batch

    def start_prefetch(self) -> None:
        """Starts reading the next batches, unless that has begun."""
        if self._closed:
            raise ValueError("these batches are closed, expected to be open while they are used")
        if self._running is None:
            self._running = self._start(self._next_index)

    def get_state(self) -> dict[str, int]:
        """The number of batches handed out, under Grain's own name for it."""
        return {"next_index": self._next_index}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes on as after that many batches."""
        self._stop()
        self._next_index = state["next_index"]

    def close(self) -> None:
        """Stops the threads and processes that read ahead; a second call does nothing."""
        self._closed = True
        self._stop()

    def _stop(self) -> None:
        if self._running is not None:
            self._running.close()
            self._running = None

    def __str__(self) -> str:
        return f"Batches(next_index={self._next_index})"
