import numpy as np
import pytest

from uvit_jax.parallel.batches import one_ahead, padded, round_up


def test_rows_are_padded_with_zeros_to_one_shape():
    rows = np.arange(6, dtype=np.int16).reshape(3, 2)
    filled = padded(rows, 5)
    assert filled.dtype == np.int16
    np.testing.assert_array_equal(filled, [[0, 1], [2, 3], [4, 5], [0, 0], [0, 0]])
    assert padded(rows, 3) is rows
    assert padded(rows[:0], 2).shape == (2, 2)
    with pytest.raises(ValueError, match="3 rows, expected at most 2"):
        padded(rows, 2)


def test_the_next_item_is_dispatched_before_one_is_used():
    events = []

    def dispatched():
        for i in range(3):
            events.append(f"dispatch {i}")
            yield i

    for i in one_ahead(dispatched()):
        events.append(f"use {i}")
    assert events == ["dispatch 0", "dispatch 1", "use 0", "dispatch 2", "use 1", "use 2"]


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_no_item_is_lost(count):
    assert list(one_ahead(range(count))) == list(range(count))


def test_an_error_of_a_dispatch_is_raised_before_the_item_in_hand():
    def dispatched():
        yield 0
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        next(one_ahead(dispatched()))


def test_counts_are_rounded_up_to_a_multiple():
    assert [round_up(count, 4) for count in (0, 1, 4, 5)] == [0, 4, 4, 8]
