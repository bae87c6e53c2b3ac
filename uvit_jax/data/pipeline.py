"""From a source to batches on the devices: shuffled, repeated, split over hosts, prefetched and
resumable.
"""

import dataclasses
import functools
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import jax
import numpy as np
from absl import flags
from jax.sharding import NamedSharding
from jaxtyping import Bool, Int, UInt64

from uvit_jax.data.sources import Source
from uvit_jax.errors import UserError
from uvit_jax.parallel.batches import Batch
from uvit_jax.randomness import Stream, seed_sequence


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
    """An endless iterator over batches `{name: array [batch_size, ...]}`, global arrays split as
    `sharding` says.

    Every epoch is another permutation, drawn from (seed, epoch), and the epochs are one endless
    stream of examples, cut into batches. It holds the same examples in the same order whatever the
    size of the batches, the number of hosts (each reads what its own devices hold), of workers and
    of batches fetched ahead. The iterator's `get_state` is the number of examples handed out, on
    every host the same, so it can be saved at any step; `set_state` goes there without reading what
    lies before, and batches of another size go on with the example after the last one.

    Args:
      source: random access to examples.
      fields: the names of an example's arrays that are wanted. With "context", every visit of an
        example shows one of its captions, drawn anew; without, no caption is read.
      batch_size: examples in a global batch.
      seed: of the shuffle, the flips and the captions drawn.
      sharding: of the batches; splits the first dimension.
      flip: whether every visit of an example shows it or its mirror image, at even odds.
      prefetch: batches made ready on the devices ahead of time; as many are read at once (by each
        worker).
      workers: processes that read; 0 for threads of this one, which is faster wherever a source
        reads without the interpreter's lock, as records do.

    Raises:
      UserError: the source is empty, or has no mirror images to flip or no captions; or batches
        don't divide over the devices. While iterating: what the source raises.
    """
    if len(source) == 0:
        raise UserError(f"{source.name!r} has 0 examples, expected at least one")
    if flip and not source.can_mirror:
        raise UserError(
            f"flip is True, but {source.name!r} holds no mirror images and its examples can't be "
            f"mirrored"
        )
    if "context" in fields and not source.context_shape:
        raise UserError(
            f"{source.name!r} holds no captions, expected a data set prepared with a text encoder"
        )
    rows = _local_rows(sharding, batch_size)
    if not 0 <= seed < 2**32:
        raise UserError(f"seed is {seed}, expected a number from 0 to {2**32 - 1}")
    if workers and not flags.FLAGS.is_parsed():
        # Grain hands its flags to the workers, and who uses this without a command line has parsed
        # none.
        flags.FLAGS.mark_as_parsed()
    reading = grain.ReadOptions(num_threads=prefetch, prefetch_buffer_size=prefetch)

    def start(first: int) -> grain.DatasetIterator[Batch]:
        read = _BatchReader(source, tuple(fields), batch_size, seed, flip, rows, first)
        batches = grain.MapDataset.range(0, sys.maxsize).map(read).to_iter_dataset(reading)
        if workers:
            # Through pipes: shared memory is no faster here, leaks what is under way when closed,
            # and Docker has 64 MB.
            options = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
            batches = grain.experimental.WithOptionsIterDataset(batches, options)
            processes = grain.MultiprocessingOptions(
                num_workers=workers, per_worker_buffer_size=max(prefetch, 1)
            )
            batches = batches.mp_prefetch(processes, _ignore_interrupts)
        on_devices = batches.map(functools.partial(_to_devices, sharding, batch_size, rows))
        iterator = iter(
            grain.experimental.ThreadPrefetchIterDataset(on_devices, prefetch_buffer_size=prefetch)
        )
        if prefetch:  # Grain would start a thread without bounds for 0.
            iterator.start_prefetch()
        return iterator

    return _Batches(start, batch_size)


