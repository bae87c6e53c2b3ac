"""The gradient of a matrix product's weights, a sum over all tokens, and the partial sums that fill
a GPU.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from uvit_jax.models.kernels.pallas_mosaic_gpu import multiprocessors
from uvit_jax.models.layers import spread

# The tile of a result that a multiprocessor of an H100 computes at once, by cuBLAS's largest
# kernels.
TILE = 128, 256
# Partial sums where tiles leave more of the last round of multiprocessors idle than this share of
# all rounds.
PARTS, IDLE = 4, 0.3


def weight_tangent(
    x: Float[Array, "*b k"], d_kernel: Float[Array, "k n"], parts: int = 1
) -> Float[Array, "*b n"]:
    """x d_kernel, so written that its transpose, the weights' gradient x^T dy in their dtype, is
    the sum of so many partial sums over the tokens, rounded to that dtype and added in float32.
    """
    shape = (*x.shape[:-1], d_kernel.shape[1])
    if parts == 1:
        return (x.reshape(-1, x.shape[-1]) @ d_kernel).reshape(shape)
    rows = x.reshape(parts, -1, x.shape[-1])
    kernels = spread(d_kernel, jax.ShapeDtypeStruct((parts, *d_kernel.shape), d_kernel.dtype))
    return jnp.einsum("snk,skm->snm", rows, kernels).reshape(shape)


def gradient_parts(tokens: Any, shape: tuple[int, ...], platform: str) -> int:
    """Of the gradient of a kernel of that shape, a sum over tokens, on one device: 1, or `PARTS` on
    a GPU where its tiles come to little more than whole rounds of multiprocessors.

    U-ViT-H's fc1 and fc2 have 162 tiles, two rounds of an H100's 132 multiprocessors, of which a
    third is idle; a product of one round is left to cuBLAS, which splits it by itself.
    """
    tiles = math.prod(-(-size // tile) for size, tile in zip(sorted(shape), TILE, strict=True))
    rounds = -(-tiles // multiprocessors())
    idle = 1 - tiles / (rounds * multiprocessors())
    # A number of tokens that is not known yet, of a program exported for any batch, may not be
    # divisible.
    divisible = isinstance(tokens, int) and tokens % PARTS == 0
    return PARTS if platform == "gpu" and rounds > 1 and idle > IDLE and divisible else 1
