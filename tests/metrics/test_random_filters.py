import functools
import io
import itertools
import tarfile

import jax
import numpy as np
import pytest
from PIL import Image

from tests.conftest import SHARED
from uvit_jax.data.training_data import digits
from uvit_jax.errors import UserError
from uvit_jax.metrics.feature_network import Extraction
from uvit_jax.metrics.frechet import frechet_distance
from uvit_jax.metrics.moments import Moments
from uvit_jax.metrics.random_filters import random_filters
from uvit_jax.parallel.mesh import MeshConfig, make_mesh
from uvit_jax.telemetry.images import to_uint8

COLUMNS = [0, 6, 13, 20, 27]
CIFAR = SHARED / "data" / "cifar10-jpeg.tar.xz"


@functools.cache
def extraction():
    return Extraction(
        random_filters(), make_mesh(MeshConfig(), jax.devices()[:1]), ["pool"], chunk=64
    )


def features_of(images):
    return extraction()(images)["pool"]


def distance(one, other):
    """The Frechet distance of two sets of images."""
    moments = []
    for images in (one, other):
        made = Moments(336)
        made.update(features_of(images))
        moments += [made.mean, made.covariance]
    return frechet_distance(*moments)


def noisy(images, sigma):
    """Adds Gaussian noise of deviation `sigma` to pixels in [-1, 1]; 8 bits again."""
    noise = sigma * np.random.default_rng(1).standard_normal(images.shape)
    return to_uint8((images / 127.5 - 1 + noise).astype(np.float32))


def blurred(images):
    """Every pixel the mean of itself and its right and lower neighbours."""
    x = images.astype(np.float32)
    x = (x + np.roll(x, 1, 1) + np.roll(x, 1, 2) + np.roll(x, (1, 1), (1, 2))) / 4
    return (x + 0.5).astype(np.uint8)


def check_order(images, labels):
    """That the worse a set is made, the further it is from the other half of the real images."""
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = images[order], labels[order]
    half = len(images) // 2
    real, other, other_labels = images[:half], images[half:], labels[half:]
    # One image of each class, again and again: each is real, the set is not.
    few = other[[np.flatnonzero(other_labels == label)[0] for label in range(10)]]
    sets = {
        "other half": other,
        "noise 0.05": noisy(other, 0.05),
        "noise 0.1": noisy(other, 0.1),
        "collapsed": few[np.arange(half) % 10],
    }
    found = {name: distance(real, made) for name, made in sets.items()}
    found |= {
        "noise 0.2": distance(real, noisy(other, 0.2)),
        "blurred": distance(real, blurred(other)),
    }
    values = [found[name] for name in sets]
    assert values == sorted(values), found
    assert found["noise 0.1"] < found["noise 0.2"]
    assert found["other half"] < 0.5 * found["blurred"]
    assert found["other half"] < 0.1 * found["collapsed"]
    assert distance(real, real) < 1e-3 * found["other half"]


def test_digits_are_further_the_worse_they_are():
    source = digits()
    check_order(to_uint8(source.images), source.labels)


@pytest.mark.slow
def test_cifar_images_are_further_the_worse_they_are():
    if not CIFAR.is_file():
        pytest.skip(f"no CIFAR-10 at {CIFAR} (set UVIT_JAX_SHARED to the folder that holds data/)")
    images, classes = [], []
    with tarfile.open(CIFAR) as archive:
        members = (
            member for member in archive if member.name.startswith("train/") and member.isfile()
        )
        for number, member in enumerate(members):
            if number % 10 == 0:
                images.append(
                    np.asarray(
                        Image.open(io.BytesIO(archive.extractfile(member).read())).convert("RGB")
                    )
                )
                classes.append(member.name.split("/")[1])
    assert len(images) == 5000
    check_order(np.stack(images), np.unique(classes, return_inverse=True)[1])


def test_the_weights_are_these():
    network = random_filters()
    assert network.identity == {
        "name": "own features v1",
        "sha256": "82802ae449356ded68cb915184eda924ae3c7bc7f0beb1f3c9012587ff480b6f",
        "resize": "none",
        "dtype": "float32",
    }
    assert network.prefix == "own_feature_"
    assert network.widths == {"pool": 336}


def test_the_features_are_these():
    # Of the network, which no hash of the weights covers; a change of it needs another name.
    y, x, c = np.indices((20, 27, 3))
    image = ((np.sin(x / 3) + np.cos(y * (c + 1) / 5) + 2) * 63).astype(np.uint8)
    found = features_of(image[None])[0]
    expected = [0.73019624, -0.12425766, 0.13053229, 0.06745785, 0.09631175]
    expected += [0.12998638, 0.32997343, 0.05063803, 0.05131406, 0.11848451]
    np.testing.assert_allclose(
        found[[0, 17, 47, 48, 60, 64, 79, 80, 200, 335]], expected, rtol=1e-4, atol=1e-5
    )
    # The first 48 are the mean colours of a grid of 4x4.
    cells = [
        image[top : top + 5, left:right]
        for top in (0, 5, 10, 15)
        for left, right in itertools.pairwise(COLUMNS)
    ]
    np.testing.assert_allclose(
        found[:48], np.ravel([cell.mean((0, 1)) / 127.5 - 1 for cell in cells]), atol=1e-5
    )


@pytest.mark.parametrize("size", [(8, 8), (9, 11), (33, 40), (64, 8), (100, 256)])
def test_images_of_any_size_have_finite_features(size):
    images = np.random.default_rng(0).integers(256, size=(2, *size, 3), dtype=np.uint8)
    images[1] = 77
    found = features_of(images)
    assert found.shape == (2, 336)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    assert np.abs(found[0] - found[1]).max() > 0.1


@pytest.mark.parametrize("size", [(7, 8), (8, 7), (1, 1)])
def test_too_small_images_are_refused(size):
    message = rf"^the images are {size[0]}x{size[1]}, expected at least 8x8 for own features v1"
    with pytest.raises(UserError, match=message):
        features_of(np.zeros((2, *size, 3), np.uint8))


def test_a_grey_image_is_the_same_in_rgb():
    grey = np.random.default_rng(0).integers(256, size=(5, 16, 16, 1), dtype=np.uint8)
    np.testing.assert_array_equal(features_of(grey), features_of(np.repeat(grey, 3, axis=-1)))


def test_flat_images_of_one_colour_differ_in_colour_alone():
    flat = np.broadcast_to(np.array([3, 130, 250], np.uint8)[:, None, None, None], (3, 16, 16, 3))
    texture = features_of(flat)[:, 48:80]
    np.testing.assert_allclose(texture, 0.01, rtol=1e-4)


def test_a_half_of_the_classes_differs_from_all():
    source = digits()
    images, labels = to_uint8(source.images), source.labels
    even, odd = np.arange(len(images)) % 2 == 0, np.arange(len(images)) % 2 == 1
    same = distance(images[even], images[odd])
    assert distance(images[even], images[odd & (labels < 5)]) > 3 * same
