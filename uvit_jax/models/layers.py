"""Layers whose gradients are summed in float32, and the initial weights of the paper's code.

A bias or a row of positions meets thousands of tokens. What it adds is in the layer's dtype; its
gradient, left to the transpose of a broadcast, would be summed in bfloat16, percents off.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

AnyArray = jax.Array | np.ndarray

# Linear layers and the position embedding: N(0, 0.02). The paper's code truncates at +-2, a hundred
# standard deviations away.
NORMAL_02 = nnx.initializers.normal(0.02)
EPSILON = 1e-5  # of LayerNorm, as PyTorch has it


def torch_uniform(fan_in: int) -> nnx.Initializer:
    """PyTorch's default for convolutions, weight and bias: U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    bound = 1 / math.sqrt(fan_in)

    def init(key, shape, dtype=None, out_sharding=None):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def bias_of(
    layer: nnx.Linear | nnx.LinearGeneral | nnx.Conv | nnx.LayerNorm,
) -> Float[Array, "..."]:
    """The layer's bias, float32."""
    assert layer.bias is not None
    return jnp.asarray(layer.bias[...])


def scale_of(norm: nnx.LayerNorm) -> Float[Array, " d"]:
    """The norm's scale, float32."""
    assert norm.scale is not None
    return jnp.asarray(norm.scale[...])


def broadcast_like(
    row: Float[Array, "..."], y: Float[Array, "..."] | jax.ShapeDtypeStruct
) -> Float[Array, "..."]:
    """`row` in y's dtype and, by NumPy's rules, y's shape; its gradient is summed in float32."""
    return _broadcast(row, y.shape, jnp.dtype(y.dtype))


def linear(layer: nnx.Linear, x: Float[AnyArray, "*b k"]) -> Float[Array, "*b n"]:
    """x W + b of the layer, in its dtype."""
    y = jnp.asarray(x, layer.dtype) @ layer.kernel[...].astype(layer.dtype)
    return y + broadcast_like(bias_of(layer), y)


def convolve(layer: nnx.Conv, x: Float[AnyArray, "b h w c"]) -> Float[Array, "b i j d"]:
    """3x3 convolution with padding 1 and bias, in the layer's dtype (`embeddings.conv3x3`)."""
    assert isinstance(layer.strides, int)
    y = jax.lax.conv_general_dilated(
        jnp.asarray(x, layer.dtype),
        layer.kernel[...].astype(layer.dtype),
        (layer.strides, layer.strides),
        [(1, 1), (1, 1)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y + broadcast_like(bias_of(layer), y)


def lookup(layer: nnx.Embed, ids: Int[AnyArray, " b"], dtype: DTypeLike) -> Float[Array, "b d"]:
    """Rows of the table; NaN for an id outside it: -1, an unknown label, is not its last row.

    The cast comes after the look-up, so that the gradient of a row that occurs often is summed in
    float32.
    """
    rows = layer.embedding[...].at[jnp.asarray(ids)]
    return rows.get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False).astype(dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _broadcast(row: Array, shape: tuple[Any, ...], dtype: jnp.dtype) -> Array:
    return jnp.broadcast_to(row.astype(dtype), shape)


@_broadcast.defjvp
def _broadcast_tangent(
    shape: tuple[Any, ...], dtype: jnp.dtype, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    (row,), (tangent,) = primals, tangents
    wide = jnp.promote_types(jnp.promote_types(row.dtype, dtype), jnp.float32)
    # Broadcast before the cast, so that the transpose casts before it sums.
    broadcast = jnp.broadcast_to(tangent.astype(wide), shape).astype(dtype)
    return _broadcast(row, shape, dtype), broadcast
