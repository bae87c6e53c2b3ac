"""Matrix products of 8-bit floats, which tensor cores from Ada and Hopper on take at twice the rate
of 16-bit ones.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from uvit_jax.models.kernels.recomputed import recomputed
from uvit_jax.models.kernels.weight_gradient import weight_tangent

E4M3 = jnp.float8_e4m3fn
LARGEST = float(jnp.finfo(E4M3).max)  # 448; conversion does not saturate by itself
# The scale of activations comes from the special tokens, which may be many times larger than
# patches, and from every 16th token, which costs no pass over all of them, with room for those that
# are larger: e4m3 holds 2^-9 to 448, so two binades of it are cheap.
STRIDE, ROOM = 16, 4.0
# Label and time.
SPECIAL = 2
# Scales outside of them would be infinite, or their inverses 0.
LEAST, MOST = LARGEST * 2.0**-126, float(jnp.finfo(jnp.float32).max)


def fp8_product(
    x: Float[Array, "*b k"], kernel: Float[Array, "k n"], special: int = SPECIAL
) -> Float[Array, "*b n"]:
    """x kernel, both factors rounded to float8_e4m3fn by a scale each, summed in float32; gradients
    as of x kernel in x's dtype.

    Of the format arXiv:2209.05433 calls E4M3, one scale a tensor, a power of two: the kernel's
    maximum becomes 448 or just below, that of the special tokens and every 16th one at most 112,
    and what is beyond 448 is cut to it. Rows of x with infinity or NaN become NaN, and change no
    other row. Only the forward product is in 8 bits: those of the gradients would need copies, some
    transposed, whose making takes much of what they save.

    Args:
      x: activations in bfloat16, tokens on the last axis but one.
      kernel: weights in float32.
      special: how many tokens in front are no patches, and may be larger.
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
    """(x scale in float8_e4m3fn, 1 / scale), the scale a power of two that brings `largest` to 448
    or below.
    """
    ratio = LARGEST / jnp.clip(
        jnp.where(largest > 0, largest.astype(jnp.float32), LARGEST), LEAST, MOST
    )
    # Its exponent alone: exp2 would be off by a bit here and there.
    exponent = jax.lax.bitcast_convert_type(ratio, jnp.uint32) & 0x7F800000
    scale = jax.lax.bitcast_convert_type(exponent, jnp.float32)
    scaled = jnp.clip(x * scale.astype(x.dtype), -LARGEST, LARGEST)
    return jnp.where(jnp.isfinite(x), scaled, jnp.nan).astype(E4M3), 1 / scale


def _largest(x: Array) -> Array:
    """Of the finite absolute values; 0 of none."""
    return jnp.max(jnp.where(jnp.isfinite(x), jnp.abs(x), 0), initial=0)


@_fp8_product.defjvp
def _fp8_product_jvp(
    special: int, primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    return _fp8_product(*primals, special), _tangent(*primals, *tangents)


@recomputed
def _tangent(x: Array, kernel: Array, dx: Array, d_kernel: Array) -> Array:
    return dx @ kernel.astype(x.dtype) + weight_tangent(x, d_kernel.astype(x.dtype))
