"""One image as it was found: from a file's bytes to pixels, whole or not at all."""

import dataclasses
import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from uvit_jax.errors import UserError


class CorruptImage(UserError):
    """An image that can't be decoded; the text names it and the fault. The other images may be fine."""


@dataclasses.dataclass(frozen=True)
class Original:
    """One image of a data set, before any crop.

    Attributes:
      image: pixels as they were found, of any size: RGB, or one channel where the data set is grey (MNIST).
      label: its class; -1 where there is none.
      captions: what is said about it; () where nothing is.
      name: what errors and reports call it: the file within its folder, or "train[17]".
    """

    image: UInt8[np.ndarray, "h w c"]
    label: int
    captions: tuple[str, ...]
    name: str


def decode(data: bytes, name: str, channels: int = 3) -> UInt8[np.ndarray, "h w {channels}"]:
    """The pixels of a JPEG, PNG, WebP, BMP, GIF (first frame) or TIFF file, as Pillow's `convert("RGB")` has them.

    Grey, CMYK and palette images become RGB and transparency is dropped; 16 bits a channel become their upper 8. The
    EXIF orientation is not applied: no published data set did.

    Args:
      data: the whole file.
      name: what to call it in an error.
      channels: 3 for RGB, 1 for grey.

    Raises:
      CorruptImage: for a file that is no image, is cut short or damaged. JPEG, WebP and BMP carry no checksums: altered
        pixels inside a file of full length can't be told.
    """
    if not data:
        raise CorruptImage(f"{name} is empty, expected an image")
    try:
        with Image.open(io.BytesIO(data)) as picture:
            if picture.format == "PNG":
                # Only this looks at the checksums of a PNG's pixels; a zero-filled end would come out black.
                picture.verify()
        with Image.open(io.BytesIO(data)) as picture:
            return _pixels(picture, channels)
    except UnidentifiedImageError:
        raise CorruptImage(f"{name} starts with the bytes {data[:8]!r}, expected an image that Pillow knows") from None
    except Exception as error:  # Pillow's parsers raise whatever they stumble on: OSError, SyntaxError, KeyError, ...
        fault = " ".join(str(error).split()) or type(error).__name__
        raise CorruptImage(f"{name} can't be decoded ({fault}), expected a whole image") from None


def _pixels(picture: Image.Image, channels: int) -> np.ndarray:
    if picture.mode.startswith("I;16"):
        # Pillow would clip 16-bit grey at 255; of 16-bit RGB it keeps the upper byte as well.
        grey = (np.asarray(picture) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], channels, axis=-1)
    if picture.mode in ("I", "F"):
        raise ValueError(f"32-bit pixels (mode {picture.mode}) of unknown range")
    if channels == 1:
        return np.array(picture.convert("L"))[..., None]
    return np.array(picture.convert("RGB"))
