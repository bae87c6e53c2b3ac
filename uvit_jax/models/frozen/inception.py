"""The Inception-v3 that FID is defined by (TensorFlow's of 2015-12-05, arXiv:1512.00567): images to
features.

It differs from torchvision's network of that name: average pools don't count the padding, the last
block pools by maximum, there are 1008 classes, and no auxiliary head. BatchNorm (eps 1e-3) is
folded into the convolutions.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8

from uvit_jax.errors import UserError, check_choice
from uvit_jax.models.frozen.autoencoder import AnyArray
from uvit_jax.models.frozen.resize import RESIZES
from uvit_jax.models.frozen.resize import resize as resize_images
from uvit_jax.models.uvit_config import DTYPES

SIZE = 299  # of the images that go in, along each side
CLASSES = 1008
BATCH_NORM_EPS = 1e-3

# What `Inception` gives, and how wide it is.
WIDTHS = {
    "pool2048": 2048,
    "spatial2023": 2023,
    "logits1008": CLASSES,
    "preaux768": 768,
    "block192": 192,
    "block64": 64,
}
_SPATIAL_CHANNELS = 7  # of the 192 of mixed_6d.branch1x1, on 17x17 pixels

Images = (
    UInt8[Array, "b h w c"]
    | UInt8[np.ndarray, "b h w c"]
    | Float[Array, "b h w c"]
    | Float[np.ndarray, "b h w c"]
)


def preprocess(images: Images, resize: str) -> Float[Array, "b 299 299 3"]:
    """The network's input, float32, of images `[b, h, w, 3]` or `[b, h, w, 1]` (grey, thrice):
    uint8, or in [0, 1].

    Args:
      images: of any size.
      resize: whose way of resizing them, which moves FID by tenths:
        - "pytorch-fid": bilinear without antialiasing, then to [-1, 1];
        - "tf1": TensorFlow 1's bilinear (the original FID, ADM's evaluator, torch-fidelity), then
        (x - 128) / 128;
        - "clean": clean-fid's (arXiv:2104.11222), bicubic with antialiasing and clipped, then (x -
        128) / 128.

    Raises:
      UserError: for another way, or another number of channels.
    """
    check_choice("resize", resize, tuple(RESIZES))
    if images.shape[3] not in (1, 3):
        raise UserError(f"images have {images.shape[3]} channels, expected 3 (RGB) or 1 (grey)")
    images = jnp.asarray(images)
    x = (
        images.astype(jnp.float32)
        if images.dtype == jnp.uint8
        else 255 * images.astype(jnp.float32)
    )
    x = resize_images(x, (SIZE, SIZE), RESIZES[resize])
    if resize == "clean":
        x = jnp.clip(
            x, 0, 255
        )  # the kernel overshoots beside edges; not rounded: clean-fid resizes floats
    x = x / 127.5 - 1 if resize == "pytorch-fid" else (x - 128) / 128
    return jnp.broadcast_to(x, (*x.shape[:3], 3))


class Inception(nnx.Module):
    """Images as `preprocess` gives them to the features of `WIDTHS`.

    A module's name is the published one in lower case (`mixed_6d.branch7x7_2`).

    Args:
      dtype: what convolutions are computed in, "float32" (at full precision) or "bfloat16";
        parameters, the means over pixels and the logits are float32 either way.
    """

    def __init__(self, dtype: str = "float32", *, rngs: nnx.Rngs):
        check_choice("dtype", dtype, DTYPES)
        options: dict[str, Any] = {"dtype": jnp.dtype(dtype), "rngs": rngs}
        self.conv2d_1a_3x3 = ConvReLU(3, 32, 3, strides=2, padding="VALID", **options)
        self.conv2d_2a_3x3 = ConvReLU(32, 32, 3, padding="VALID", **options)
        self.conv2d_2b_3x3 = ConvReLU(32, 64, 3, **options)
        self.conv2d_3b_1x1 = ConvReLU(64, 80, 1, **options)
        self.conv2d_4a_3x3 = ConvReLU(80, 192, 3, padding="VALID", **options)
        self.mixed_5b = BlockA(192, 32, **options)
        self.mixed_5c = BlockA(256, 64, **options)
        self.mixed_5d = BlockA(288, 64, **options)
        self.mixed_6a = BlockB(288, **options)
        self.mixed_6b = BlockC(768, 128, **options)
        self.mixed_6c = BlockC(768, 160, **options)
        self.mixed_6d = BlockC(768, 160, **options)
        self.mixed_6e = BlockC(768, 192, **options)
        self.mixed_7a = BlockD(768, **options)
        self.mixed_7b = BlockE(1280, pool=average_pool, **options)
        self.mixed_7c = BlockE(2048, pool=max_pool, **options)
        # Without the bias of the published layer: the Inception Score is taken without it.
        self.fc = nnx.Linear(
            2048, CLASSES, use_bias=False, precision=jax.lax.Precision.HIGHEST, rngs=rngs
        )

    def __call__(self, x: Float[AnyArray, "b h w c"]) -> dict[str, Float[Array, "b d"]]:
        """Every feature of `WIDTHS`, float32; under `jit`, those that aren't returned cost nothing.

        Returns:
          "pool2048": the mean over pixels of the last block (FID); "logits1008": of the classes,
          without their bias (IS); "spatial2023": 7 channels of a layer on 17x17 pixels (sFID as ADM
          takes it, arXiv:2105.05233); "preaux768", "block192", "block64": means over pixels of
          earlier layers.

        Raises:
          UserError: for images that aren't 299x299x3.
        """
        if x.shape[1:] != (SIZE, SIZE, 3):
            raise UserError(
                f"images are {'x'.join(map(str, x.shape[1:]))}, expected {SIZE}x{SIZE}x3"
            )
        x = self.conv2d_2b_3x3(self.conv2d_2a_3x3(self.conv2d_1a_3x3(jnp.asarray(x))))
        block64 = x = reduce_by_max(x)
        block192 = x = reduce_by_max(self.conv2d_4a_3x3(self.conv2d_3b_1x1(x)))
        x = self.mixed_5d(self.mixed_5c(self.mixed_5b(x)))
        x = self.mixed_6c(self.mixed_6b(self.mixed_6a(x)))
        spatial = self.mixed_6d.branch1x1(x)[..., :_SPATIAL_CHANNELS]  # TensorFlow's mixed_6/conv:0
        preaux768 = x = self.mixed_6e(self.mixed_6d(x))
        pool2048 = mean_of_pixels(self.mixed_7c(self.mixed_7b(self.mixed_7a(x))))
        return {
            "pool2048": pool2048,
            "spatial2023": spatial.reshape(len(x), -1).astype(jnp.float32),
            "logits1008": self.fc(pool2048),
            "preaux768": mean_of_pixels(preaux768),
            "block192": mean_of_pixels(block192),
            "block64": mean_of_pixels(block64),
        }


class ConvReLU(nnx.Module):
    """ReLU(convolution + bias); the size is kept unless `options` (nnx.Conv's) say otherwise."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int | tuple[int, int],
        *,
        dtype: DTypeLike,
        **options: Any,
    ):
        kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
        # Or a GPU takes TF32, whose error is of the order of bfloat16's.
        precision = jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None
        self.conv = nnx.Conv(c_in, c_out, kernel, dtype=dtype, precision=precision, **options)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
        return jax.nn.relu(self.conv(x))


