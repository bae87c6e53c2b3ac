"""Multi-head self-attention, with the kernel chosen by hardware and dtype."""

import functools

import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from uvit_jax.models.fused.attention import packed_attention, resolve
from uvit_jax.models.init import NORMAL_02
from uvit_jax.models.layout import ONE_DEVICE, Layout, stream
from uvit_jax.models.weights import bias_of


class Attention(nnx.Module):
    """Self-attention of a pre-LN ViT: softmax(q k^T / sqrt(head_dim)) v, softmax in float32.

    The query, key and value kernels are one array `[embed_dim, 3, heads, head_dim]`, so that heads are an axis of
    their own, which tensor parallelism can split.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        qkv_bias: bool,
        dtype: DTypeLike,
        implementation: str,
        rngs: nnx.Rngs,
        layout: Layout = ONE_DEVICE,
    ):
        head_dim = embed_dim // num_heads
        self.implementation = implementation
        self.layout = layout
        self.dtype = dtype
        self.qkv = nnx.LinearGeneral(
            embed_dim, (3, num_heads, head_dim), use_bias=qkv_bias, dtype=dtype, kernel_init=NORMAL_02, rngs=rngs
        )
        self.proj = nnx.LinearGeneral(
            (num_heads, head_dim), embed_dim, axis=(-2, -1), dtype=dtype, kernel_init=NORMAL_02, rngs=rngs
        )

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        product, bias = self.product(x)
        return product + bias.astype(product.dtype)

    def product(self, x: Float[Array, "b t d"]) -> tuple[Float[Array, "b t d"], Float[Array, " d"]]:
        """The projected product and the projection's bias, which is left to who adds the product."""
        qkv = self.qkv(x)
        implementation = resolve(self.implementation, qkv.shape, self.dtype, self.layout.platform)
        out = self.layout.attend(functools.partial(packed_attention, implementation=implementation), qkv)
        kernel = self.proj.kernel[...].astype(self.dtype)
        if implementation != "triton":  # whose own backward pass names what it keeps
            out = checkpoint_name(out, "attention")
        product = jnp.einsum("bthk,hkd->btd", out, kernel)
        return stream(self.layout, product), bias_of(self.proj)
