"""Blocks and pools of Inception-v3 (arXiv:1512.00567), named as torchvision's."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float


class ConvReLU(nnx.Module):
    """ReLU(convolution + bias), of the same size unless `options` (nnx.Conv's) change it."""

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
        # A GPU's default for float32 is TF32, whose error is about bfloat16's.
        precision = jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None
        self.conv = nnx.Conv(c_in, c_out, kernel, dtype=dtype, precision=precision, **options)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
        return jax.nn.relu(self.conv(x))


class InceptionA(nnx.Module):
    """1x1, 5x5, two 3x3 and an average pool, concatenated, on 35x35 pixels."""

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


class InceptionB(nnx.Module):
    """3x3, two 3x3 and a maximum pool, concatenated: 35x35 pixels to 17x17."""

    def __init__(self, c_in: int, **options: Any):
        self.branch3x3 = ConvReLU(c_in, 384, 3, strides=2, padding="VALID", **options)
        self.branch3x3dbl_1 = ConvReLU(c_in, 64, 1, **options)
        self.branch3x3dbl_2 = ConvReLU(64, 96, 3, **options)
        self.branch3x3dbl_3 = ConvReLU(96, 96, 3, strides=2, padding="VALID", **options)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
        branch3x3dbl = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return jnp.concatenate([self.branch3x3(x), branch3x3dbl, halving_max_pool(x)], -1)


class InceptionC(nnx.Module):
    """1x1, one and two factorized 7x7, and an average pool, concatenated, on 17x17 pixels."""

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


class InceptionD(nnx.Module):
    """3x3, a factorized 7x7 with 3x3, and a maximum pool, concatenated: 17x17 pixels to 8x8."""

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
        return jnp.concatenate([branch3x3, branch7x7x3, halving_max_pool(x)], -1)


class InceptionE(nnx.Module):
    """1x1, 3x3 and two 3x3, both ending as a row beside a column, and a pool, on 8x8 pixels."""

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
    """The maximum of the 3x3 pixels around each."""
    return nnx.max_pool(x, (3, 3), padding="SAME")


def halving_max_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b i j c"]:
    """The maximum of 3x3 pixels at stride 2, unpadded: h pixels to (h - 1) // 2."""
    return nnx.max_pool(x, (3, 3), strides=(2, 2))


def average_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """The mean of those of the 3x3 pixels around each that are inside the image."""
    pooled = nnx.avg_pool(x.astype(jnp.float32), (3, 3), padding="SAME", count_include_pad=False)
    return pooled.astype(x.dtype)


def global_mean(x: Float[Array, "b h w c"]) -> Float[Array, "b c"]:
    """The mean of each channel over the image, float32."""
    return jnp.mean(x.astype(jnp.float32), (1, 2))
