import dataclasses
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvit_jax.data import pipeline
from uvit_jax.data.pipeline import train_batches
from uvit_jax.data.sources import ArraySource
from uvit_jax.parallel.mesh import MeshConfig, batch_sharding, make_mesh

SIZE = 20
# Example i is an image full of i, so that a batch tells which examples it holds.
SOURCE = ArraySource(
    "numbers",
    np.arange(SIZE, dtype=np.float32).reshape(-1, 1, 1, 1) * np.ones((1, 2, 2, 1), np.float32),
    np.arange(SIZE, dtype=np.int32) % 7,
    [str(i) for i in range(7)],
)


@pytest.fixture
def batches():
    """`batches(source, **arguments)`, an iterator that is closed when the test ends."""
    opened = []

    def start(source=SOURCE, **arguments):
        sharding = batch_sharding(make_mesh(MeshConfig()))
        defaults = {"fields": ("x", "label"), "batch_size": 4, "seed": 0, "sharding": sharding}
        opened.append(train_batches(source, **defaults | arguments))
        return opened[-1]

    yield start
    for iterator in opened:
        iterator.close()


def take(iterator, count):
    """The numbers of the examples of the next batches, `[count, batch]`."""
    return np.stack([np.asarray(next(iterator)["x"])[:, 0, 0, 0] for _ in range(count)]).astype(int)


def test_every_epoch_is_another_permutation_of_all_examples(batches):
    epochs = take(batches(), 15).reshape(3, SIZE)
    for epoch in epochs:
        assert sorted(epoch) == list(range(SIZE))
        assert list(epoch) != list(range(SIZE))
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_no_example_is_lost_where_the_batch_does_not_divide_the_epoch(batches):
    stream = take(batches(batch_size=6), 10).ravel()
    for epoch in stream.reshape(3, SIZE):
        assert sorted(epoch) == list(range(SIZE))


def test_the_seed_decides_the_order(batches):
    first = take(batches(seed=3), 8)
    np.testing.assert_array_equal(take(batches(seed=3), 8), first)
    assert not np.array_equal(take(batches(seed=4), 8), first)


def test_a_batch_is_global_arrays_on_the_devices_and_labels_stay_with_their_images(batches):
    sharding = batch_sharding(make_mesh(MeshConfig()))
    batch = next(batches())
    assert batch.keys() == {"x", "label"}
    assert (batch["x"].shape, batch["label"].shape) == ((4, 2, 2, 1), (4,))
    assert (batch["x"].dtype, batch["label"].dtype) == (np.float32, np.int32)
    for array in batch.values():
        assert isinstance(array, jax.Array)
        assert array.sharding.is_equivalent_to(sharding, array.ndim)
    np.testing.assert_array_equal(batch["label"], np.asarray(batch["x"])[:, 0, 0, 0] % 7)


def test_only_the_fields_asked_for_are_there(batches):
    assert next(batches(fields=("x",))).keys() == {"x"}


@pytest.mark.parametrize("hosts", [2, 4])
def test_the_hosts_parts_together_are_the_batches_of_one_host(batches, monkeypatch, hosts):
    whole = take(batches(batch_size=8), 7)
    parts = []
    for host in range(hosts):
        stand_in = types.SimpleNamespace(
            process_count=lambda: hosts,
            process_index=lambda host=host: host,
            make_array_from_process_local_data=lambda sharding, array: jnp.asarray(array),
            Array=jax.Array,
        )
        monkeypatch.setattr(pipeline, "jax", stand_in)
        parts.append(take(batches(batch_size=8), 7))
    assert parts[0].shape == (7, 8 // hosts)
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


@pytest.mark.parametrize("steps", [0, 1, 7])
def test_a_saved_position_goes_on_with_the_batch_after_the_last_one_handed_out(batches, steps):
    iterator = batches(prefetch=4)
    expected = take(batches(), steps + 6)[steps:]
    if steps:
        take(iterator, steps)
    position = iterator.get_state()
    np.testing.assert_array_equal(take(iterator, 6), expected)
    again = batches(prefetch=2)
    again.set_state(position)
    np.testing.assert_array_equal(take(again, 6), expected)


def test_a_running_iterator_can_be_set_back(batches):
    iterator = batches()
    position = iterator.get_state()
    first = take(iterator, 5)
    iterator.set_state(position)
    np.testing.assert_array_equal(take(iterator, 5), first)


@dataclasses.dataclass(frozen=True)
class CountingSource(ArraySource):
    """Keeps a list of what was read."""

    read: list[int] = dataclasses.field(default_factory=list)

    def __getitem__(self, index):
        self.read.append(index)
        return super().__getitem__(index)


def test_only_a_few_batches_are_read_ahead(batches):
    source = CountingSource(**{field.name: getattr(SOURCE, field.name) for field in dataclasses.fields(SOURCE)})
    next(batches(source, prefetch=2))
    reads = -1
    while len(source.read) > reads:  # until the readers rest
        reads = len(source.read)
        time.sleep(0.2)
    # The batch handed out; two waiting as arrays, two as examples; one at each stage on its way.
    assert 4 * 3 <= reads <= 4 * 8
