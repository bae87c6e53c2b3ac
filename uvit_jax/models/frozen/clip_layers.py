"""Activation and LayerNorm of both CLIP towers."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

ACTIVATIONS = ("quick_gelu", "gelu")


def activate(x: Float[Array, "*shape"], activation: str) -> Float[Array, "*shape"]:
    """GELU, exact ("gelu"), or CLIP's x sigmoid(1.702 x) ("quick_gelu")."""
    if activation == "quick_gelu":
        return x * jax.nn.sigmoid(1.702 * x)
    return jax.nn.gelu(x, approximate=False)


def layer_norm(d: int, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm in float32, eps 1e-5."""
    return nnx.LayerNorm(d, epsilon=1e-5, dtype=jnp.float32, use_fast_variance=False, rngs=rngs)
