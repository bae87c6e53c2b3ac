"""Training data to batches on the devices: shuffled, split over hosts, prefetched, resumable."""

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
from jaxtyping import Int

from uvit_jax.data.example_order import flips, random_words, shuffled
from uvit_jax.data.training_data import TrainingData
from uvit_jax.errors import UserError
from uvit_jax.parallel.batches import Batch
from uvit_jax.randomness import Stream


def train_batches(
    source: TrainingData,
    *,
    fields: Sequence[str],
    batch_size: int,
    seed: int,
    sharding: NamedSharding,
    flip: bool = False,
    prefetch: int = 2,
    workers: int = 0,
) -> grain.DatasetIterator[Batch]:
    """An endless iterator over global batches `{name: array [batch_size, ...]}`, sharded.

    Every epoch is another permutation, drawn from (seed, epoch); the epochs are one endless stream
    of examples, cut into batches. The stream is the same for any batch size and any number of hosts
    (each reads what its own devices hold), workers and prefetched batches. The iterator's
    `get_state` is the number of examples handed out, the same on every host, so it can be saved at
    any step. `set_state` goes there without reading what comes before; batches of another size go
    on with the example after the last one.

    Args:
      source: random access to examples.
      fields: names of the arrays of an example that are wanted. With "context", every visit of an
        example shows one of its captions, drawn anew; without, no caption is read.
      batch_size: examples in a global batch.
      seed: of the shuffle, the flips and the captions drawn.
      sharding: of the batches; splits the first dimension.
      flip: True to show each visited example or its mirror image at even odds.
      prefetch: batches made ready on the devices ahead of time; as many are read at once (by each
        worker).
      workers: processes that read; 0 for threads of this process, which is faster for a source that
        reads without the interpreter's lock, as records do.

    Raises:
      UserError: the source is empty, or has no mirror images to flip or no captions; or batches
        don't divide over the devices. While iterating: what the source raises.
    """
    _check(source, fields, seed, flip=flip)
    rows = _local_rows(sharding, batch_size)
    if workers and not flags.FLAGS.is_parsed():
        # Grain passes absl's flags to its workers; a program without a command line parsed none.
        flags.FLAGS.mark_as_parsed()

    def start(first: int) -> grain.DatasetIterator[Batch]:
        read = _BatchReader(source, tuple(fields), batch_size, seed, flip, rows, first)
        to_devices = functools.partial(_to_devices, sharding, batch_size, rows)
        return _prefetched(read, to_devices, prefetch, workers)

    return _ResumableBatches(start, batch_size)


def _check(source: TrainingData, fields: Sequence[str], seed: int, *, flip: bool) -> None:
    if len(source) == 0:
        raise UserError(f"{source.name!r} has 0 examples, expected at least one")
    if flip and not source.can_mirror:
        raise UserError(
            f"flip is True, but {source.name!r} holds no mirror images and its examples can't be "
            "mirrored"
        )
    if "context" in fields and not source.context_shape:
        raise UserError(
            f"{source.name!r} holds no captions, expected a data set prepared with a text encoder"
        )
    if not 0 <= seed < 2**32:
        raise UserError(f"seed is {seed}, expected a number from 0 to {2**32 - 1}")


def _prefetched(
    read: "_BatchReader",
    to_devices: Callable[[dict[str, np.ndarray]], Batch],
    prefetch: int,
    workers: int,
) -> grain.DatasetIterator[Batch]:
    """A running iterator of batches on the devices, `prefetch` of them made ahead."""
    reading = grain.ReadOptions(num_threads=prefetch, prefetch_buffer_size=prefetch)
    batches = grain.MapDataset.range(0, sys.maxsize).map(read).to_iter_dataset(reading)
    if workers:
        # Through pipes: shared memory is not faster here, leaks batches under way when closed, and
        # Docker has 64 MB. Grain has no public option for it yet.
        options = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
        batches = grain.experimental.WithOptionsIterDataset(batches, options)
        processes = grain.MultiprocessingOptions(
            num_workers=workers, per_worker_buffer_size=max(prefetch, 1)
        )
        batches = batches.mp_prefetch(processes, _ignore_interrupts)
    # The thread that keeps batches on the devices; grain has it under `experimental` alone.
    ahead = grain.experimental.ThreadPrefetchIterDataset(
        batches.map(to_devices), prefetch_buffer_size=prefetch
    )
    iterator = iter(ahead)
    if prefetch:  # With 0, grain would start a thread whose buffer has no bound.
        iterator.start_prefetch()
    return iterator


def _ignore_interrupts(worker: int, workers: int) -> None:
    """Leaves Ctrl-C, which a terminal sends to all processes, to this worker's parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@dataclasses.dataclass(frozen=True)
class _BatchReader:
    """Reads this host's rows of batch k, counted from example `first`; pickled for workers."""

    source: TrainingData
    fields: tuple[str, ...]
    batch_size: int
    seed: int
    flip: bool
    rows: Int[np.ndarray, " rows"]
    first: int

    def __call__(self, k: int) -> dict[str, np.ndarray]:
        positions = self.first + k * self.batch_size + self.rows
        indices = shuffled(positions, len(self.source), self.seed)
        mirrored = flips(positions, self.seed) if self.flip else np.zeros(len(positions), bool)
        draws = (
            random_words(positions, self.seed, Stream.TRAIN_CAPTION)
            if "context" in self.fields
            else None
        )
        return self.source.read(indices, mirrored, draws, self.fields)


def _local_rows(sharding: NamedSharding, batch_size: int) -> Int[np.ndarray, " rows"]:
    """The rows of a batch that this host's devices hold, each once, in order.

    They need not be neighbours, nor 1/n of the batch for n hosts: where layers are split over
    hosts, several need the same rows, and a mesh follows the links between the chips, not the
    numbers of their hosts.
    """
    try:
        parts = sharding.addressable_devices_indices_map((batch_size,)).values()
    except ValueError:
        raise UserError(
            f"batch_size is {batch_size}, expected a number that {sharding.spec} divides evenly"
        ) from None
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in parts]))


def _to_devices(
    sharding: NamedSharding,
    batch_size: int,
    rows: Int[np.ndarray, " rows"],
    batch: dict[str, np.ndarray],
) -> Batch:
    """The global batch, of which this host holds these rows."""

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


class _ResumableBatches(grain.DatasetIterator[Batch]):
    """Counts the examples handed out; `start(n)` runs an iterator from example n on."""

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
        """Goes on after that many examples.

        Positions of earlier versions, `next_index`, count batches of `batch_size` (by default this
        iterator's own size).
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
