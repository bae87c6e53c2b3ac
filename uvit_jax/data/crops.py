"""From a picture of any size to a square one, pixel for pixel as the published data sets and features were made.

The resampling is Pillow's on 8-bit pixels: the roundings between two steps are part of the result.
"""

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from uvit_jax.errors import UserError

Crop = Callable[[np.ndarray, int], np.ndarray]

_CELEBA_SHAPE = (218, 178)  # (height, width) of every aligned picture of CelebA
_CELEBA_CENTRE = (121, 89)  # (row, column) of the face's middle in them
_CELEBA_SIDE = 128


def adm(image: UInt8[np.ndarray, "h w c"], size: int) -> UInt8[np.ndarray, "{size} {size} c"]:
    """The centre square after resizing the short side to `size`, as in ADM and every ImageNet model since.

    Halved with a box filter while the short side is at least twice `size`, then resized with a bicubic one; smaller
    pictures are enlarged. An odd margin leaves its extra pixel on the right and at the bottom.

    Source: `center_crop_arr` of P. Dhariwal and A. Nichol, arXiv:2105.05233; the same in U-ViT's code.
    """
    picture = _picture(image)
    while min(picture.size) >= 2 * size:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = size / min(picture.size)
    # Python's round (half to even) of this very product: another order of the operations differs by a pixel at times.
    width, height = round(picture.width * scale), round(picture.height * scale)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return _pixels(picture.crop((left, top, left + size, top + size)))


def celeba(image: UInt8[np.ndarray, "h w c"], size: int) -> UInt8[np.ndarray, "{size} {size} c"]:
    """The 128x128 pixels around the face of an aligned CelebA picture, resized with Pillow's bilinear filter.

    Source: the crop of U-ViT's code, which is DDIM's (arXiv:2010.02502); torchvision's Resize of a picture is Pillow's
    bilinear one, which averages over what it shrinks.

    Raises:
      UserError: for a picture of another size than 178x218, whose face would be elsewhere.
    """
    if image.shape[:2] != _CELEBA_SHAPE:
        height, width = _CELEBA_SHAPE
        raise UserError(
            f"crop 'celeba' got an image of {_size(image)} pixels, expected {width}x{height} (aligned CelebA)"
        )
    top, left = (middle - _CELEBA_SIDE // 2 for middle in _CELEBA_CENTRE)
    face = _picture(image).crop((left, top, left + _CELEBA_SIDE, top + _CELEBA_SIDE))
    return _pixels(face.resize((size, size), Image.Resampling.BILINEAR))


def lanczos(image: UInt8[np.ndarray, "h w c"], size: int) -> UInt8[np.ndarray, "{size} {size} c"]:
    """The largest centre square, resized with a Lanczos filter, as in U-ViT's COCO and latent diffusion's data.

    An odd margin leaves its extra pixel on the right and at the bottom.
    """
    picture = _picture(image)
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return _pixels(picture.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.LANCZOS))


def none(image: UInt8[np.ndarray, "h w c"], size: int) -> UInt8[np.ndarray, "{size} {size} c"]:
    """The picture as it is, where it has the size already.

    Raises:
      UserError: where it has not.
    """
    if image.shape[:2] != (size, size):
        raise UserError(
            f"crop 'none' got an image of {_size(image)} pixels, expected {size}x{size}: "
            f"another crop resizes ({', '.join(repr(name) for name in CROPS if name != 'none')})"
        )
    return image


CROPS: Mapping[str, Crop] = {"adm": adm, "celeba": celeba, "lanczos": lanczos, "none": none}


def _picture(image: np.ndarray) -> Image.Image:
    """Pillow's picture of 1 (grey) or 3 (RGB) channels."""
    if image.shape[-1] not in (1, 3):
        raise UserError(f"an image has {image.shape[-1]} channels, expected 1 (grey) or 3 (RGB)")
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def _pixels(picture: Image.Image) -> np.ndarray:
    pixels = np.array(picture)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"
