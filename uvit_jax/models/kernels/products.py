"""Matrix products of the blocks: in 8 bits, or with a weight's gradient in partial sums."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from uvit_jax.models.kernels.backends import multiprocessors
from uvit_jax.models.kernels.recomputed import recomputed
from uvit_jax.models.layers import broadcast_like

E4M3 = jnp.float8_e4m3fn
LARGEST = float(jnp.finfo(E4M3).max)  # 448; conversion does not saturate by itself
# The scale of activations comes from the special tokens, which may be many times larger than
# patches, and from every 16th token, which costs no pass over all of them. e4m3 holds 2^-9 to 448,
# so two binades of room for larger tokens are cheap.
STRIDE, ROOM = 16, 4.0
# Label and time.
SPECIAL = 2
# Scales outside of these would be infinite, or their inverses 0.
LEAST, MOST = LARGEST * 2.0**-126, float(jnp.finfo(jnp.float32).max)

# The tile of a result that a multiprocessor of an H100 computes at once, by cuBLAS's largest
# kernels.
TILE = 128, 256
# Partial sums where tiles leave more of the last wave of multiprocessors idle than this share of
# all waves.
PARTS, IDLE = 4, 0.3


def product(
    x: Float[Array, "*b k"],
    kernel: Float[Array, "k n"],
    *,
    fp8: bool,
    special: int = SPECIAL,
    parts: int = 1,
) -> Float[Array, "*b n"]:
    """x kernel in x's dtype.

    Args:
      x: activations.
      kernel: weights in float32.
      fp8: by `fp8_product`.
      special: its number of special tokens.
      parts: partial sums that the kernel's gradient is computed in; with `fp8` always one.
    """
    if fp8:
        return fp8_product(x, kernel, special)
    kernel = kernel.astype(x.dtype)
    return x @ kernel if parts == 1 else _product(x, kernel, parts)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _product(
    x: Float[Array, "*b k"], kernel: Float[Array, "k n"], parts: int
) -> Float[Array, "*b n"]:
    return x @ kernel


@_product.defjvp
def _product_jvp(
    parts: int, primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    (x, kernel), (dx, d_kernel) = primals, tangents
    return _product(x, kernel, parts), dx @ kernel + weight_tangent(x, d_kernel, parts)


def weight_tangent(
    x: Float[Array, "*b k"], d_kernel: Float[Array, "k n"], parts: int = 1
) -> Float[Array, "*b n"]:
    """x d_kernel, written so that its transpose is a sum of partial sums over the tokens.

    The transpose is the weights' gradient x^T dy in their dtype; partial sums are rounded to that
    dtype and added in float32.
    """
    shape = (*x.shape[:-1], d_kernel.shape[1])
    if parts == 1:
        return (x.reshape(-1, x.shape[-1]) @ d_kernel).reshape(shape)
    rows = x.reshape(parts, -1, x.shape[-1])
    kernels = broadcast_like(
        d_kernel, jax.ShapeDtypeStruct((parts, *d_kernel.shape), d_kernel.dtype)
    )
    return jnp.einsum("snk,skm->snm", rows, kernels).reshape(shape)


def gradient_parts(tokens: Any, shape: tuple[int, ...], platform: str) -> int:
    """Partial sums for the gradient of a kernel of that shape on one device: 1 or `PARTS`.

    `PARTS` on a GPU where tiles would leave over 30 % of the last wave of multiprocessors idle.
    U-ViT-H's fc1 and fc2 have 162 tiles, two waves of an H100's 132 multiprocessors, of which a
    third is idle; a product of one wave is left to cuBLAS, which splits it by itself.
    """
    tiles = math.prod(-(-size // tile) for size, tile in zip(sorted(shape), TILE, strict=True))
    waves = -(-tiles // multiprocessors())
    idle = 1 - tiles / (waves * multiprocessors())
    # A number of tokens that is not known yet, of a program exported for any batch, may not be
    # divisible.
    divisible = isinstance(tokens, int) and tokens % PARTS == 0
    return PARTS if platform == "gpu" and waves > 1 and idle > IDLE and divisible else 1


def fp8_product(
    x: Float[Array, "*b k"], kernel: Float[Array, "k n"], special: int = SPECIAL
) -> Float[Array, "*b n"]:
    """x kernel with both factors rounded to float8_e4m3fn, summed in float32.

    Tensor cores from Ada and Hopper on multiply 8-bit floats at twice the rate of 16-bit ones. The
    format is the one that arXiv:2209.05433 calls E4M3, with one scale a tensor, a power of two. The
    kernel's maximum becomes 448 or just below, that of the special tokens and every 16th one at
    most 112; what is beyond 448 is cut to it. Rows of x with infinity or NaN become NaN, and change
    no other row. Gradients are those of x kernel in x's dtype: their products in 8 bits would need
    copies, some transposed, whose making takes much of what they save.

    Args:
      x: activations in bfloat16, tokens on the last axis but one.
      kernel: weights in float32.
      special: how many tokens in front are not patches, and may be larger.
    """
    return _fp8_product(x, kernel, special)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _fp8_product(x: Array, kernel: Array, special: int) -> Array:
    sampled = [x[..., :special, :], x[..., ::STRIDE, :]]
    bits_x, inverse_x = quantize(x, functools.reduce(jnp.maximum, map(_largest, sampled)) * ROOM)
    bits_w, inverse_w = quantize(kernel, _largest(kernel))
    # Of three ways to write it this one became an 8-bit product of cuBLASLt's; scaled first, it was
    # one of bfloat16.
    dims = (((x.ndim - 1,), (0,)), ((), ()))
    product = jax.lax.dot_general(bits_x, bits_w, dims, preferred_element_type=x.dtype)
    return product * (inverse_x * inverse_w).astype(x.dtype)


def quantize(
    x: Float[Array, "..."], largest: Float[Array, ""]
) -> tuple[Float[Array, "..."], Float[Array, ""]]:
    """(x scale in float8_e4m3fn, 1 / scale); the power of two takes `largest` to 448 at most."""
    ratio = LARGEST / jnp.clip(
        jnp.where(largest > 0, largest.astype(jnp.float32), LARGEST), LEAST, MOST
    )
    # Its exponent alone: exp2 would be off by a bit here and there.
    exponent = jax.lax.bitcast_convert_type(ratio, jnp.uint32) & 0x7F800000
    scale = jax.lax.bitcast_convert_type(exponent, jnp.float32)
    scaled = jnp.clip(x * scale.astype(x.dtype), -LARGEST, LARGEST)
    return jnp.where(jnp.isfinite(x), scaled, jnp.nan).astype(E4M3), 1 / scale


def _largest(x: Array) -> Array:
    """The largest finite absolute value; 0 where none is finite."""
    return jnp.max(jnp.where(jnp.isfinite(x), jnp.abs(x), 0), initial=0)


@_fp8_product.defjvp
def _fp8_product_jvp(
    special: int, primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    return _fp8_product(*primals, special), _fp8_tangent(*primals, *tangents)


@recomputed
def _fp8_tangent(x: Array, kernel: Array, dx: Array, d_kernel: Array) -> Array:
    return dx @ kernel.astype(x.dtype) + weight_tangent(x, d_kernel.astype(x.dtype))
