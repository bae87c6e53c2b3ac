"""The MLP's matrix products: in 8 bits, or with a weight's gradient in partial sums."""

import functools

import jax
from jaxtyping import Array, Float

from uvit_jax.models.kernels.fp8 import SPECIAL, fp8_product
from uvit_jax.models.kernels.weight_gradient import weight_tangent


def product(
    x: Float[Array, "*b k"],
    kernel: Float[Array, "k n"],
    *,
    fp8: bool,
    special: int = SPECIAL,
    parts: int = 1,
) -> Float[Array, "*b n"]:
    """x kernel in x's dtype, or by `fp8_product` with so many special tokens; the kernel's gradient
    in so many partial sums.
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
