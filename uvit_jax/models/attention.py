"""Multi-head self-attention as the formula has it; `kernels/fused_attention.py` runs it fast."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from uvit_jax.models.layers import NORMAL_02, bias_of, broadcast_like


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
        self.dtype = dtype
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
        qkv = jnp.einsum("btd,dshk->btshk", x, self.qkv.kernel[...].astype(self.dtype))
        if self.qkv.bias is not None:
            qkv = qkv + broadcast_like(bias_of(self.qkv), qkv)
        query, key, value = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]  # [b, t, heads, head_dim] each
        out = jax.nn.dot_product_attention(query, key, value)
        product = jnp.einsum("bthk,hkd->btd", out, self.proj.kernel[...].astype(self.dtype))
        return product + broadcast_like(bias_of(self.proj), product)
