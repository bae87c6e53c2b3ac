import numpy as np
import pytest

from uvit_jax.errors import UserError
from uvit_jax.metrics.kid import kid


def features(seed, n, shift=0.0, width=6):
    return (np.random.default_rng(seed).standard_normal((n, width)) + shift).astype(np.float32)


def by_definition(a, b):
    """The unbiased squared MMD, pair by pair."""
    a, b = a.astype(np.float64), b.astype(np.float64)

    def mean(x, y, same):
        pairs = [(i, j) for i in range(len(x)) for j in range(len(y)) if not (same and i == j)]
        return np.mean([(x[i] @ y[j] / x.shape[1] + 1) ** 3 for i, j in pairs])

    return mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False)


def test_one_subset_of_everything_is_the_definition():
    a, b = features(0, 20), features(1, 20, shift=0.5)
    mean, std = kid(a, b, subsets=3, subset_size=20)
    assert mean == pytest.approx(by_definition(a, b), rel=1e-12)
    assert std == pytest.approx(0, abs=1e-14)


def test_subsets_are_those_that_the_seed_draws_from_either_set_by_turns():
    a, b = features(0, 40), features(1, 30, shift=0.5)
    rng, values = np.random.RandomState(5), []
    for _ in range(4):
        first, second = rng.choice(40, 10, replace=False), rng.choice(30, 10, replace=False)
        values.append(by_definition(a[first], b[second]))
    ours = kid(a, b, subsets=4, subset_size=10, seed=5)
    np.testing.assert_allclose(ours, (np.mean(values), np.std(values)), rtol=1e-11)
    assert kid(a, b, subsets=4, subset_size=10, seed=6) != ours


def test_equal_distributions_are_at_zero_on_average():
    mean, std = kid(features(0, 4000), features(1, 4000), subsets=200, subset_size=100)
    assert abs(mean) < 4 * std / np.sqrt(200)
    assert kid(features(0, 400), features(1, 400, shift=0.3), subsets=20, subset_size=100)[
        0
    ] > 4 * std / np.sqrt(20)


def test_bad_input_is_refused():
    a, b = features(0, 40), features(1, 30)
    bad = b.copy()
    bad[3, 3] = np.nan
    for arguments, options, message in (
        (
            (a, b),
            {"subset_size": 31},
            "subset_size is 31, expected at most 30, the rows of features_b",
        ),
        ((a, b), {}, "subset_size is 1000, expected at most 40, the rows of features_a"),
        ((a, b), {"subset_size": 1}, "subset_size is 1, expected at least 2"),
        ((a, b), {"subsets": 0}, "subsets is 0, expected at least 1"),
        ((a, b[:, :5]), {"subset_size": 9}, "features_b have 5 columns, expected 6"),
        (
            (a, bad),
            {"subset_size": 9},
            "features_b hold NaN or infinity in 1 of 30 rows, expected finite numbers",
        ),
    ):
        with pytest.raises(UserError, match=rf"^{message}$"):
            kid(*arguments, **options)
