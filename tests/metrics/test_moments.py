import io

import numpy as np
import pytest

from uvit_jax.errors import UserError
from uvit_jax.metrics.moments import Moments, SplitMoments, in_second_half

WIDTH = 7
RNG = np.random.default_rng(0)
# Means a thousand times the deviations, as rounding likes least.
ROWS = (RNG.standard_normal((301, WIDTH)) @ RNG.standard_normal((WIDTH, WIDTH)) + 3000).astype(
    np.float32
)
SECOND = in_second_half(np.arange(301))


def partition(seed, n=301):
    """Consecutive slices that cover n rows, some of one row and some of none."""
    cuts = np.sort(np.random.default_rng(seed).integers(0, n + 1, 20)).tolist()
    return [slice(start, end) for start, end in zip([0, *cuts], [*cuts, n], strict=True)]


def through_a_file(arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    file.seek(0)
    return np.load(file)


def check(moments, rows):
    values = rows.astype(np.float64)
    assert moments.count == len(rows)
    np.testing.assert_allclose(moments.mean, values.mean(axis=0), rtol=1e-14)
    expected = np.cov(values, rowvar=False)
    np.testing.assert_allclose(
        moments.covariance, expected, rtol=0, atol=1e-12 * np.abs(expected).max()
    )
    np.testing.assert_array_equal(moments.covariance, moments.covariance.T)


@pytest.mark.parametrize("seed", range(5))
def test_a_stream_has_the_moments_of_the_whole_however_it_is_cut(seed):
    moments = Moments(WIDTH)
    for part in partition(seed):
        moments.update(ROWS[part])
    check(moments, ROWS)


@pytest.mark.parametrize("seed", range(3))
def test_means_a_million_times_the_deviations_cost_few_digits(seed):
    rows = RNG.standard_normal((500, 3)) + 1e6
    moments = Moments(3)
    for part in partition(seed, 500):
        moments.update(rows[part])
    expected = np.cov(rows - 1e6, rowvar=False)  # a difference without rounding
    np.testing.assert_allclose(moments.covariance, expected, rtol=0, atol=1e-9)


def test_streams_merge_into_the_whole_and_leave_the_other_as_it_was():
    first, second, empty = Moments(WIDTH), Moments(WIDTH), Moments(WIDTH)
    first.update(ROWS[:100])
    second.update(ROWS[100:])
    for other in (empty, second, empty):
        first.merge(other)
    check(first, ROWS)
    check(second, ROWS[100:])
    empty.merge(second)
    check(empty, ROWS[100:])


def test_a_saved_stream_goes_on_to_the_bit():
    straight = Moments(WIDTH)
    straight.update(ROWS[:100])
    resumed = Moments.from_arrays(through_a_file(straight.arrays()))
    for moments in (straight, resumed):
        moments.update(ROWS[100:])
    assert resumed.count == 301
    np.testing.assert_array_equal(resumed.mean, straight.mean)
    np.testing.assert_array_equal(resumed.covariance, straight.covariance)


def test_what_is_given_out_is_no_longer_part_of_the_stream():
    moments = Moments(WIDTH)
    moments.update(ROWS)
    moments.mean[:] = 0
    moments.covariance[:] = 0
    for array in moments.arrays().values():
        array[...] = 0
    check(moments, ROWS)


def test_rows_that_are_not_finite_are_counted():
    moments, rows = Moments(WIDTH), ROWS[:10].copy()
    rows[2, 3], rows[2, 4], rows[7, 0] = np.nan, np.inf, -np.inf
    with pytest.raises(
        UserError, match=r"^features hold NaN or infinity in 2 of 10 rows, expected finite numbers$"
    ):
        moments.update(rows)
    assert moments.count == 0


def test_other_widths_and_too_few_samples_are_refused():
    moments = Moments(WIDTH)
    with pytest.raises(UserError, match=r"^features have 6 columns, expected 7$"):
        moments.update(ROWS[:, :6])
    with pytest.raises(
        UserError, match=r"^moments have width 6, expected 7, that of those they join$"
    ):
        moments.merge(Moments(6))
    with pytest.raises(UserError, match=r"^the mean needs at least 1 sample, found 0$"):
        _ = moments.mean
    moments.update(ROWS[:1])
    with pytest.raises(UserError, match=r"^the covariance needs at least 2 samples, found 1$"):
        _ = moments.covariance
    np.testing.assert_array_equal(moments.mean, ROWS[0])


@pytest.mark.parametrize("seed", range(3))
def test_halves_are_the_same_samples_whatever_the_batches(seed):
    split, parts = SplitMoments(WIDTH), partition(seed)
    np.random.default_rng(seed).shuffle(parts)
    for part in parts:
        split.update(ROWS[part], part.start)
    check(split.halves[0], ROWS[~SECOND])
    check(split.halves[1], ROWS[SECOND])
    check(split.whole, ROWS)
    check(split.halves[0], ROWS[~SECOND])  # asking for the whole changed nothing


def test_split_moments_merge_and_go_on_from_a_file():
    first, second = SplitMoments(WIDTH), SplitMoments(WIDTH)
    first.update(ROWS[:33], 0)
    second.update(ROWS[33:], 33)
    resumed = SplitMoments.from_arrays(through_a_file(first.arrays()))
    for split in (first, resumed):
        split.merge(second)
    check(resumed.halves[0], ROWS[~SECOND])
    check(resumed.halves[1], ROWS[SECOND])
    np.testing.assert_array_equal(resumed.whole.covariance, first.whole.covariance)


@pytest.mark.parametrize("classes", [1, 2, 10, 1000])
def test_halves_hold_half_of_each_class_however_many_come_in_turn(classes):
    numbers = np.arange(50 * classes)
    counts = np.bincount(numbers[in_second_half(numbers)] % classes, minlength=classes)
    assert counts.min() >= 20
    assert counts.max() <= 30
    assert abs(counts.sum() - 25 * classes) <= max(2, classes // 20)


def test_a_bad_row_enters_neither_half():
    split, rows = SplitMoments(WIDTH), ROWS[:4].copy()
    rows[3] = np.nan
    with pytest.raises(UserError, match="in 1 of 4 rows"):
        split.update(rows, 0)
    assert [half.count for half in split.halves] == [0, 0]
