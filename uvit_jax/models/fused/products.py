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


def gradient_parts(tokens: int, shape: tuple[int, ...], platform: str) -> int:
    """Of the gradient of a kernel of that shape, a sum over tokens, on one device: 1, or `PARTS` on a GPU where its
    tiles come to little more than whole rounds of multiprocessors.

    U-ViT-H's fc1 and fc2 have 162 tiles, two rounds of which a third is idle; a product of one round is left to
    cuBLAS, which splits it by itself.
    """
    tiles = math.prod(-(-size // tile) for size, tile in zip(sorted(shape), TILE, strict=True))
    rounds = -(-tiles // MULTIPROCESSORS)
    idle = 1 - tiles / (rounds * MULTIPROCESSORS)
    return PARTS if platform == "gpu" and rounds > 1 and idle > IDLE and tokens % PARTS == 0 else 1


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x: Float[Array, "*b k"], kernel: Float[Array, "k n"], parts: int) -> Float[Array, "*b n"]:
    return x @ kernel


def _forward(x: Array, kernel: Array, parts: int) -> tuple[Array, tuple[Array, Array]]:
    return x @ kernel, (x, kernel)


def _backward(parts: int, saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    return dy @ kernel.T, weight_gradient(x, dy, parts).astype(kernel.dtype)


_product.defvjp(_forward, _backward)
