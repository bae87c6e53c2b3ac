"""From a source to batches on the devices: shuffled, repeated, split over hosts, prefetched and resumable."""

from collections.abc import Sequence

import grain
import jax
import numpy as np
from jax.sharding import NamedSharding

from uvit_jax.data.sources import Source


def train_batches(
    source: Source,
    *,
    fields: Sequence[str],
    batch_size: int,
    seed: int,
    sharding: NamedSharding,
    prefetch: int = 2,
) -> grain.DatasetIterator:
    """An endless iterator over batches `{name: array [batch_size, ...]}`, global arrays split as `sharding` says.

    Every epoch is another permutation, drawn from (seed, epoch). Batch k holds the same examples in the same order
    whatever the number of hosts: each host reads its own contiguous part of it. The iterator's `get_state` speaks of
    the batches handed out, not of those fetched ahead, so it can be saved at any step.

    Args:
      source: random access to examples, dicts of arrays.
      fields: the names of an example's arrays that are wanted.
      batch_size: examples in a global batch.
      seed: of the shuffle.
      sharding: of the batches; splits the first dimension.
      prefetch: batches made ready on the devices ahead of time.
    """
    hosts, host = jax.process_count(), jax.process_index()
    dataset = grain.MapDataset.source(source).shuffle(seed=seed).repeat()
    dataset = dataset.map(lambda example: {name: example[name] for name in fields})
    # A host's batches are every hosts-th of the small ones: lazy, so that only they are read.
    dataset = dataset.batch(batch_size // hosts)[host::hosts]

    def to_devices(batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}

    # Grain's own default reads 500 elements ahead, and an element here is a whole batch.
    reading = grain.ReadOptions(num_threads=prefetch, prefetch_buffer_size=prefetch)
    batches = dataset.to_iter_dataset(reading).map(to_devices)
    return iter(grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=prefetch))
