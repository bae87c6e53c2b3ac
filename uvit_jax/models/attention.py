"""Multi-head self-attention, with the kernel chosen by hardware and dtype."""

import functools
from typing import Literal, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from uvit_jax.models.init import NORMAL_02
from uvit_jax.models.layout import ONE_DEVICE, Layout


def resolve_implementation(name: str, dtype: DTypeLike, platform: str) -> Literal["xla", "cudnn"]:
    """The kernel "auto" stands for: cuDNN's on a GPU in half precision (the only precision it has), XLA's elsewhere."""
    if name in ("xla", "cudnn"):
        return cast(Literal["xla", "cudnn"], name)
    half = jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
    return "cudnn" if half and platform == "gpu" else "xla"


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
        qkv = self.qkv(x)
        implementation = resolve_implementation(self.implementation, self.dtype, self.layout.platform)
        kernel = functools.partial(attend, implementation=implementation)
        out = self.layout.attend(kernel, qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
        return self.proj(checkpoint_name(out, "attention"))


def attend(
    query: Float[Array, "b t h k"],
    key: Float[Array, "b t h k"],
    value: Float[Array, "b t h k"],
    implementation: Literal["xla", "cudnn"],
) -> Float[Array, "b t h k"]:
    """softmax(q k^T / sqrt(k)) v by the named kernel, softmax in float32, for any number of tokens."""
    b, tokens, _, _ = query.shape
    if implementation == "xla" or tokens % 2 == 0:
        return jax.nn.dot_product_attention(query, key, value, implementation=implementation)
    # cuDNN's backward pass takes an even number of tokens: one more is added, which nothing attends to.
    query, key, value = (jnp.pad(a, ((0, 0), (0, 1), (0, 0), (0, 0))) for a in (query, key, value))
    lengths = jnp.full((b,), tokens, jnp.int32)
    out = jax.nn.dot_product_attention(
        query, key, value, query_seq_lengths=lengths, key_value_seq_lengths=lengths, implementation=implementation
    )
    return out[:, :tokens]
