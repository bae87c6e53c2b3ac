"""Multi-head self-attention, with the kernel chosen by hardware and dtype."""

import functools
import math

import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from uvit_jax.models.init import NORMAL_02
from uvit_jax.models.kernels.attention import mosaic_attention, packed_attention, resolve
from uvit_jax.models.kernels.fp8 import SPECIAL, fp8_product
from uvit_jax.models.layers import spread
from uvit_jax.models.placement import ONE_DEVICE, Layout, stream
from uvit_jax.models.weights import bias_of


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
        implementation: str,
        rngs: nnx.Rngs,
        layout: Layout = ONE_DEVICE,
        fp8: bool = False,
        special: int = SPECIAL,
    ):
        head_dim = embed_dim // num_heads
        self.implementation = implementation
        self.layout, self.fp8, self.special = layout, fp8, special
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
        product, bias = self.product(x)
        return product + spread(bias, product)

    def product(self, x: Float[Array, "b t d"]) -> tuple[Float[Array, "b t d"], Float[Array, " d"]]:
        """The projected product and the projection's bias, which is left to who adds the product."""
        b, t, _ = x.shape
        kernel, bias = self.proj.kernel[...], bias_of(self.proj)
        heads, head_dim, d = kernel.shape
        examples, own_heads = self.layout.of_one_device(b, heads)
        own = examples, t, 3, own_heads, head_dim
        implementation = resolve(self.implementation, own, self.dtype, self.layout.platform)
        if implementation == "mosaic":
            attend = functools.partial(mosaic_attention, head_dim=head_dim)
            out = self.layout.attend_planes(attend, self._planes(x))
        else:
            out = self.layout.attend(
                functools.partial(packed_attention, implementation=implementation), self._packed(x)
            )
        if implementation not in (
            "triton",
            "hopper",
        ):  # whose own backward passes name what they keep
            out = checkpoint_name(out, "attention")
        if self.fp8:
            return stream(
                self.layout,
                self._fp8_product(out.reshape(b, t, heads * head_dim), kernel.reshape(-1, d)),
            ), bias
        kernel = kernel.astype(self.dtype)
        product = (
            out @ kernel.reshape(-1, d)
            if implementation == "mosaic"
            else jnp.einsum("bthk,hkd->btd", out, kernel)
        )
        return stream(self.layout, product), bias

    def _packed(self, x: Float[Array, "b t d"]) -> Float[Array, "b t 3 h k"]:
        """The queries, keys and values of every head."""
        if not self.fp8 and self.qkv.bias is None:
            return self.qkv(x)
        kernel = self.qkv.kernel[...]
        if not self.fp8:
            packed = jnp.einsum("btd,dshk->btshk", x, kernel.astype(self.dtype))
            return packed + spread(bias_of(self.qkv), packed)
        flat = self._fp8_product(x, kernel.reshape(kernel.shape[0], -1))
        packed = flat.reshape(*x.shape[:2], *kernel.shape[1:])
        return packed if self.qkv.bias is None else packed + spread(bias_of(self.qkv), packed)

    def _fp8_product(
        self, x: Float[Array, "b t k"], kernel: Float[Array, "k n"]
    ) -> Float[Array, "b t n"]:
        return fp8_product(x, kernel, self.special)

    def _planes(self, x: Float[Array, "b t d"]) -> Float[Array, "3 b t c"]:
        """Queries, keys and values with the heads side by side, by a product that writes them so.

        An axis for each head, or one of three within a token, would be padded to tiles on a TPU,
        and copied.
        """
        if self.fp8:
            packed = self._packed(x)
            return jnp.moveaxis(
                packed.reshape(*packed.shape[:3], math.prod(packed.shape[3:])), 2, 0
            )
        weight = self.qkv.kernel[...].astype(self.dtype)
        planes = jnp.einsum("btd,dsc->sbtc", x, weight.reshape(*weight.shape[:2], -1))
        if self.qkv.bias is None:
            return planes
        return planes + spread(bias_of(self.qkv).reshape(3, 1, 1, -1), planes)
