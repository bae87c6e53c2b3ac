import jax
import numpy as np
import pytest
from PIL import Image

from uvit_jax.errors import UserError
from uvit_jax.models.frozen.resize import KINDS, resize, resize_matrix

# Height and width, and what they become: larger, smaller, both at once, odd, and a side of one
# pixel.
SIZES = [
    ((32, 32), (299, 299)),
    ((64, 48), (31, 20)),
    ((37, 51), (90, 20)),
    ((1, 7), (5, 3)),
    ((300, 299), (299, 300)),
]


def random_images(size, channels=2):
    return np.random.default_rng(0).uniform(0, 255, (2, *size, channels)).astype(np.float32)


@pytest.mark.parametrize(("before", "after"), SIZES)
def test_bicubic_is_what_pillow_makes_of_floats(before, after):
    x = random_images(before)
    planes = [[Image.fromarray(image[..., c], mode="F") for c in range(2)] for image in x]
    expected = [
        [np.asarray(p.resize(after[::-1], Image.Resampling.BICUBIC)) for p in image]
        for image in planes
    ]
    out = jax.jit(lambda x: resize(x, after, "bicubic_antialias"))(x)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, np.moveaxis(np.array(expected), 1, -1), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("before", "after"), SIZES[1:4])
def test_tensorflow_1_interpolates_without_half_pixel_centers(before, after):
    x = random_images(before)
    expected = np.zeros((2, *after, 2))
    for i, j in np.ndindex(*after):
        y, z = i * before[0] / after[0], j * before[1] / after[1]
        top, left = int(y), int(z)
        bottom, right = min(top + 1, before[0] - 1), min(left + 1, before[1] - 1)
        upper = x[:, top, left] * (1 - z + left) + x[:, top, right] * (z - left)
        lower = x[:, bottom, left] * (1 - z + left) + x[:, bottom, right] * (z - left)
        expected[:, i, j] = upper * (1 - y + top) + lower * (y - top)
    np.testing.assert_allclose(
        jax.jit(lambda x: resize(x, after, "bilinear_tf1"))(x), expected, atol=1e-3, rtol=0
    )


def test_the_two_bilinear_kinds_put_pixels_at_other_points():
    row = np.arange(4.0)
    np.testing.assert_allclose(
        resize_matrix(4, 8, "bilinear") @ row, [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]
    )
    np.testing.assert_allclose(
        resize_matrix(4, 8, "bilinear_tf1") @ row, [0, 0.5, 1, 1.5, 2, 2.5, 3, 3]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_weights_sum_to_one_and_the_same_size_is_the_same_image(kind):
    for size_in, size_out in ((7, 299), (299, 7), (512, 299), (1, 3), (3, 1)):
        np.testing.assert_allclose(
            resize_matrix(size_in, size_out, kind).sum(axis=1), 1, atol=1e-14
        )
    np.testing.assert_allclose(resize_matrix(37, 37, kind), np.eye(37), atol=1e-14)
    x = random_images((37, 20))
    np.testing.assert_array_equal(resize(jax.numpy.asarray(x), (37, 20), kind), x)


def test_a_matrix_that_every_caller_shares_cannot_be_written():
    matrix = resize_matrix(3, 5, "bilinear")
    assert resize_matrix(3, 5, "bilinear") is matrix
    with pytest.raises(ValueError, match="read-only"):
        matrix[0, 0] = 2


def test_another_kind_or_no_pixels_are_refused():
    with pytest.raises(
        UserError, match="kind is 'bicubic', expected one of 'bilinear', 'bilinear_tf1'"
    ):
        resize_matrix(3, 5, "bicubic")
    with pytest.raises(UserError, match="size_in is 0, expected at least 1"):
        resize_matrix(0, 5, "bilinear")


@pytest.mark.torch
@pytest.mark.parametrize(("before", "after"), SIZES)
def test_bilinear_is_what_torch_interpolates(before, after):
    torch = pytest.importorskip("torch")
    x = random_images(before)
    planes = torch.from_numpy(x.transpose(0, 3, 1, 2)).double()
    expected = torch.nn.functional.interpolate(
        planes, after, mode="bilinear", align_corners=False
    ).numpy()
    out = jax.jit(lambda x: resize(x, after, "bilinear"))(x)
    np.testing.assert_allclose(out, expected.transpose(0, 2, 3, 1), atol=1e-4, rtol=0)
