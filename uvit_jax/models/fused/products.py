"""The MLP's matrix products: in 8 bits, or with a weight's gradient in partial sums."""

import functools

import jax
from jaxtyping import Array, Float

from uvit_jax.models.fused.fp8 import fp8_product
from uvit_jax.models.fused.weight_gradient import weight_gradient


def product(x: Float[Array, "*b k"], kernel: Float[Array, "k n"], *, fp8: bool, parts: int = 1) -> Float[Array, "*b n"]:
    """x kernel in x's dtype, or by `fp8_product`; the kernel's gradient in so many partial sums."""
    if fp8:
        return fp8_product(x, kernel)
    kernel = kernel.astype(x.dtype)
    return x @ kernel if parts == 1 else _product(x, kernel, parts)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x: Float[Array, "*b k"], kernel: Float[Array, "k n"], parts: int) -> Float[Array, "*b n"]:
    return x @ kernel


def _forward(x: Array, kernel: Array, parts: int) -> tuple[Array, tuple[Array, Array]]:
    return x @ kernel, (x, kernel)


def _backward(parts: int, saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    return dy @ kernel.T, weight_gradient(x, dy, parts).astype(kernel.dtype)


_product.defvjp(_forward, _backward)
