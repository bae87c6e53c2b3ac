"""How good the digits run is: do its samples read as the digit asked for, and are they as varied as the data?

python benchmarks/digits.py runs/digits/samples/benchmark/samples.npz
"""

import argparse

import numpy as np
from sklearn.datasets import load_digits
from sklearn.svm import SVC

from uvit_jax.metrics.frechet import frechet_distance
from uvit_jax.metrics.moments import Moments


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Frechet distance of two sets of vectors `[n, d]`."""
    moments = []
    for vectors in (a, b):
        moments.append(Moments(vectors.shape[1]))
        moments[-1].update(vectors)
    one, other = moments
    return frechet_distance(one.mean, one.covariance, other.mean, other.covariance)


def scores(images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Agreement of an SVM trained on the real digits with the asked labels, and the distance to the real pixels.

    Args:
      images: uint8 `[n, 8, 8, 1]`.
      labels: the digits asked for, `[n]`.
    """
    data = load_digits()
    real = data.images.reshape(-1, 64) / 8 - 1
    samples = images.reshape(-1, 64) / 127.5 - 1
    order = np.random.default_rng(0).permutation(len(real))
    half = len(real) // 2
    return {
        "svm_agreement": float(np.mean(SVC().fit(real, data.target).predict(samples) == labels)),
        "frechet_distance": distance(samples, real),
        "frechet_distance_of_two_halves_of_the_data": distance(real[order[:half]], real[order[half:]]),
    }


def main() -> None:
    """Prints the scores of an .npz of samples."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples", help=".npz with images and labels, from --job sample --config.sample.format=npz")
    samples = np.load(parser.parse_args().samples)
    print(f"{len(samples['images'])} samples, {np.bincount(samples['labels']).tolist()} of each digit")
    for name, value in scores(samples["images"], samples["labels"]).items():
        print(f"{name:45s} {value:.3f}")


if __name__ == "__main__":
    main()
