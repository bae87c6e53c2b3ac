"""The transformer block of U-ViT: a long skip coming in, attention, MLP, all on the residual stream."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from uvit_jax.models.attention import Attention
from uvit_jax.models.init import NORMAL_02
from uvit_jax.models.layout import ONE_DEVICE, Layout
from uvit_jax.models.uvit_config import UViTConfig


class SkipConcat(nnx.Module):
    """Linear(Concat(x, skip)) without the concatenation: x W_1 + skip W_2 + b, on the kernel `[2, d, d]`."""

    def __init__(self, embed_dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.dtype = dtype
        self.kernel = nnx.Param(NORMAL_02(rngs.params(), (2, embed_dim, embed_dim), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((embed_dim,), jnp.float32))

    def __call__(self, x: Float[Array, "b t d"], skip: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        kernel, bias = self.kernel[...].astype(self.dtype), self.bias[...].astype(self.dtype)
        return x @ kernel[0] + skip @ kernel[1] + bias


class SkipLinear(nnx.Module):
    """The paper's `add_then_linear`, Linear(x + skip), and `linear_then_add`, x + Linear(skip)."""

    def __init__(self, embed_dim: int, *, add_first: bool, dtype: DTypeLike, rngs: nnx.Rngs):
        self.add_first = add_first
        self.linear = nnx.Linear(embed_dim, embed_dim, dtype=dtype, kernel_init=NORMAL_02, rngs=rngs)

    def __call__(self, x: Float[Array, "b t d"], skip: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        return self.linear(x + skip) if self.add_first else x + self.linear(skip)


class SkipAdd(nnx.Module):
    """The paper's `add`: x + skip."""

    def __call__(self, x: Float[Array, "b t d"], skip: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        return x + skip


def make_skip(kind: str, embed_dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.Module | None:
    """The module that merges a long skip into the stream, by `UViTConfig.skip`; None for "none"."""
    match kind:
        case "concat":
            return SkipConcat(embed_dim, dtype=dtype, rngs=rngs)
        case "add_then_linear" | "linear_then_add":
            return SkipLinear(embed_dim, add_first=kind == "add_then_linear", dtype=dtype, rngs=rngs)
        case "add":
            return SkipAdd()
    return None


class LayerNorm(nnx.Module):
    """LayerNorm (eps 1e-5, statistics in float32), or AdaLN of the time: y_s * LN(x) + y_b.

    With `time` adaptive, (y_s, y_b) is a linear projection of the time embedding in place of the learned scale and
    shift (the paper's ablation of how time enters); it starts as the plain LayerNorm, y_s = 1 and y_b = 0 on average.
    """

    def __init__(self, embed_dim: int, *, adaptive: bool, dtype: DTypeLike, rngs: nnx.Rngs):
        affine = not adaptive
        self.norm = nnx.LayerNorm(
            embed_dim,
            epsilon=1e-5,
            dtype=dtype,
            use_scale=affine,
            use_bias=affine,
            use_fast_variance=False,
            rngs=rngs,
        )
        self.modulation = (
            nnx.Linear(embed_dim, 2 * embed_dim, dtype=dtype, kernel_init=NORMAL_02, rngs=rngs) if adaptive else None
        )

    def __call__(self, x: Float[Array, "b t d"], time: Float[Array, "b d"] | None) -> Float[Array, "b t d"]:
        x = self.norm(x)
        if self.modulation is None or time is None:
            return x
        scale, shift = jnp.split(self.modulation(time)[:, None], 2, axis=-1)
        return x * (1 + scale) + shift


class MLP(nnx.Module):
    """Linear D -> ratio D, exact GELU, Linear back."""

    def __init__(
        self, embed_dim: int, hidden_dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs, layout: Layout = ONE_DEVICE
    ):
        self.layout = layout
        self.fc1 = nnx.Linear(embed_dim, hidden_dim, dtype=dtype, kernel_init=NORMAL_02, rngs=rngs)
        self.fc2 = nnx.Linear(hidden_dim, embed_dim, dtype=dtype, kernel_init=NORMAL_02, rngs=rngs)

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        return self.fc2(jax.nn.gelu(self.layout.hidden(self.fc1(x)), approximate=False))


class Block(nnx.Module):
    """x = merge(x, skip) where a skip arrives; x += attention(LN(x)); x += MLP(LN(x))."""

    def __init__(
        self,
        config: UViTConfig,
        *,
        takes_skip: bool,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
        layout: Layout = ONE_DEVICE,
    ):
        d = config.embed_dim
        self.layout = layout
        adaptive = config.time == "adaln"
        self.skip = make_skip(config.skip, d, dtype=dtype, rngs=rngs) if takes_skip else None
        self.norm1 = LayerNorm(d, adaptive=adaptive, dtype=dtype, rngs=rngs)
        self.attn = Attention(
            d,
            config.num_heads,
            qkv_bias=config.qkv_bias,
            dtype=dtype,
            implementation=config.attention,
            rngs=rngs,
            layout=layout,
        )
        self.norm2 = LayerNorm(d, adaptive=adaptive, dtype=dtype, rngs=rngs)
        self.mlp = MLP(d, int(d * config.mlp_ratio), dtype=dtype, rngs=rngs, layout=layout)

    def __call__(
        self, x: Float[Array, "b t d"], skip: Float[Array, "b t d"] | None, time: Float[Array, "b d"] | None
    ) -> Float[Array, "b t d"]:
        if self.skip is not None:
            x = self.layout.tokens(self.skip(x, skip))
        x = self.layout.tokens(x + self.attn(self.norm1(x, time)))
        return self.layout.tokens(x + self.mlp(self.norm2(x, time)))
