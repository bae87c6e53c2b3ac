import dataclasses
import multiprocessing
import threading
import time
import types

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.data.prepared_sets import CONTEXT, prepare
from uvit_jax.data import pipeline
from uvit_jax.data.example_order import flips, random_words, shuffled
from uvit_jax.data.pipeline import train_batches
from uvit_jax.data.prepared.prepared_data import PreparedData
from uvit_jax.data.training_data import ArrayData
from uvit_jax.errors import UserError
from uvit_jax.parallel.mesh import MeshConfig, batch_sharding, make_mesh
from uvit_jax.randomness import Stream, seed_sequence

SIZE = 20
# Example i is an image full of i, so that a batch shows which examples it holds.
SOURCE = ArrayData(
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


@pytest.mark.parametrize(
    "parts",
    [[(0, 4), (4, 8)], [(2, 4), (6, 8)], [(0, 8)], [(4, 6)]],
    ids=["neighbours", "strided", "all", "one"],
)
def test_a_host_reads_its_own_rows_alone_and_they_are_those_of_the_whole_batch(
    batches, monkeypatch, parts
):
    whole = take(batches(MIRRORS, batch_size=8, flip=True), 7)
    rows = np.concatenate([np.arange(*part) for part in parts])
    reads = []

    def local_part(shape, sharding, part):
        assert shape[0] == 8
        return jnp.concatenate(
            [part((slice(*rows), *[slice(None)] * (len(shape) - 1))) for rows in parts]
        )

    class Source(MirrorSource):
        def read(self, indices, *rest):
            reads.append(len(indices))
            return super().read(indices, *rest)

    monkeypatch.setattr(pipeline, "_local_rows", lambda sharding, batch_size: rows)
    stand_in = types.SimpleNamespace(make_array_from_callback=local_part, Array=jax.Array)
    monkeypatch.setattr(pipeline, "jax", stand_in)
    source = Source(*(getattr(MIRRORS, field.name) for field in dataclasses.fields(SOURCE)))
    np.testing.assert_array_equal(take(batches(source, batch_size=8, flip=True), 7), whole[:, rows])
    assert set(reads) == {len(rows)}


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
class CountingSource(ArrayData):
    """Keeps a list of what was read."""

    reads: list[int] = dataclasses.field(default_factory=list)

    def read(self, indices, mirrored, *rest):
        self.reads.extend(indices.tolist())
        return super().read(indices, mirrored, *rest)


def test_only_a_few_batches_are_read_ahead_and_none_to_reach_a_saved_position(batches):
    source = CountingSource(
        **{field.name: getattr(SOURCE, field.name) for field in dataclasses.fields(SOURCE)}
    )
    iterator = batches(source, prefetch=2)
    iterator.set_state({"next_example": 10**10})
    assert source.reads == []
    next(iterator)
    reads = -1
    while len(source.reads) > reads:  # until the readers rest
        reads = len(source.reads)
        time.sleep(0.2)
    # The batch handed out; two waiting as arrays, two as examples; one at each stage on its way.
    assert 4 * 3 <= reads <= 4 * 8


def test_an_epochs_order_is_grains_shuffle_at_a_seed_of_its_own(batches):
    seed = 2**32 - 2
    seeds = [
        int(seed_sequence(seed, Stream.EPOCH, epoch).generate_state(1)[0]) for epoch in range(6)
    ]
    grains = [grain.MapDataset.range(SIZE).shuffle(seed=each) for each in seeds]
    expected = np.array([order[i] for order in grains for i in range(SIZE)])[: 14 * 6].reshape(
        14, 6
    )
    np.testing.assert_array_equal(take(batches(seed=seed, batch_size=6), 14), expected)


def test_the_position_is_the_number_of_examples_handed_out(batches):
    iterator = batches(prefetch=3)
    assert iterator.get_state() == {"next_example": 0}
    take(iterator, 5)
    assert iterator.get_state() == {"next_example": 20}


def test_batches_of_another_size_go_on_with_the_next_example(batches):
    expected = take(batches(MIRRORS, flip=True, batch_size=1), 60).ravel()
    first = batches(MIRRORS, flip=True, batch_size=6)
    found = [take(first, 3).ravel()]
    for batch_size, count in ((4, 5), (2, 4), (14, 1)):
        other = batches(MIRRORS, flip=True, batch_size=batch_size)
        other.set_state(first.get_state())
        found.append(take(other, count).ravel())
        first = other
    np.testing.assert_array_equal(np.concatenate(found), expected)


def test_a_position_that_counts_batches_is_read_with_the_size_that_they_had(batches):
    expected = take(batches(), 15).ravel()
    iterator = batches()
    iterator.set_state({"next_index": 3})
    np.testing.assert_array_equal(take(iterator, 12).ravel(), expected[12:])
    iterator = batches(batch_size=6)
    iterator.set_state({"next_index": 3, "batch_size": 4})
    assert iterator.get_state() == {"next_example": 12}
    np.testing.assert_array_equal(take(iterator, 8).ravel(), expected[12:])


@dataclasses.dataclass(frozen=True)
class MirrorSource(ArrayData):
    """Example i is full of i, and its mirror image of i + shift."""

    shift: int = 100

    def read(self, indices, mirrored, *rest):
        batch = super().read(indices, np.zeros_like(mirrored), *rest)
        return batch | {"x": batch["x"] + self.shift * mirrored[:, None, None, None]}


MIRRORS = MirrorSource(*(getattr(SOURCE, field.name) for field in dataclasses.fields(SOURCE)))


def test_flips_are_even_and_drawn_anew_at_every_visit_without_touching_the_order(batches):
    size, epochs = 500, 4
    images = np.arange(size, dtype=np.float32).reshape(-1, 1, 1, 1)
    many = MirrorSource("many", images, np.zeros(size, np.int32), ["all"], shift=size)

    def visits(**arguments):
        return take(batches(many, batch_size=100, **arguments), size * epochs // 100).reshape(
            epochs, size
        )

    plain, flipped, other = visits(), visits(flip=True), visits(flip=True, seed=1)
    assert plain.max() < size
    np.testing.assert_array_equal(flipped % size, plain)
    mirrored = (flipped >= size)[np.arange(epochs)[:, None], np.argsort(plain)]  # [epoch, example]
    assert abs(mirrored.mean() - 0.5) < 4 * 0.5 / np.sqrt(mirrored.size)
    for one in range(epochs):
        for another in range(one):
            assert 0.4 < np.mean(mirrored[one] == mirrored[another]) < 0.6
    assert 0.4 < np.mean((flipped >= size) == (other >= size)) < 0.6


@pytest.mark.parametrize(("batch_size", "prefetch"), [(2, 2), (10, 1), (20, 0)])
def test_an_examples_flip_depends_on_its_place_in_the_stream_alone(batches, batch_size, prefetch):
    expected = take(batches(MIRRORS, flip=True), 50).ravel()
    found = take(
        batches(MIRRORS, flip=True, batch_size=batch_size, prefetch=prefetch), 200 // batch_size
    ).ravel()
    np.testing.assert_array_equal(found, expected)


def test_flips_go_on_from_a_saved_position(batches):
    expected = take(batches(MIRRORS, flip=True, batch_size=3), 30)
    iterator = batches(MIRRORS, flip=True, batch_size=3)
    iterator.set_state({"next_example": 39})
    np.testing.assert_array_equal(take(iterator, 17), expected[13:])


def test_worker_processes_hand_out_the_same_batches_and_end_when_closed(batches):
    iterator = batches(MIRRORS, flip=True, workers=2)
    np.testing.assert_array_equal(take(iterator, 12), take(batches(MIRRORS, flip=True), 12))
    assert iterator.get_state() == {"next_example": 48}
    assert len(multiprocessing.active_children()) == 2
    iterator.close()
    assert not multiprocessing.active_children()


@dataclasses.dataclass(frozen=True)
class FailingSource(ArrayData):
    def read(self, indices, mirrored, *rest):
        raise UserError("a.array_record record 7 is damaged")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_in_the_data_reaches_the_caller_as_it_is(batches, workers):
    source = FailingSource(*(getattr(SOURCE, field.name) for field in dataclasses.fields(SOURCE)))
    with pytest.raises(UserError) as raised:
        next(batches(source, workers=workers))
    assert str(raised.value) == "a.array_record record 7 is damaged"


def test_records_are_batches_in_their_own_dtype(batches, tmp_path):
    x, labels = prepare(tmp_path, dtype="bfloat16", mirror=True)
    iterator = batches(PreparedData(tmp_path), batch_size=15, flip=True)
    batch = next(iterator)
    assert batch["x"].dtype == jnp.bfloat16
    indices = shuffled(np.arange(15), 15, 0)
    mirrored = flips(np.arange(15), 0)
    assert 0 < mirrored.sum() < 15
    np.testing.assert_array_equal(batch["x"], x[indices, mirrored.astype(int)])
    np.testing.assert_array_equal(batch["label"], labels[indices])


# The upper halves of the first five words of seed 3: what a run has seen at a position must never
# change.
FLIPS = [426205290, 3947405353, 687844646, 2283974846, 2773007633]
CAPTIONS = [3740187040, 1674070230, 3836412313, 428783249, 3003175713]


@pytest.mark.parametrize("first", [0, 1, 4])
def test_the_random_words_of_a_seed_stay_what_they_are(first):
    words = random_words(np.arange(first, 5), 3, Stream.TRAIN_CAPTION)
    assert [int(word) >> 32 for word in words] == CAPTIONS[first:]
    words = random_words(np.arange(first, 5), 3, Stream.FLIP)
    assert [int(word) >> 32 for word in words] == FLIPS[first:]
    assert flips(np.arange(first, 5), 3).tolist() == [word >= 2**31 for word in FLIPS[first:]]


@dataclasses.dataclass(frozen=True)
class TextSource(ArrayData):
    """Captions whose states are their number; records if captions were drawn."""

    captions: int = 3
    drawn: list[bool] = dataclasses.field(default_factory=list)

    @property
    def context_shape(self):
        return CONTEXT

    def read(self, indices, mirrored, draws=None, fields=None):
        self.drawn.append(draws is not None)
        assert (draws is not None) == ("context" in fields)
        batch = super().read(indices, mirrored)
        if draws is not None:
            batch["context"] = np.multiply.outer(
                (draws % self.captions).astype(np.float32), np.ones(CONTEXT)
            )
        return {name: batch[name] for name in fields}


def text_source(size=SIZE, captions=3):
    images = np.arange(size, dtype=np.float32).reshape(-1, 1, 1, 1)
    return TextSource("text", images, np.zeros(size, np.int32), ["all"], captions)


def drawn(iterator, count):
    """The captions of the next batches, `[count, batch]`."""
    return np.stack([np.asarray(next(iterator)["context"])[:, 0, 0] for _ in range(count)]).astype(
        int
    )


TEXT_FIELDS = ("x", "context")


def test_captions_are_drawn_at_equal_odds_and_anew_at_every_visit_without_touching_the_order(
    batches,
):
    size, epochs = 500, 4
    arguments = {"batch_size": 100, "fields": TEXT_FIELDS}
    count = size * epochs // 100
    order = take(batches(text_source(size), batch_size=100), count)
    np.testing.assert_array_equal(take(batches(text_source(size), **arguments), count), order)
    found = drawn(batches(text_source(size), **arguments), count).reshape(epochs, size)
    visits = found[
        np.arange(epochs)[:, None], np.argsort(order.reshape(epochs, size))
    ]  # [epoch, example]
    assert np.abs(np.bincount(visits.ravel()) - size * epochs / 3).max() < 4 * np.sqrt(
        size * epochs * 2 / 9
    )
    for one in range(epochs):
        for another in range(one):
            assert 0.23 < np.mean(visits[one] == visits[another]) < 0.43
    other = drawn(batches(text_source(size), **arguments, seed=1), count).reshape(epochs, size)
    assert 0.23 < np.mean(found == other) < 0.43


def test_captions_are_drawn_apart_from_flips(batches):
    source = text_source(400, captions=2)
    fields = ("context",)
    plain = drawn(batches(source, batch_size=100, fields=fields), 8)
    np.testing.assert_array_equal(
        drawn(batches(source, batch_size=100, fields=fields, flip=True), 8), plain
    )
    mirrored = flips(np.arange(800), 0)
    assert 0.4 < np.mean(mirrored == plain.ravel()) < 0.6


@pytest.mark.parametrize(("batch_size", "prefetch"), [(2, 2), (10, 1), (20, 0)])
def test_a_caption_depends_on_its_place_in_the_stream_alone(batches, batch_size, prefetch):
    expected = drawn(batches(text_source(), fields=TEXT_FIELDS), 50).ravel()
    iterator = batches(text_source(), fields=TEXT_FIELDS, batch_size=batch_size, prefetch=prefetch)
    np.testing.assert_array_equal(drawn(iterator, 200 // batch_size).ravel(), expected)
    iterator.set_state({"next_example": 3 * batch_size})
    np.testing.assert_array_equal(
        drawn(iterator, 2).ravel(), expected[3 * batch_size : 5 * batch_size]
    )


def test_no_caption_is_drawn_where_none_is_wanted(batches):
    source = text_source()
    assert next(batches(source)).keys() == {"x", "label"}
    assert not any(source.drawn)


def test_without_captions_a_context_is_refused_before_anything_is_read(batches):
    with pytest.raises(
        UserError,
        match=r"^'numbers' holds no captions, expected a data set prepared with a text encoder$",
    ):
        batches(fields=TEXT_FIELDS)


@pytest.mark.parametrize("workers", [0, 1])
def test_prepared_captions_are_batches_in_their_own_dtype(batches, tmp_path, workers):
    prepare(tmp_path, context_dtype="bfloat16")
    source = PreparedData(tmp_path)
    batch = next(batches(source, fields=TEXT_FIELDS, batch_size=15, workers=workers))
    assert batch.keys() == {"x", "context"}
    assert (batch["context"].dtype, batch["context"].shape) == (jnp.bfloat16, (15, *CONTEXT))
    draws = random_words(np.arange(15), 0, Stream.TRAIN_CAPTION)
    order = shuffled(np.arange(15), 15, 0).tolist()
    for i, draw, context in zip(order, draws.tolist(), np.asarray(batch["context"]), strict=True):
        np.testing.assert_array_equal(context, source.context(i, draw % (1 + i % 4)))


def test_closing_stops_the_threads_and_a_closed_iterator_says_so(batches):
    before = set(threading.enumerate())
    iterator = batches()
    next(iterator)
    started = set(threading.enumerate()) - before
    assert started
    iterator.close()
    iterator.close()
    for thread in started:
        thread.join(timeout=5)
        assert not thread.is_alive()
    with pytest.raises(ValueError, match="closed"):
        next(iterator)


def test_bad_input_is_refused_before_anything_is_read(batches, tmp_path, monkeypatch):
    prepare(tmp_path)
    with pytest.raises(UserError, match=r"^flip is True, but 'random' holds no mirror images"):
        batches(PreparedData(tmp_path), flip=True)
    with pytest.raises(UserError, match=r"^seed is -1, expected a number from 0 to 4294967295$"):
        batches(seed=-1)
    empty = ArrayData("nothing", np.zeros((0, 2, 2, 1), np.float32), np.zeros(0, np.int32), ["a"])
    with pytest.raises(UserError, match=r"^'nothing' has 0 examples, expected at least one$"):
        batches(empty)
