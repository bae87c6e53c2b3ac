"""Layers that the KL autoencoder and the TAESD family share."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from uvit_jax.errors import UserError
from uvit_jax.models.layers import torch_uniform

AnyArray = Array | np.ndarray

GROUPS = 32  # of every GroupNorm of the KL autoencoder


def group_norm(channels: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.GroupNorm:
    """GroupNorm of 32 groups, eps 1e-6; statistics in float32."""
    return nnx.GroupNorm(
        channels, GROUPS, epsilon=1e-6, dtype=dtype, use_fast_variance=False, rngs=rngs
    )


def convolution(
    c_in: int, c_out: int, kernel: int, *, dtype: DTypeLike, rngs: nnx.Rngs, **options: Any
) -> nnx.Conv:
    """A convolution with PyTorch's initial weights, padded by kernel // 2.

    options: nnx.Conv's, which may replace these.
    """
    uniform = torch_uniform(kernel**2 * c_in)
    options = {"padding": kernel // 2, "kernel_init": uniform, "bias_init": uniform, **options}
    return nnx.Conv(c_in, c_out, (kernel, kernel), dtype=dtype, rngs=rngs, **options)


def upsample_nearest(x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
    """The image at twice the size, by nearest neighbour."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def check_shape(what: str, x: AnyArray, channels: int, factor: int = 1) -> None:
    """Raises a UserError unless x is `[b, h, w, channels]`, its sides multiples of `factor`."""
    _, h, w, c = x.shape
    if c != channels or h % factor or w % factor:
        sides = f" and sides that are multiples of {factor}" if factor > 1 else ""
        raise UserError(f"{what} are {h}x{w}x{c}, expected {channels} channels{sides}")
