"""Crops to a given size, pixel for pixel as the published data sets and features were made.

The resampling is Pillow's on 8-bit pixels: the roundings between two steps are part of the result.
"""

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from uvit_jax.errors import UserError

Size = int | tuple[int, int]
Crop = Callable[[np.ndarray, Size], np.ndarray]

_CELEBA_SHAPE = (218, 178)  # (height, width) of every aligned picture of CelebA
_CELEBA_CENTRE = (121, 89)  # (row, column) of the face's middle in them
_CELEBA_SIDE = 128


def sides(size: Size) -> tuple[int, int]:
    """Height and width: two numbers as they are, or the side of a square."""
    return (size, size) if isinstance(size, int) else size


def adm(image: UInt8[np.ndarray, "h w c"], size: Size) -> UInt8[np.ndarray, "h2 w2 c"]:
    """The centre of `size`, after resizing the picture to just cover it: ADM's crop.

    `size` is a side, or (height, width). Every ImageNet model since ADM uses this crop. The picture
    is halved with a box filter while both sides are at least twice those wanted, then resized with
    a bicubic one; smaller pictures are enlarged. An odd margin leaves its extra pixel on the right
    and at the bottom.

    Source: `center_crop_arr` of P. Dhariwal and A. Nichol, arXiv:2105.05233; the same in U-ViT's
    code. Both know squares alone.
    """
    picture, (height, width) = _picture(image), sides(size)
    while picture.height >= 2 * height and picture.width >= 2 * width:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = max(height / picture.height, width / picture.width)
    # Python's round (half to even) of this very product: another order of the operations differs by
    # a pixel at times.
    picture = picture.resize(
        (round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC
    )
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return _pixels(picture.crop((left, top, left + width, top + height)))


def celeba(image: UInt8[np.ndarray, "h w c"], size: Size) -> UInt8[np.ndarray, "h2 w2 c"]:
    """The 128x128 pixels around the face of an aligned CelebA picture, resized (bilinear).

    Source: the crop of U-ViT's code, which is DDIM's (arXiv:2010.02502); torchvision's Resize of a
    picture is Pillow's bilinear one, which averages over what it shrinks.

    Raises:
      UserError: for a picture of another size than 178x218, whose face would be elsewhere, or a
        size that is not a square.
    """
    height, width = sides(size)
    if height != width:
        raise UserError(f"crop 'celeba' makes squares, expected another crop for {height}x{width}")
    if image.shape[:2] != _CELEBA_SHAPE:
        aligned_height, aligned_width = _CELEBA_SHAPE
        raise UserError(
            f"crop 'celeba' got an image of {_size(image)} pixels, expected "
            f"{aligned_width}x{aligned_height} (aligned CelebA)"
        )
    top, left = (middle - _CELEBA_SIDE // 2 for middle in _CELEBA_CENTRE)
    face = _picture(image).crop((left, top, left + _CELEBA_SIDE, top + _CELEBA_SIDE))
    return _pixels(face.resize((width, height), Image.Resampling.BILINEAR))


def lanczos(image: UInt8[np.ndarray, "h w c"], size: Size) -> UInt8[np.ndarray, "h2 w2 c"]:
    """The largest centre of `size`'s proportions, resized with a Lanczos filter.

    U-ViT's COCO and latent diffusion's data are made so, as squares. An odd margin leaves its extra
    pixel on the right and at the bottom.
    """
    (rows, columns), (height, width) = image.shape[:2], sides(size)
    # All rows or all columns; the other side follows from the proportions, rounded.
    if rows * width <= columns * height:
        inside = rows, max(1, (2 * rows * width + height) // (2 * height))
    else:
        inside = max(1, (2 * columns * height + width) // (2 * width)), columns
    top, left = (rows - inside[0]) // 2, (columns - inside[1]) // 2
    # Not by Pillow's crop, which warns of large pictures.
    centre = np.ascontiguousarray(image[top : top + inside[0], left : left + inside[1]])
    return _pixels(_picture(centre).resize((width, height), Image.Resampling.LANCZOS))


def none(image: UInt8[np.ndarray, "h w c"], size: Size) -> UInt8[np.ndarray, "h2 w2 c"]:
    """The picture as it is, where it has the size already.

    Raises:
      UserError: where it has not.
    """
    height, width = sides(size)
    if image.shape[:2] != (height, width):
        raise UserError(
            f"crop 'none' got an image of {_size(image)} pixels, expected {width}x{height}: "
            f"another crop resizes ({', '.join(repr(name) for name in CROPS if name != 'none')})"
        )
    return image


CROPS: Mapping[str, Crop] = {"adm": adm, "celeba": celeba, "lanczos": lanczos, "none": none}


def crop_channels(
    crop: Crop, image: UInt8[np.ndarray, "h w c"], size: Size
) -> UInt8[np.ndarray, "h2 w2 c"]:
    """The crop of an image of any number of channels.

    Other than 1 or 3 channels (alpha is one) are each cropped as a grey image.
    """
    channels = image.shape[-1]
    if channels in (1, 3):
        return crop(image, size)
    return np.concatenate([crop(image[..., i : i + 1], size) for i in range(channels)], axis=-1)


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
