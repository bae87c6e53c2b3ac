import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvit_jax.errors import UserError
from uvit_jax.metrics import precision_recall as module
from uvit_jax.metrics.precision_recall import density_coverage, precision_recall


def features(seed, n, shift=0.0, width=5):
    return (np.random.default_rng(seed).standard_normal((n, width)) + shift).astype(np.float32)


def distances(x, y):
    return np.sqrt(((x.astype(np.float64)[:, None] - y.astype(np.float64)[None]) ** 2).sum(axis=-1))


def inside(points, centres, k):
    """True for each point inside each centre's ball."""
    own = distances(centres, centres)
    np.fill_diagonal(own, np.inf)
    return distances(points, centres) <= np.sort(own, axis=1)[:, k - 1]


def check(real, fake, k=3):
    expected = inside(fake, real, k).any(axis=1).mean(), inside(real, fake, k).any(axis=1).mean()
    np.testing.assert_allclose(precision_recall(real, fake, k), expected, rtol=1e-12)
    balls = inside(fake, real, k)
    expected = balls.sum() / (k * len(fake)), balls.any(axis=0).mean()
    np.testing.assert_allclose(density_coverage(real, fake, k), expected, rtol=1e-12)


@pytest.fixture(params=[2**24, 1100])
def blocks(request, monkeypatch):
    """The whole in one block, and blocks of a few rows, the last one not full."""
    monkeypatch.setattr(module, "_BLOCK_ENTRIES", request.param)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("shift", [0.0, 0.7, 5.0])
def test_numbers_are_those_of_the_definition(blocks, k, shift):
    check(features(0, 211), features(1, 150, shift), k)


def test_few_samples_are_all_each_others_neighbours(blocks):
    check(features(0, 4), features(1, 4, 0.5))
    check(features(0, 2), features(1, 2), k=1)


@pytest.mark.parametrize("offset", [0.0, 100.0, 1e5])
def test_fakes_identical_to_real_samples_lie_on_rims_and_count(blocks, offset):
    real = features(0, 211) + np.float32(
        offset
    )  # far away, |x|^2 + |y|^2 - 2 x.y has lost most digits
    check(real, real)
    check(real, real[::-1][:90])
    check(real, np.concatenate([real[:40], features(1, 60) + np.float32(offset)]))
    assert density_coverage(real, real, k=5) == pytest.approx((6 / 5, 1))  # oneself and five others


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_duplicates_have_balls_of_no_radius_that_hold_themselves_alone(blocks, offset):
    real = features(0, 100) + np.float32(offset)
    real[10:20] = real[10]
    near = real[10:11].copy()
    near[0, 0] = np.nextafter(near[0, 0], np.float32(np.inf))  # the closest one can be
    check(real, np.concatenate([features(1, 50) + np.float32(offset), real[10:12], near]))
    check(real, np.repeat(real[10:11], 30, axis=0))
    check(real[10:20], np.repeat(near, 30, axis=0))
    assert precision_recall(real[10:20], np.repeat(near, 30, axis=0)) == (0, 0)


def clusters(seed, n, count=2, width=1024):
    """Samples one float32 apart, in clusters too far from each other for a common centre."""
    rng = np.random.default_rng(seed)
    rows = (
        np.random.default_rng(99)
        .uniform(512, 1024, (count, width))
        .astype(np.float32)[np.arange(n) % count]
    )
    rows[:, :5] += np.spacing(np.float32(512)) * rng.integers(0, 4, (n, 5)).astype(np.float32)
    return rows


def test_neighbours_an_ulp_apart_are_separated_in_clusters_far_from_each_other(blocks):
    real, k = clusters(0, 80), 3
    squared = ((real.astype(np.float64)[:, None] - real) ** 2).sum(axis=-1)
    np.fill_diagonal(squared, np.inf)
    np.testing.assert_array_equal(module._radii(real, k), np.sort(squared, axis=1)[:, k - 1])
    check(real, np.concatenate([clusters(1, 30), clusters(0, 10)[::-1]]), k)


def test_an_outlier_does_not_hide_the_others_neighbours(blocks):
    real, fake = (1 + 1e-7 * features(seed, n) for seed, n in ((0, 150), (1, 100)))
    check(
        np.concatenate([real, np.full((1, 5), 1e6, np.float32)]).astype(np.float32),
        fake.astype(np.float32),
    )


def test_collapsed_samples_are_precise_and_recall_what_they_copy(blocks):
    real = features(0, 100)
    collapsed = np.repeat(real[:1], 80, axis=0)
    assert precision_recall(real, collapsed) == (1, 0.01)
    assert precision_recall(real, collapsed + np.float32(100)) == (0, 0)
    assert density_coverage(collapsed, collapsed) == (80 / 5, 1)
    check(real, collapsed)


def test_whole_numbers_tie_everywhere(blocks):
    rng = np.random.default_rng(0)
    check(*(rng.integers(0, 3, (n, 4)).astype(np.float32) for n in (120, 90)))


def test_one_program_serves_all_blocks_and_the_default_precision_stays(monkeypatch):
    monkeypatch.setattr(module, "_BLOCK_ENTRIES", 500)
    module._compare.clear_cache()
    precision_recall(features(0, 101), features(1, 53))
    assert module._compare._cache_size() == 1
    for _ in module._memberships(*[features(0, 9)] * 2, np.ones(9), np.ones(9)):
        assert jnp.ones(1).dtype == jnp.float32
    assert not jax.config.jax_enable_x64


def test_bad_input_is_refused():
    real, fake = features(0, 20), features(1, 20)
    bad = fake.copy()
    bad[4] = np.inf
    for call in (precision_recall, density_coverage):
        for arguments, message in (
            ((real[:3], fake, 3), "there are 3 real samples, expected at least 4 for k = 3"),
            ((real, fake, 0), "k is 0, expected at least 1"),
            ((real, fake[:, :4]), "fake features have 4 columns, expected 5"),
            (
                (real, bad),
                "fake features hold NaN or infinity in 1 of 20 rows, expected finite numbers",
            ),
        ):
            with pytest.raises(UserError, match=rf"^{message}$"):
                call(*arguments)
    with pytest.raises(
        UserError, match=r"^there are 3 fake samples, expected at least 4 for k = 3$"
    ):
        precision_recall(real, fake[:3])
    assert density_coverage(real, fake[:1])[0] >= 0
