"""Crops against the official code's, whose results with Pillow 13 are kept as CRC-32s."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from tests.conftest import SHARED
from uvit_jax.data.image_sources.crops import CROPS, crop_channels
from uvit_jax.errors import UserError


def crc(array: np.ndarray, start: int = 0) -> int:
    return zlib.crc32(np.ascontiguousarray(array).tobytes(), start)


def pattern(height: int, width: int) -> np.ndarray:
    y, x = np.indices((height, width))
    return np.stack([(x * 7 + y * 3) % 256, (x * y) % 256, (x * x // 3 + y) % 256], -1).astype(
        np.uint8
    )


@pytest.mark.parametrize(
    ("crop", "height", "width", "size", "expected"),
    [
        ("adm", 333, 500, 64, 910833566),
        ("adm", 500, 333, 256, 2460342755),
        ("adm", 97, 200, 64, 1985615762),
        ("adm", 128, 128, 64, 1854987815),  # exactly twice: halved
        ("adm", 127, 128, 64, 377107154),  # just below: not
        ("adm", 30, 41, 64, 3216374589),  # enlarged
        ("adm", 1025, 769, 256, 2561218713),
        ("lanczos", 333, 500, 64, 4208924212),
        ("lanczos", 500, 333, 256, 1667465461),
        ("lanczos", 31, 40, 64, 1201302927),
        ("celeba", 218, 178, 64, 75833803),
        ("celeba", 218, 178, 128, 3923642614),
    ],
)
def test_crops_of_synthetic_pictures_are_the_references_pixels(crop, height, width, size, expected):
    assert crc(pattern(333, 500)) == 2213773339
    cropped = CROPS[crop](pattern(height, width), size)
    assert (cropped.shape, cropped.dtype) == ((size, size, 3), np.uint8)
    assert crc(cropped) == expected


@pytest.mark.parametrize(
    ("photograph", "crop", "size", "expected"),
    [
        (0, "adm", 64, 1846306779),
        (0, "adm", 256, 17993321),
        (0, "adm", 512, 2844111769),
        (0, "lanczos", 256, 2108722664),
        (1, "adm", 64, 3773821751),
        (1, "adm", 256, 3755975772),
        (1, "adm", 512, 1884160882),
        (1, "lanczos", 256, 4160773703),
    ],
)
def test_crops_of_photographs_are_the_references_pixels(photograph, crop, size, expected):
    image = load_sample_images().images[photograph]
    if crc(image) != (2377051267, 2867565543)[photograph]:
        pytest.skip("this JPEG decoder rounds otherwise than the one the reference ran with")
    assert crc(CROPS[crop](image, size)) == expected


@pytest.mark.parametrize(
    ("crop", "size", "expected"),
    [
        ("adm", 64, 2301396377),
        ("adm", 256, 2375718858),
        ("adm", 512, 1806879513),
        ("lanczos", 256, 1153626348),
    ],
)
def test_crops_of_imagenets_files_are_the_references_pixels(crop, size, expected):
    files = sorted((SHARED / "data" / "imagenet-folder" / "train").glob("*/*.JPEG"))
    if not files:
        pytest.skip(
            f"no ImageNet files at {SHARED}/data (set UVIT_JAX_SHARED to the folder that holds "
            f"data/)"
        )
    decoded = result = 0
    for file in files:
        image = np.asarray(Image.open(io.BytesIO(file.read_bytes())).convert("RGB"))
        decoded, result = crc(image, decoded), crc(CROPS[crop](image, size), result)
    if decoded != 1772640589:
        pytest.skip("this JPEG decoder rounds otherwise than the one the reference ran with")
    assert result == expected


def marked(height: int, width: int, scale: int, rows: slice, columns: slice) -> np.ndarray:
    """A picture of scale x scale cells, white within these cells and black elsewhere."""
    cells = np.zeros((height, width, 3), np.uint8)
    cells[rows, columns] = 255
    return cells.repeat(scale, 0).repeat(scale, 1)


def test_adm_takes_the_centre_and_leaves_the_odd_pixel_right_and_below():
    # Halved twice by boxes of equal pixels and resized to the size it has: cells come back as they
    # were.
    wide = marked(8, 13, 4, slice(0, 8), slice(2, 10))
    assert (CROPS["adm"](wide, 8) == 255).all()
    tall = marked(13, 8, 4, slice(2, 10), slice(0, 8))
    assert (CROPS["adm"](tall, 8) == 255).all()
    assert not (CROPS["adm"](marked(8, 13, 4, slice(0, 8), slice(3, 11)), 8) == 255).all()


def test_lanczos_takes_the_centre_square_before_it_resizes():
    image = marked(8, 13, 1, slice(0, 8), slice(2, 10))
    assert (CROPS["lanczos"](image, 8) == 255).all()
    assert (CROPS["lanczos"](image, 32) == 255).all()


def test_celeba_takes_128_pixels_around_row_121_and_column_89():
    image = np.zeros((218, 178, 3), np.uint8)
    image[121 - 64 : 121 + 64, 89 - 64 : 89 + 64] = pattern(128, 128)
    np.testing.assert_array_equal(CROPS["celeba"](image, 128), pattern(128, 128))
    # Bilinear to half the size is the triangle of Pillow: weights 1, 3, 3, 1 in both directions.
    halved = CROPS["celeba"](image, 64)[5, 7].astype(float)
    weights = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64
    neighbours = pattern(128, 128)[2 * 5 - 1 : 2 * 5 + 3, 2 * 7 - 1 : 2 * 7 + 3].astype(float)
    np.testing.assert_allclose(halved, np.einsum("yx,yxc->c", weights, neighbours), atol=1.0)


@pytest.mark.parametrize(
    ("crop", "height", "width"), [("adm", 40, 60), ("lanczos", 40, 60), ("celeba", 218, 178)]
)
def test_a_grey_picture_is_cropped_as_each_channel_of_a_colour_one(crop, height, width):
    image = pattern(height, width)
    grey = CROPS[crop](image[..., :1], 16)
    assert grey.shape == (16, 16, 1)
    np.testing.assert_array_equal(grey[..., 0], CROPS[crop](image, 16)[..., 0])


def test_none_keeps_a_picture_of_the_size_and_refuses_others():
    np.testing.assert_array_equal(CROPS["none"](pattern(32, 32), 32), pattern(32, 32))
    with pytest.raises(
        UserError,
        match=r"^crop 'none' got an image of 48x32 pixels, expected 32x32.*'adm', 'celeba'",
    ):
        CROPS["none"](pattern(32, 48), 32)


def test_celeba_refuses_pictures_that_are_not_aligned():
    with pytest.raises(
        UserError, match=r"^crop 'celeba' got an image of 218x178 pixels, expected 178x218"
    ):
        CROPS["celeba"](pattern(178, 218), 64)


def test_channels_that_are_neither_grey_nor_rgb_are_refused():
    with pytest.raises(
        UserError, match=r"^an image has 4 channels, expected 1 \(grey\) or 3 \(RGB\)$"
    ):
        CROPS["adm"](np.zeros((8, 8, 4), np.uint8), 8)


@pytest.mark.parametrize("crop", ["adm", "lanczos"])
@pytest.mark.parametrize("height_width", [(8, 16), (16, 8), (9, 12)])
def test_other_than_squares_are_the_centre_that_covers_them(crop, height_width):
    image = np.full((60, 90, 3), 7, np.uint8)
    height, width = height_width
    # A bright frame outside the largest centre of these proportions must not be seen.
    scale = min(60 / height, 90 / width)
    rows, columns = round(height * scale), round(width * scale)
    image[: (60 - rows) // 2] = image[(60 - rows) // 2 + rows :] = 255
    image[:, : (90 - columns) // 2] = image[:, (90 - columns) // 2 + columns :] = 255
    cropped = CROPS[crop](image, height_width)
    assert cropped.shape == (height, width, 3)
    inside = cropped[3:-3, 3:-3] if crop == "adm" else cropped  # Bicubic looks beyond the edge.
    assert (inside == 7).all()


def test_a_picture_of_the_wanted_proportions_is_resized_whole():
    image = pattern(32, 64)
    halved = np.asarray(Image.fromarray(image).resize((32, 16), Image.Resampling.BOX))
    np.testing.assert_array_equal(CROPS["adm"](image, (16, 32)), halved)
    np.testing.assert_array_equal(CROPS["none"](image, (32, 64)), image)


def test_celeba_and_none_refuse_what_they_cannot_make():
    with pytest.raises(
        UserError, match=r"^crop 'celeba' makes squares, expected another crop for 8x16$"
    ):
        CROPS["celeba"](pattern(218, 178), (8, 16))
    with pytest.raises(UserError, match=r"^crop 'none' got an image of 16x8 pixels, expected 8x16"):
        CROPS["none"](pattern(8, 16), (16, 8))


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_of_other_channels_than_grey_or_rgb_each_is_cropped_as_grey(channels):
    image = np.random.default_rng(0).integers(0, 256, (40, 30, channels), np.uint8)
    cropped = crop_channels(CROPS["adm"], image, 16)
    for i in range(channels):
        np.testing.assert_array_equal(
            cropped[..., i : i + 1], CROPS["adm"](image[..., i : i + 1], 16)
        )