class BlockA(nnx.Module):
    """1x1, 5x5, two 3x3 and an average pool side by side, on 35x35 pixels."""

    def __init__(self, c_in: int, pool_width: int, **options: Any):
        self.branch1x1 = ConvReLU(c_in, 64, 1, **options)
        self.branch5x5_1 = ConvReLU(c_in, 48, 1, **options)
        self.branch5x5_2 = ConvReLU(48, 64, 5, **options)
        self.branch3x3dbl_1 = ConvReLU(c_in, 64, 1, **options)
        self.branch3x3dbl_2 = ConvReLU(64, 96, 3, **options)
        self.branch3x3dbl_3 = ConvReLU(96, 96, 3, **options)
        self.branch_pool = ConvReLU(c_in, pool_width, 1, **options)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        branch5x5 = self.branch5x5_2(self.branch5x5_1(x))
        branch3x3dbl = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        branch_pool = self.branch_pool(average_pool(x))
        return jnp.concatenate([self.branch1x1(x), branch5x5, branch3x3dbl, branch_pool], -1)


class BlockB(nnx.Module):
    """35x35 pixels to 17x17: 3x3, two 3x3 and a maximum pool side by side."""

    def __init__(self, c_in: int, **options: Any):
        self.branch3x3 = ConvReLU(c_in, 384, 3, strides=2, padding="VALID", **options)
        self.branch3x3dbl_1 = ConvReLU(c_in, 64, 1, **options)
        self.branch3x3dbl_2 = ConvReLU(64, 96, 3, **options)
        self.branch3x3dbl_3 = ConvReLU(96, 96, 3, strides=2, padding="VALID", **options)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
        branch3x3dbl = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return jnp.concatenate([self.branch3x3(x), branch3x3dbl, reduce_by_max(x)], -1)


