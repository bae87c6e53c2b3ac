"""The arrays of layers that are computed here and not by the layers themselves."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


def bias_of(
    layer: nnx.Linear | nnx.LinearGeneral | nnx.Conv | nnx.LayerNorm,
) -> Float[Array, "..."]:
    """Its bias, float32."""
    assert layer.bias is not None
    return jnp.asarray(layer.bias[...])


def scale_of(norm: nnx.LayerNorm) -> Float[Array, " d"]:
    """Its scale, float32."""
    assert norm.scale is not None
    return jnp.asarray(norm.scale[...])
