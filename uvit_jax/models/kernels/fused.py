"""The block of `models/blocks.py` in fewer passes over memory: the same numbers, about 1 % faster.

A sublayer leaves its last sum, x + (product + bias), to the norm that comes next, which takes it in
its own pass and has one backward pass for both. `Unsummed` is such a sum.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from uvit_jax.models.blocks import MLP, Block, LongSkip, Norm
from uvit_jax.models.kernels import gelu
from uvit_jax.models.kernels import norm as norms
from uvit_jax.models.kernels.compute import Compute
from uvit_jax.models.kernels.fused_attention import attention
from uvit_jax.models.kernels.products import gradient_parts
from uvit_jax.models.layers import bias_of, broadcast_like, linear, scale_of
from uvit_jax.models.placement import hidden, stream


class Unsummed(NamedTuple):
    """The residual stream as the sum x + (product + bias), of which None is left out."""

    x: Float[Array, "b t d"]
    product: Float[Array, "b t d"] | None = None
    bias: Float[Array, " d"] | None = None


def block(
    compute: Compute,
    layer: Block,
    x: Float[Array, "b t d"],
    skip: Float[Array, "b t d"] | None,
    time: Float[Array, "b d"] | None,
) -> Float[Array, "b t d"]:
    """`layer(x, skip, time)`."""
    return summed(compute, unsummed_block(compute, layer, Unsummed(x), skip, time))


def unsummed_block(
    compute: Compute,
    layer: Block,
    x: Unsummed,
    skip: Float[Array, "b t d"] | None,
    time: Float[Array, "b d"] | None,
) -> Unsummed:
    """`layer(x, skip, time)` whose last sum is left to be taken, of an x that is left so too."""
    [r], h = add_norm(compute, layer.norm1, _merged(compute, layer.skip, x, skip), time)
    return _after_norm(compute, layer, r, h, time)


def forking_block(
    compute: Compute, layer: Block, x: Unsummed, time: Float[Array, "b d"] | None
) -> tuple[Unsummed, Float[Array, "b t d"]]:
    """`unsummed_block` without a skip, and x itself, summed, as the skip of a later block."""
    (r, start), h = add_norm(compute, layer.norm1, _merged(compute, layer.skip, x, None), time, 2)
    return _after_norm(compute, layer, r, h, time), start


def summed(compute: Compute, x: Unsummed) -> Float[Array, "b t d"]:
    """The stream itself, where no norm reads it next."""
    if x.product is None and x.bias is None:
        return stream(compute.placement, x.x)
    add = _by_rows(compute, x.x.shape[-1], _residual_add)
    return stream(compute.placement, add((x.x, x.product), (x.bias,)))


def add_norm(
    compute: Compute, layer: Norm, x: Unsummed, time: Float[Array, "b d"] | None, ways: int = 1
) -> tuple[list[Float[Array, "b t d"]], Float[Array, "b t d"]]:
    """The sum r of the stream, and `layer(r, time)`.

    r comes as often as `ways`: of a stream that goes two ways the gradients are then added in the
    norm's one backward pass.
    """
    d = x.x.shape[-1]
    kernel = _by_rows(compute, d, functools.partial(_add_norm, ways))
    streams = x.x, x.product
    if layer.modulation is None:
        *r, h = kernel(streams, (x.bias, scale_of(layer.norm), bias_of(layer.norm)))
    else:
        *r, h = kernel(streams, (x.bias, jnp.ones(d), jnp.zeros(d)))
        assert time is not None
        scale, shift = jnp.split(linear(layer.modulation, time)[:, None], 2, axis=-1)
        h = h * (1 + broadcast_like(scale, h)) + broadcast_like(shift, h)
    *r, h = (stream(compute.placement, a) for a in (*r, h))
    return r, h


def merge(
    compute: Compute, layer: LongSkip, x: Float[Array, "b t d"], skip: Float[Array, "b t d"]
) -> Unsummed:
    """`layer(x, skip)`; "concat" as x W_1 + skip W_2 + b, with no concatenation."""
    match layer.kind:
        case "concat":
            kernel, bias = layer.kernel[...], jnp.asarray(layer.bias[...])
            halves = (x, kernel[0]), (skip, kernel[1])
            first, second = (compute.product(*half) for half in halves)
            if compute.placement.splits_channels:  # one all-reduce, of their sum
                return Unsummed(first + second, None, bias)
            return Unsummed(first, stream(compute.placement, second), bias)
        case "add_then_linear":
            product = compute.product(x + skip, layer.linear.kernel[...])
            return Unsummed(product, None, bias_of(layer.linear))
        case "linear_then_add":
            product = compute.product(skip, layer.linear.kernel[...])
            return Unsummed(x, product, bias_of(layer.linear))
        case _:
            return Unsummed(x, skip)


def mlp(
    compute: Compute, layer: MLP, x: Float[Array, "b t d"]
) -> tuple[Float[Array, "b t d"], Float[Array, " d"]]:
    """The product and the bias that `layer(x)` is the sum of."""
    placement, implementation = compute.placement, compute.implementation(x.shape[-1])
    u = hidden(placement, _mlp_product(compute, x, layer.fc1.kernel[...]))
    kernel = functools.partial(gelu.bias_gelu, implementation=implementation)
    bias = bias_of(layer.fc1)
    g = kernel(u, bias) if implementation == "xla" else placement.columns(kernel, u, bias)
    product = _mlp_product(compute, hidden(placement, g), layer.fc2.kernel[...])
    return stream(placement, product), bias_of(layer.fc2)


def _mlp_product(
    compute: Compute, x: Float[Array, "b t k"], kernel: Float[Array, "k n"]
) -> Float[Array, "b t n"]:
    parts = 1
    # Over several devices each partial sum would be all-reduced by itself.
    if compute.placement.single_device and x.dtype.itemsize == 2:
        tokens = x.shape[0] * x.shape[1]
        parts = gradient_parts(tokens, kernel.shape, compute.placement.platform)
    return compute.product(x, kernel, parts)


def _merged(compute: Compute, layer: LongSkip | None, x: Unsummed, skip: Array | None) -> Unsummed:
    if layer is not None:
        assert skip is not None
        x = merge(compute, layer, summed(compute, x), skip)
    return x._replace(x=stream(compute.placement, x.x))


def _after_norm(compute: Compute, layer: Block, r: Array, h: Array, time: Array | None) -> Unsummed:
    x = Unsummed(r, *attention(compute, layer.attn, h))
    [r], h = add_norm(compute, layer.norm2, x, time)
    return Unsummed(r, *mlp(compute, layer.mlp, h))


def _by_rows(compute: Compute, d: int, kernel: Callable) -> Callable[[tuple, tuple], Any]:
    """A kernel of streams and weights, run by each device itself if XLA can't partition it."""
    implementation = compute.implementation(d)
    bound = functools.partial(kernel, implementation)
    if implementation == "xla":
        return bound
    return functools.partial(compute.placement.rows, bound)


def _add_norm(
    ways: int, implementation: norms.Implementation, streams: tuple, weights: tuple
) -> tuple[Array, ...]:
    return norms.add_norm(*streams, *weights, implementation=implementation, ways=ways)


def _residual_add(implementation: norms.Implementation, streams: tuple, weights: tuple) -> Array:
    return norms.residual_add(*streams, *weights, implementation=implementation)
