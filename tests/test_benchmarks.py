import numpy as np
from sklearn.datasets import load_digits

from benchmarks.digits import scores


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
