"""Decodes one image file: from its bytes to pixels, or an error that says what is wrong."""

import contextlib
import dataclasses
import io
import threading
from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from uvit_jax.data.image_formats import formats
from uvit_jax.data.image_sources.image_source import CorruptImage
from uvit_jax.errors import UserError

# Pillow's own bound, above which it suspects a decompression bomb: twice 2^30 / 12.
MAX_PIXELS = 178_956_970
# Chunks of a PNG that don't change its pixels: texts, and the ICC profile, which `convert` doesn't
# apply. Unpacked they may be of any length.
_PNG_NOTES = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
_ALPHA_MODES = {2: "LA", 4: "RGBA"}


@dataclasses.dataclass(frozen=True)
class Decoding:
    """Settings by which image files become pixels.

    Attributes:
      channels: 3 for RGB and 1 for grey, whatever the file has; 4 for RGB and 2 for grey with the
        file's own alpha.
      max_pixels: height times width of the largest picture that is decoded.
      exif: True turns a picture as its EXIF orientation says. No published data set was.
      channels_field: the setting that `channels` comes from, for errors.
      max_pixels_field: the setting that `max_pixels` comes from.
    """

    channels: int = 3
    max_pixels: int = MAX_PIXELS
    exif: bool = False
    channels_field: str = "channels"
    max_pixels_field: str = "max_pixels"


RGB = Decoding()


def decode(data: bytes, name: str, decoding: Decoding = RGB) -> UInt8[np.ndarray, "h w c"]:
    """The pixels of an image file (an animation's first frame), as Pillow converts them.

    By default grey, CMYK and palette images become RGB and transparency is dropped; 16 bits a
    channel become their upper 8. Texts and colour profiles in the file are not read, however long
    they are.

    Args:
      data: the whole file, of one of `image_formats.formats`.
      name: the file's name for errors.
      decoding: the channels wanted, the largest picture allowed, and if EXIF's orientation is
        followed.

    Raises:
      CorruptImage: for a file that is not an image, is cut short or damaged, or larger than
        allowed. JPEG, WebP and BMP carry no checksums: altered pixels inside a file of full length
        go unnoticed.
      UserError: for a file without the alpha that is asked for.
    """
    if not data:
        raise CorruptImage(f"{name} is empty, expected an image")
    pixels = _without_notes(data)
    try:
        with _pillow_without_bound():
            with Image.open(io.BytesIO(pixels), formats=formats()) as picture:
                width, height = picture.size
                if width * height > decoding.max_pixels:
                    raise CorruptImage(
                        f"{name} has {width}x{height} = {width * height:,} pixels, expected at "
                        f"most {decoding.max_pixels:,}, as {decoding.max_pixels_field} allows"
                    )
                if picture.format == "PNG":
                    # Only this checks a PNG's checksums; a zero-filled end would come out black.
                    picture.verify()
            with Image.open(io.BytesIO(pixels), formats=formats()) as picture:
                return _pixels(
                    ImageOps.exif_transpose(picture) if decoding.exif else picture, decoding, name
                )
    except UserError:
        raise
    except UnidentifiedImageError:
        raise CorruptImage(
            f"{name} starts with the bytes {data[:8]!r}, expected an image that Pillow knows"
        ) from None
    except Exception as error:  # Pillow's parsers raise OSError, SyntaxError, KeyError, ...
        fault = " ".join(str(error).split()) or type(error).__name__
        raise CorruptImage(f"{name} can't be decoded ({fault}), expected a whole image") from None


def _pixels(picture: Image.Image, decoding: Decoding, name: str) -> np.ndarray:
    channels = decoding.channels
    if picture.mode in ("I", "F"):
        raise ValueError(f"32-bit pixels (mode {picture.mode}) of unknown range")
    if channels in _ALPHA_MODES:
        if not picture.has_transparency_data:
            raise UserError(
                f"{name} has no transparency (mode {picture.mode}), expected {channels} channels, "
                f"{'RGB' if channels == 4 else 'grey'} and alpha ({decoding.channels_field})"
            )
        return np.array(picture.convert(_ALPHA_MODES[channels]))
    if channels not in (1, 3):
        raise UserError(
            f"{name} is an image file, which has 1 to 4 channels, expected {channels} "
            f"({decoding.channels_field})"
        )
    if picture.mode.startswith("I;16"):
        # Pillow would clip 16-bit grey at 255; of 16-bit RGB it keeps the upper byte as well.
        grey = (np.asarray(picture) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], channels, axis=-1)
    if channels == 1:
        return np.array(picture.convert("L"))[..., None]
    return np.array(picture.convert("RGB"))


def _without_notes(data: bytes) -> bytes:
    """A PNG without the chunks that don't change its pixels; any other file as it is."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n") or not any(kind in data for kind in _PNG_NOTES):
        return data
    kept, start = [data[:8]], 8
    while start + 12 <= len(data):
        end = start + 12 + int.from_bytes(data[start : start + 4])
        if data[start + 4 : start + 8] not in _PNG_NOTES:
            kept.append(data[start:end])
        start = end
    return b"".join([*kept, data[start:]])


class _Bound:
    """Pillow's bound on pixels, which is global, and the number of threads that lift it now."""

    lock, users, kept = threading.Lock(), 0, Image.MAX_IMAGE_PIXELS


@contextlib.contextmanager
def _pillow_without_bound() -> Iterator[None]:
    """Lifts Pillow's bound and its warnings within the block: our own bound is checked instead."""
    with _Bound.lock:
        if not _Bound.users:
            _Bound.kept, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        _Bound.users += 1
    try:
        yield
    finally:
        with _Bound.lock:
            _Bound.users -= 1
            if not _Bound.users:
                Image.MAX_IMAGE_PIXELS = _Bound.kept
