import warnings

import numpy as np
import pytest
import scipy.linalg
from safetensors.numpy import load_file

from uvit_jax.errors import UserError
from uvit_jax.metrics.frechet import FrechetReference, frechet_bias, frechet_distance
from uvit_jax.metrics.moments import SplitMoments


def features(seed, n, width, decay=1.0, shift=0.0):
    """Rows whose covariance has the eigenvalues i^-decay, in a random basis."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(np.random.default_rng(99).standard_normal((width, width)))[0]
    return (
        rng.standard_normal((n, width)) * np.arange(1, width + 1) ** (-decay / 2)
    ) @ basis + shift


def gaussian(rows):
    return rows.mean(axis=0), np.cov(rows, rowvar=False)


def distance(a, b):
    return frechet_distance(*gaussian(a), *gaussian(b))


def from_the_rows(a, b):
    """The distance by the nuclear norm of the rows' product, which is Tr (A B)^(1/2)."""
    deviations = [(rows - rows.mean(axis=0)) / np.sqrt(len(rows) - 1) for rows in (a, b)]
    root = np.linalg.svd(deviations[0] @ deviations[1].T, compute_uv=False).sum()
    means = np.sum((a.mean(axis=0) - b.mean(axis=0)) ** 2)
    return means + sum(np.sum(rows**2) for rows in deviations) - 2 * root


def from_a_matrix_root(a, b):
    (mean_a, cov_a), (mean_b, cov_b) = gaussian(a), gaussian(b)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # singular products
        root = scipy.linalg.sqrtm(cov_a @ cov_b)
    return np.sum((mean_a - mean_b) ** 2) + np.trace(cov_a + cov_b) - 2 * np.trace(root).real


def test_golden_distance(golden_dir):
    golden = load_file(golden_dir / "frechet.safetensors")
    assert distance(golden["a"], golden["b"]) == pytest.approx(golden["distance"].item(), rel=1e-6)


def test_commuting_gaussians_have_a_closed_form():
    mean_a, mean_b = np.array([1.0, 2.0, 3.0]), np.array([0.0, 4.0, 3.0])
    variances_a, variances_b = np.array([4.0, 1.0, 0.0]), np.array([1.0, 1.0, 9.0])
    ours = frechet_distance(mean_a, np.diag(variances_a), mean_b, np.diag(variances_b))
    assert ours == pytest.approx(
        5 + np.sum((np.sqrt(variances_a) - np.sqrt(variances_b)) ** 2), rel=1e-14
    )


@pytest.mark.parametrize("decay", [0, 1, 3])
@pytest.mark.parametrize(
    ("n", "m", "width"), [(500, 400, 48), (30, 400, 48), (20, 30, 48), (2, 3, 48), (90, 300, 160)]
)
def test_full_and_deficient_covariances_agree_with_the_rows_and_with_the_matrix_root(
    n, m, width, decay
):
    a, b = features(0, n, width, decay), 1.1 * features(1, m, width, decay, shift=0.05)
    assert distance(a, b) == pytest.approx(from_the_rows(a, b), rel=1e-11)
    assert distance(b, a) == pytest.approx(distance(a, b), rel=1e-12)
    assert distance(a, b) == pytest.approx(
        from_a_matrix_root(a, b), rel=2e-6
    )  # the root's own error where singular


@pytest.mark.parametrize("n", [10, 1000])
def test_a_set_is_at_no_distance_from_itself(n):
    rows = features(0, n, 40)
    assert 0 <= distance(rows, rows) < 1e-12
    shuffled = np.random.default_rng(0).permutation(rows)  # the same but for rounding
    assert 0 <= distance(rows, shuffled) < 1e-11


def test_one_image_again_and_again_has_the_distance_of_its_mean_and_the_others_spread():
    rows, collapsed = features(0, 300, 24), np.ones((50, 24))
    expected = np.sum((rows.mean(axis=0) - 1) ** 2) + np.trace(np.cov(rows, rowvar=False))
    assert distance(rows, collapsed) == pytest.approx(expected, rel=1e-13)
    assert distance(collapsed, rows) == pytest.approx(expected, rel=1e-13)
    assert distance(collapsed, 2 * collapsed) == 24
    assert distance(collapsed, collapsed) == 0


def test_moments_stored_in_single_precision_are_taken():
    a, b = features(0, 20, 48), features(1, 400, 48, shift=0.1)
    mean, cov = (array.astype(np.float32) for array in gaussian(a))
    assert np.linalg.eigvalsh(cov.astype(np.float64))[0] < 0
    assert frechet_distance(mean, cov, *gaussian(b)) == pytest.approx(from_the_rows(a, b), rel=1e-2)


def test_one_reference_serves_many_and_keeps_its_numbers():
    a, b, c = features(0, 300, 16), features(1, 200, 16, shift=0.1), features(2, 10, 16)
    reference = FrechetReference(*gaussian(a))
    assert [reference.distance(*gaussian(rows)) for rows in (b, c, b)] == [
        distance(a, rows) for rows in (b, c, b)
    ]


def test_the_bias_is_what_a_larger_sample_has_less():
    width, n = 8, 400
    reference = FrechetReference(np.zeros(width), np.eye(width))
    distances, biases = [], []
    for seed in range(40):
        samples = SplitMoments(width)
        samples.update(np.random.default_rng(seed).standard_normal((n, width)), 0)
        distances.append(reference.distance(samples.whole.mean, samples.whole.covariance))
        biases.append(frechet_bias(reference, samples))
        assert frechet_bias(reference, samples, whole=distances[-1]) == biases[-1]
    # These are samples of the reference itself, whose distance would be 0: all of it is bias.
    assert np.mean(biases) == pytest.approx(np.mean(distances), rel=0.1)


def test_what_is_not_a_gaussian_is_refused():
    mean, cov = np.zeros(3), np.eye(3)
    reference = FrechetReference(mean, cov)
    crooked, wrong, nan = cov.copy(), cov.copy(), cov.copy()
    crooked[0, 1], wrong[2, 2], nan[1, 1] = 0.5, -1, np.nan
    for arguments, message in (
        ((np.zeros(4), np.eye(4)), "the compared mean has width 4, expected 3, the reference's"),
        (
            (mean, np.eye(4)),
            r"the compared covariance has shape \(4, 4\), expected \(3, 3\) as its mean",
        ),
        ((mean, nan), "the compared covariance holds NaN or infinity, expected finite numbers"),
        ((mean + np.inf, cov), "the compared mean holds NaN or infinity, expected finite numbers"),
        (
            (mean, crooked),
            "the compared covariance differs from its transpose by 0.5, expected symmetry",
        ),
        ((mean, wrong), "the compared covariance has the eigenvalue -1, expected none below 0"),
    ):
        with pytest.raises(UserError, match=rf"^{message}$"):
            reference.distance(*arguments)
        if "width" not in message:
            with pytest.raises(UserError, match=f"^{message.replace('compared', 'reference')}$"):
                FrechetReference(*arguments)
