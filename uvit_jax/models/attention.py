"""Multi-head self-attention, with the kernel chosen by hardware and dtype."""

import functools

import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from uvit_jax.models.fused.attention import mosaic_attention, packed_attention, resolve
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
        b, t, d = x.shape
        kernel = self.proj.kernel[...].astype(self.dtype)
        heads, head_dim, _ = kernel.shape
        implementation = resolve(self.implementation, (b, t, 3, heads, head_dim), self.dtype, self.layout.platform)
        if implementation == "mosaic":
            attend = functools.partial(mosaic_attention, head_dim=head_dim)
            flat = checkpoint_name(self.layout.attend_planes(attend, self._planes(x)), "attention")
            return stream(self.layout, flat @ kernel.reshape(-1, d)), bias_of(self.proj)
        out = self.layout.attend(functools.partial(packed_attention, implementation=implementation), self.qkv(x))
        if implementation != "triton":  # whose own backward pass names what it keeps
            out = checkpoint_name(out, "attention")
        product = jnp.einsum("bthk,hkd->btd", out, kernel)
        return stream(self.layout, product), bias_of(self.proj)

    def _planes(self, x: Float[Array, "b t d"]) -> Float[Array, "3 b t c"]:
        """Queries, keys and values with the heads side by side, by a product that writes them so.

        An axis for each head, or one of three within a token, would be padded to tiles on a TPU, and copied.
        """
        weight = self.qkv.kernel[...].astype(self.dtype)
        planes = jnp.einsum("btd,dsc->sbtc", x, weight.reshape(*weight.shape[:2], -1))
        if self.qkv.bias is None:
            return planes
        return planes + bias_of(self.qkv).astype(self.dtype).reshape(3, 1, 1, -1)