class BlockC(nnx.Module):
    """1x1, one and two 7x7 (each as a row and a column) and an average pool side by side, on 17x17
    pixels.
    """

    def __init__(self, c_in: int, width: int, **options: Any):
        self.branch1x1 = ConvReLU(c_in, 192, 1, **options)
        self.branch7x7_1 = ConvReLU(c_in, width, 1, **options)
        self.branch7x7_2 = ConvReLU(width, width, (1, 7), **options)
        self.branch7x7_3 = ConvReLU(width, 192, (7, 1), **options)
        self.branch7x7dbl_1 = ConvReLU(c_in, width, 1, **options)
        self.branch7x7dbl_2 = ConvReLU(width, width, (7, 1), **options)
        self.branch7x7dbl_3 = ConvReLU(width, width, (1, 7), **options)
        self.branch7x7dbl_4 = ConvReLU(width, width, (7, 1), **options)
        self.branch7x7dbl_5 = ConvReLU(width, 192, (1, 7), **options)
        self.branch_pool = ConvReLU(c_in, 192, 1, **options)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        branch7x7 = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        branch7x7dbl = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        branch7x7dbl = self.branch7x7dbl_5(self.branch7x7dbl_4(branch7x7dbl))
        branch_pool = self.branch_pool(average_pool(x))
        return jnp.concatenate([self.branch1x1(x), branch7x7, branch7x7dbl, branch_pool], -1)


class BlockD(nnx.Module):
    """17x17 pixels to 8x8: 3x3, 7x7 (a row and a column) with 3x3, and a maximum pool side by side."""

    def __init__(self, c_in: int, **options: Any):
        self.branch3x3_1 = ConvReLU(c_in, 192, 1, **options)
        self.branch3x3_2 = ConvReLU(192, 320, 3, strides=2, padding="VALID", **options)
        self.branch7x7x3_1 = ConvReLU(c_in, 192, 1, **options)
        self.branch7x7x3_2 = ConvReLU(192, 192, (1, 7), **options)
        self.branch7x7x3_3 = ConvReLU(192, 192, (7, 1), **options)
        self.branch7x7x3_4 = ConvReLU(192, 192, 3, strides=2, padding="VALID", **options)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
        branch3x3 = self.branch3x3_2(self.branch3x3_1(x))
        branch7x7x3 = self.branch7x7x3_2(self.branch7x7x3_1(x))
        branch7x7x3 = self.branch7x7x3_4(self.branch7x7x3_3(branch7x7x3))
        return jnp.concatenate([branch3x3, branch7x7x3, reduce_by_max(x)], -1)


class BlockE(nnx.Module):
    """1x1, a 3x3 and a 3x3 after another, both spread into a row beside a column, and a pool, on
    8x8 pixels.
    """

    def __init__(self, c_in: int, *, pool: Callable[[Array], Array], **options: Any):
        self.branch1x1 = ConvReLU(c_in, 320, 1, **options)
        self.branch3x3_1 = ConvReLU(c_in, 384, 1, **options)
        self.branch3x3_2a = ConvReLU(384, 384, (1, 3), **options)
        self.branch3x3_2b = ConvReLU(384, 384, (3, 1), **options)
        self.branch3x3dbl_1 = ConvReLU(c_in, 448, 1, **options)
        self.branch3x3dbl_2 = ConvReLU(448, 384, 3, **options)
        self.branch3x3dbl_3a = ConvReLU(384, 384, (1, 3), **options)
        self.branch3x3dbl_3b = ConvReLU(384, 384, (3, 1), **options)
        self.branch_pool = ConvReLU(c_in, 192, 1, **options)
        self.pool = pool

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        branches = [
            self.branch1x1(x),
            self.branch3x3_2a(single),
            self.branch3x3_2b(single),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
            self.branch_pool(self.pool(x)),
        ]
        return jnp.concatenate(branches, -1)


def max_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """The largest of the 3x3 pixels around each."""
    return nnx.max_pool(x, (3, 3), padding="SAME")


def reduce_by_max(x: Float[Array, "b h w c"]) -> Float[Array, "b i j c"]:
    """The largest of 3x3 pixels, of every other one in a row and column; h pixels to (h - 1) // 2."""
    return nnx.max_pool(x, (3, 3), strides=(2, 2))


def average_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """The mean of the 3x3 pixels around each, of those that are inside the image."""
    pooled = nnx.avg_pool(x.astype(jnp.float32), (3, 3), padding="SAME", count_include_pad=False)
    return pooled.astype(x.dtype)


def mean_of_pixels(x: Float[Array, "b h w c"]) -> Float[Array, "b c"]:
    """The mean of each channel over the image, in float32."""
    return jnp.mean(x.astype(jnp.float32), (1, 2))
