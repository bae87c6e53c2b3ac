import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, features

from uvit_jax.data.image_sources.decoding import Decoding, decode
from uvit_jax.data.image_sources.image_source import CorruptImage
from uvit_jax.errors import UserError


def encoded(image: Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def picture(height: int = 60, width: int = 90) -> Image.Image:
    y, x = np.indices((height, width))
    noise = np.random.default_rng(0).integers(0, 30, (height, width, 3))
    return Image.fromarray((np.stack([x * 2, y * 3, x + y], -1) + noise).astype(np.uint8))


FORMATS = [
    ("JPEG", {}),
    ("JPEG", {"progressive": True}),
    ("PNG", {}),
    ("WEBP", {}),
    ("GIF", {}),
    ("BMP", {}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
]


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_every_mode_of_a_jpeg_becomes_rgb_as_pillow_converts_it(mode):
    data = encoded(picture().convert(mode), "JPEG")
    assert Image.open(io.BytesIO(data)).mode == mode
    image = decode(data, "a.jpg")
    assert (image.shape, image.dtype) == ((60, 90, 3), np.uint8)
    np.testing.assert_array_equal(image, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("mode", ["P", "LA", "RGBA", "1"])
def test_palettes_and_transparency_become_rgb(mode):
    data = encoded(picture().convert(mode), "PNG")
    np.testing.assert_array_equal(
        decode(data, "a.png"), np.asarray(picture().convert(mode).convert("RGB"))
    )


def test_sixteen_bits_keep_their_upper_eight():
    values = np.arange(60 * 90, dtype=np.uint16).reshape(60, 90) * 12
    image = decode(encoded(Image.fromarray(values), "PNG"), "a.png")
    np.testing.assert_array_equal(
        image, np.repeat((values >> 8).astype(np.uint8)[..., None], 3, -1)
    )
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(values), "TIFF"), "a.tif"), image)
    rgb = np.stack([values, values[::-1], values[:, ::-1]], -1)
    np.testing.assert_array_equal(
        decode(png_of_16_bit_rgb(rgb), "a.png"), (rgb >> 8).astype(np.uint8)
    )


def png_of_16_bit_rgb(rgb: np.ndarray) -> bytes:
    """Pillow writes none."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rgb)
    header = struct.pack(">IIBBBBB", rgb.shape[1], rgb.shape[0], 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_the_exif_orientation_is_left_alone():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(encoded(picture(), "JPEG", exif=exif), "a.jpg").shape == (60, 90, 3)


def test_one_channel_is_grey():
    image = decode(encoded(picture().convert("L"), "PNG"), "a.png", Decoding(channels=1))
    np.testing.assert_array_equal(image[..., 0], np.asarray(picture().convert("L")))


@pytest.mark.parametrize(("format", "options"), FORMATS)
def test_a_file_cut_anywhere_is_corrupt_unless_all_its_pixels_are_there(format, options):
    data = encoded(picture(), format, **options)
    whole = decode(data, "a")
    faults = []
    for length in [*range(0, len(data), len(data) // 40), *range(len(data) - 4, len(data))]:
        try:
            np.testing.assert_array_equal(decode(data[:length], "folder/a.jpg"), whole)
        except CorruptImage as error:
            faults.append(str(error))
    assert len(faults) >= 40
    for fault in faults:
        assert fault.startswith("folder/a.jpg ")
        assert "\n" not in fault
        assert "object at 0x" not in fault


def test_a_png_whose_end_was_never_written_is_corrupt():
    data = encoded(picture(), "PNG")
    with pytest.raises(CorruptImage, match=r"^a\.png can't be decoded"):
        decode(data[: len(data) // 2] + bytes(len(data) - len(data) // 2), "a.png")


def test_a_file_that_is_not_an_image_is_corrupt():
    with pytest.raises(
        CorruptImage, match=r"^a\.jpg starts with the bytes b'<html><h', expected an image"
    ):
        decode(b"<html><head>", "a.jpg")
    with pytest.raises(CorruptImage, match=r"^a\.jpg is empty, expected an image$"):
        decode(b"", "a.jpg")


def test_pixels_of_unknown_range_are_refused():
    data = encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")
    with pytest.raises(CorruptImage, match=r"32-bit pixels \(mode F\)"):
        decode(data, "a.tif")


def test_a_picture_that_claims_to_be_enormous_is_refused_by_the_field_that_allows_it():
    said = (
        r"^a\.jpg has 90x60 = 5,400 pixels, expected at most 5,399, as "
        r"config\.prepare\.max_pixels allows$"
    )
    limited = Decoding(max_pixels=5399, max_pixels_field="config.prepare.max_pixels")
    with pytest.raises(CorruptImage, match=said):
        decode(encoded(picture(), "JPEG"), "a.jpg", limited)


@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "GIF"])
def test_a_scan_above_pillows_bound_is_read_without_a_warning_and_the_bound_is_left_as_it_was(
    format, monkeypatch
):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert decode(encoded(picture(), format), "a").shape == (60, 90, 3)
    assert Image.MAX_IMAGE_PIXELS == 1000


@pytest.mark.parametrize("compressed", [True, False])
def test_long_texts_and_profiles_of_a_png_are_not_read(compressed):
    info = PngImagePlugin.PngInfo()
    info.add_text("note", "x" * 3_000_000, zip=compressed)
    info.add_itxt("long", "y" * 3_000_000, zip=compressed)
    data = encoded(picture(), "PNG", pnginfo=info, icc_profile=b"z" * 3_000_000)
    np.testing.assert_array_equal(decode(data, "a.png"), np.asarray(picture()))


@pytest.mark.parametrize("format", ["EPS", "ICO", "TGA"])
def test_no_format_outside_the_list_is_tried_whatever_the_file_is_called(format):
    # Ghostscript would be started for an EPS.
    with pytest.raises(
        CorruptImage,
        match=r"^cat\.jpg starts with the bytes .*, expected an image that Pillow knows$",
    ):
        decode(encoded(picture(), format), "cat.jpg")


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow was built without AVIF")
def test_avif_is_read():
    data = encoded(picture(), "AVIF")
    np.testing.assert_array_equal(
        decode(data, "a.avif"), np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    )


def test_the_exif_orientation_is_followed_where_it_is_asked_for():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(picture(), "PNG", exif=exif)
    np.testing.assert_array_equal(
        decode(data, "a.png", Decoding(exif=True)), np.rot90(np.asarray(picture()), -1)
    )


@pytest.mark.parametrize(("mode", "channels"), [("RGBA", 4), ("LA", 2)])
def test_transparency_is_kept_where_as_many_channels_are_asked_for(mode, channels):
    clear = picture().convert(mode)
    clear.putalpha(picture().convert("L"))
    image = decode(encoded(clear, "PNG"), "a.png", Decoding(channels))
    np.testing.assert_array_equal(image, np.asarray(clear))
    with pytest.raises(
        UserError, match=rf"^a\.png has no transparency \(mode RGB\), expected {channels} channels"
    ):
        decode(encoded(picture(), "PNG"), "a.png", Decoding(channels))
