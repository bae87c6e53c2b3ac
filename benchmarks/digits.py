"""Quality of the digits run: agreement with the digit asked for, and distance to the data.

python benchmarks/digits.py runs/digits/samples/benchmark/samples.npz
"""

import argparse
import os
import pathlib

import numpy as np

from uvit_jax.data.image_sources.npz_images import open_npz_images
from uvit_jax.errors import UserError, run_script
from uvit_jax.extras import import_extra
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
    """Agreement of an SVM trained on real digits with the labels, and distance to real pixels.

    Args:
      images: uint8 `[n, 8, 8, 1]`.
      labels: the digits asked for, `[n]`.
    """
    asked = "agreement with the digits is an SVM's"
    data = import_extra("sklearn.datasets", "digits", asked).load_digits()
    svm = import_extra("sklearn.svm", "digits", asked).SVC()
    real = data.images.reshape(-1, 64) / 8 - 1
    samples = images.reshape(-1, 64) / 127.5 - 1
    order = np.random.default_rng(0).permutation(len(real))
    half = len(real) // 2
    return {
        "svm_agreement": float(np.mean(svm.fit(real, data.target).predict(samples) == labels)),
        "frechet_distance": distance(samples, real),
        "frechet_distance_of_two_halves_of_the_data": distance(
            real[order[:half]], real[order[half:]]
        ),
    }


def read(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Images and the digits asked for, of an .npz that the job `sample` or `evaluate` has written.

    Raises:
      UserError: for a file that is none of them, or of other images.
    """
    found = open_npz_images(path)
    if found.shape[1:] != (8, 8, 1):
        raise UserError(
            f"{path} holds images of shape {found.shape[1:]}, expected digits, (8, 8, 1)"
        )
    name = {"images": "labels", "arr_0": "arr_1"}[found.entry]
    with np.load(path) as saved:
        labels = saved[name] if name in saved else np.empty(0)
    if labels.shape != found.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"{path} has {name} of shape {labels.shape}, expected a digit of each image"
        )
    return np.concatenate(list(found.batches(0, 1000))), labels


def main() -> None:
    """Prints the scores of an .npz of samples."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "samples", help=".npz of --config.sample.format=npz, or of --config.evaluate.save=npz"
    )
    parser.add_argument("--figures", help="a JSON file of figures, as docs/figures.json")
    options = parser.parse_args()
    images, labels = read(pathlib.Path(options.samples))
    print(f"{len(images)} samples, {np.bincount(labels).tolist()} of each digit")
    found = scores(images, labels)
    for name, value in found.items():
        print(f"{name:45s} {value:.3f}")
    if options.figures:
        from figures import record  # beside this script, which tests import from elsewhere

        figures = {
            "digits.svm_agreement": (100 * found["svm_agreement"], "%"),
            "digits.frechet_distance": (found["frechet_distance"], "squared pixel units"),
            "digits.halves_distance": (
                found["frechet_distance_of_two_halves_of_the_data"],
                "squared pixel units",
            ),
        }
        record(options.figures, f"{os.cpu_count()} CPU cores", figures)


if __name__ == "__main__":
    run_script(main)