def _ignore_interrupts(worker: int, workers: int) -> None:
    """Leaves Ctrl-C, which a terminal sends to all processes, to the one that started this worker
    and ends it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@dataclasses.dataclass(frozen=True)
class _BatchReader:
    """This host's rows of batch k from the example `first` of the stream on; sent to worker
    processes as a whole.
    """

    source: Source
    fields: tuple[str, ...]
    batch_size: int
    seed: int
    flip: bool
    rows: Int[np.ndarray, " rows"]
    first: int

    def __call__(self, k: int) -> dict[str, np.ndarray]:
        positions = self.first + k * self.batch_size + self.rows
        indices = _shuffled(positions, len(self.source), self.seed)
        mirrored = _flips(positions, self.seed) if self.flip else np.zeros(len(positions), bool)
        draws = (
            _words(positions, self.seed, Stream.TRAIN_CAPTION) if "context" in self.fields else None
        )
        return self.source.read(indices, mirrored, draws, self.fields)


def _local_rows(sharding: NamedSharding, batch_size: int) -> Int[np.ndarray, " rows"]:
    """The rows of a batch that this host's devices hold, each once, in order.

    These need not be a host's share of them, nor neighbours: where layers are split over hosts
    several need the same rows, and a mesh follows the wires between the chips, not the numbers of
    their hosts.
    """
    try:
        parts = sharding.addressable_devices_indices_map((batch_size,)).values()
    except ValueError:
        raise UserError(
            f"batch_size is {batch_size}, expected a number that {sharding.spec} divides evenly"
        ) from None
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in parts]))


def _shuffled(positions: Int[np.ndarray, " n"], size: int, seed: int) -> Int[np.ndarray, " n"]:
    """The examples at these positions of the endless stream of epochs.

    An epoch's order is that of Grain's `MapDataset.shuffle`, whose layers take more than twice as
    long. Its seed is drawn from (seed, epoch): with seed + epoch, as in Grain's `repeat`, the
    second epoch of seed 0 would be the first of seed 1.
    """
    shuffle = grain.experimental.index_shuffle
    epochs, places = np.divmod(positions, size)
    drawn = {
        e: int(seed_sequence(seed, Stream.EPOCH, e).generate_state(1)[0])
        for e in set(epochs.tolist())
    }
    seeds = np.array([drawn[e] for e in epochs.tolist()])
    pairs = zip(places.tolist(), seeds.tolist(), strict=True)
    return np.array(
        [shuffle(position, max_index=size - 1, seed=s, rounds=4) for position, s in pairs]
    )


def _flips(positions: Int[np.ndarray, " n"], seed: int) -> Bool[np.ndarray, " n"]:
    """For the same positions whether a mirror image is shown: the top bit of a random word."""
    return _words(positions, seed, Stream.FLIP) >= 2**63


def _words(positions: Int[np.ndarray, " n"], seed: int, stream: Stream) -> UInt64[np.ndarray, " n"]:
    """For the same (rising) positions a random word each, of the Philox stream of this seed and
    this number.
    """
    block = int(positions[0]) // 4  # Philox counts blocks of four words.
    places = positions - 4 * block
    random = np.random.Philox(key=np.array([seed, stream], np.uint64), counter=block)
    return random.random_raw(int(places[-1]) + 1)[places]


def _to_devices(
    sharding: NamedSharding,
    batch_size: int,
    rows: Int[np.ndarray, " rows"],
    batch: dict[str, np.ndarray],
) -> Batch:
    """The global batch of which this host holds these rows."""

    def part(array: np.ndarray, index: tuple[slice, ...]) -> np.ndarray:
        start, stop, _ = index[0].indices(batch_size)
        first = np.searchsorted(rows, start)
        return array[first : first + stop - start]

    return {
        name: jax.make_array_from_callback(
            (batch_size, *array.shape[1:]), sharding, functools.partial(part, array)
        )
        for name, array in batch.items()
    }


class _Batches(grain.DatasetIterator[Batch]):
    """Counts the examples handed out; `start(n)` gives the running iterator from example n of the
    stream on.
    """

    def __init__(self, start: Callable[[int], grain.DatasetIterator[Batch]], batch_size: int):
        super().__init__()
        self._start = start
        self._batch_size = batch_size
        self._next_example = 0
        self._running: grain.DatasetIterator[Batch] | None = None

    def __next__(self) -> Batch:
        self.start_prefetch()
        assert self._running is not None
        batch = next(self._running)
        self._next_example += self._batch_size
        return batch

    def start_prefetch(self) -> None:
        """Starts reading the next batches, unless that has begun."""
        if self._closed:
            raise ValueError("these batches are closed, expected to be open while they are used")
        if self._running is None:
            self._running = self._start(self._next_example)

    def get_state(self) -> dict[str, int]:
        """The number of examples handed out."""
        return {"next_example": self._next_example}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on as after that many examples.

        A position of before examples were counted, `next_index`, counts batches of `batch_size`, by
        default of this iterator's own size.
        """
        self._stop()
        if "next_example" in state:
            self._next_example = state["next_example"]
        else:
            self._next_example = state["next_index"] * state.get("batch_size", self._batch_size)

    def close(self) -> None:
        """Stops the threads and processes that read ahead; a second call does nothing."""
        self._closed = True
        self._stop()

    def _stop(self) -> None:
        if self._running is not None:
            self._running.close()
            self._running = None

    def __str__(self) -> str:
        return f"Batches(next_example={self._next_example})"
