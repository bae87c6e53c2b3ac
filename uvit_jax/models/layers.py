"""Layers whose parameters meet thousands of rows each: what they add is in the layers' dtype, and
the gradients of it are summed in float32. Left to the transpose of a broadcast they would be summed
in bfloat16, percents off.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from uvit_jax.models.weights import bias_of

AnyArray = jax.Array | np.ndarray


def spread(
    row: Float[Array, "..."], y: Float[Array, "..."] | jax.ShapeDtypeStruct
) -> Float[Array, "..."]:
    """`row` in the dtype and, by NumPy's rules, the shape of y; its gradient is summed in float32."""
    return _spread(row, y.shape, jnp.dtype(y.dtype))


def linear(layer: nnx.Linear, x: Float[AnyArray, "*b k"]) -> Float[Array, "*b n"]:
    """The layer's x W + b, in its dtype."""
    y = jnp.asarray(x, layer.dtype) @ layer.kernel[...].astype(layer.dtype)
    return y + spread(bias_of(layer), y)


def convolution(layer: nnx.Conv, x: Float[AnyArray, "b h w c"]) -> Float[Array, "b i j d"]:
    """The layer's 3x3 convolution with padding 1 and its bias, in its dtype (`embeddings.conv3x3`)."""
    assert isinstance(layer.strides, int)
    y = jax.lax.conv_general_dilated(
        jnp.asarray(x, layer.dtype),
        layer.kernel[...].astype(layer.dtype),
        (layer.strides, layer.strides),
        [(1, 1), (1, 1)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y + spread(bias_of(layer), y)


def lookup(layer: nnx.Embed, ids: Int[AnyArray, " b"], dtype: DTypeLike) -> Float[Array, "b d"]:
    """The table's rows of these ids, NaN for an id outside the table: -1, an unknown label, is not
    its last row.

    Cast after they are looked up, so that a row met often sums in float32.
    """
    rows = layer.embedding[...].at[jnp.asarray(ids)]
    return rows.get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False).astype(dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _spread(row: Array, shape: tuple[Any, ...], dtype: jnp.dtype) -> Array:
    return jnp.broadcast_to(row.astype(dtype), shape)


@_spread.defjvp
def _spread_tangent(
    shape: tuple[Any, ...], dtype: jnp.dtype, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    (row,), (tangent,) = primals, tangents
    wide = jnp.promote_types(jnp.promote_types(row.dtype, dtype), jnp.float32)
    # Broadcast before the cast, so that the transpose casts before it sums.
    return _spread(row, shape, dtype), jnp.broadcast_to(tangent.astype(wide), shape).astype(dtype)
