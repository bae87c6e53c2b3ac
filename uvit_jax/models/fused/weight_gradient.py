"""The gradient of a matrix product's weights, a sum over all tokens, and the partial sums that fill a GPU."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from uvit_jax.models.fused.pallas_mosaic_gpu import multiprocessors

# The tile of a result that a multiprocessor of an H100 computes at once, by cuBLAS's largest kernels.
TILE = 128, 256
# Partial sums where tiles leave more of the last round of multiprocessors idle than this share of all rounds.
PARTS, IDLE = 4, 0.3


def weight_gradient(x: Float[Array, "*b k"], dy: Float[Array, "*b n"], parts: int = 1) -> Float[Array, "k n"]:
    """x^T dy in x's dtype; its partial sums are rounded to that and added in float32."""
    if parts == 1:
        return jnp.einsum("nk,nm->km", *(rows.reshape(-1, rows.shape[-1]) for rows in (x, dy)))
    x, dy = (rows.reshape(parts, -1, rows.shape[-1]) for rows in (x, dy))
    return jnp.einsum("snk,snm->skm", x, dy).astype(jnp.float32).sum(0).astype(x.dtype)


def gradient_parts(tokens: int, shape: tuple[int, ...], platform: str) -> int:
    """Of the gradient of a kernel of that shape, a sum over tokens, on one device: 1, or `PARTS` on a GPU where its
    tiles come to little more than whole rounds of multiprocessors.

    U-ViT-H's fc1 and fc2 have 162 tiles, two rounds of an H100's 132 multiprocessors, of which a third is idle; a
    product of one round is left to cuBLAS, which splits it by itself.
    """
    tiles = math.prod(-(-size // tile) for size, tile in zip(sorted(shape), TILE, strict=True))
    rounds = -(-tiles // multiprocessors())
    idle = 1 - tiles / (rounds * multiprocessors())
    return PARTS if platform == "gpu" and rounds > 1 and idle > IDLE and tokens % PARTS == 0 else 1
