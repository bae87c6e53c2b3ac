"""Multi-head self-attention as the formula has it; `kernels/fused_attention.py` runs it fast."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from uvit_jax.models.layers import NORMAL_02


class Attention(nnx.Module):
    """Self-attention of a pre-LN ViT: softmax(q k^T / sqrt(head_dim)) v, softmax in float32.

    The query, key and value kernels are one array `[embed_dim, 3, heads, head_dim]`, so that heads
    are an axis of their own, which tensor parallelism can split.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        qkv_bias: bool,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        head_dim = embed_dim // num_heads
        self.qkv = nnx.LinearGeneral(
            embed_dim,
            (3, num_heads, head_dim),
            use_bias=qkv_bias,
            dtype=dtype,
            kernel_init=NORMAL_02,
            rngs=rngs,
        )
        self.proj = nnx.LinearGeneral(
            (num_heads, head_dim),
            embed_dim,
            axis=(-2, -1),
            dtype=dtype,
            kernel_init=NORMAL_02,
            rngs=rngs,
        )

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        query, key, value = jnp.moveaxis(self.qkv(x), 2, 0)  # [b, t, heads, head_dim] each
        logits = jnp.einsum("bqhk,bshk->bhqs", query, key, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits / query.shape[-1] ** 0.5).astype(value.dtype)
        return self.proj(jnp.einsum("bhqs,bshk->bqhk", weights, value))
