import numpy as np
import pytest
from scipy import linalg
from sklearn.datasets import load_digits

from benchmarks.digits import frechet_distance, scores


def test_frechet_distance_is_the_published_formula():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(300, 6)) @ rng.normal(size=(6, 6)), rng.normal(1.0, 2.0, size=(200, 6))
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = linalg.sqrtm(cov_a @ cov_b).real
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(cov_a + cov_b - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-8)


def test_scores_tell_real_digits_from_collapsed_and_mislabelled_ones():
    data = load_digits()
    images = np.round(data.images * 255 / 16).astype(np.uint8)[..., None]
    real = scores(images, data.target)
    assert real["svm_agreement"] > 0.99
    assert real["frechet_distance"] < 0.01
    assert 0.2 < real["frechet_distance_of_two_halves_of_the_data"] < 0.4
    assert scores(images, (data.target + 1) % 10)["svm_agreement"] < 0.01
    collapsed = np.repeat(images[:10], 180, axis=0)[: len(images)]
    assert scores(collapsed, np.repeat(data.target[:10], 180)[: len(images)])["frechet_distance"] > 1.2
