"""The transformer block of U-ViT (arXiv:2209.12152, Fig. 1) as its formulas have it.

`kernels/fused.py` computes the same numbers in fewer passes over memory; it is what `UViT` runs.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from uvit_jax.models.attention import Attention
from uvit_jax.models.layers import EPSILON, NORMAL_02
from uvit_jax.models.uvit_config import UViTConfig


class Block(nnx.Module):
    """x = merge(x, skip) where a skip arrives; x += attention(LN(x)); x += MLP(LN(x))."""

    def __init__(self, config: UViTConfig, *, takes_skip: bool, rngs: nnx.Rngs):
        dtype, d = jnp.dtype(config.compute_dtype), config.embed_dim
        takes_skip = takes_skip and config.skip != "none"
        self.skip = LongSkip(config.skip, d, dtype=dtype, rngs=rngs) if takes_skip else None
        self.norm1 = Norm(config, rngs=rngs)
        self.attn = Attention(d, config.num_heads, qkv_bias=config.qkv_bias, dtype=dtype, rngs=rngs)
        self.norm2 = Norm(config, rngs=rngs)
        self.mlp = MLP(d, int(d * config.mlp_ratio), dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b t d"],
        skip: Float[Array, "b t d"] | None,
        time: Float[Array, "b d"] | None,
    ) -> Float[Array, "b t d"]:
        if self.skip is not None:
            assert skip is not None
            x = self.skip(x, skip)
        x = x + self.attn(self.norm1(x, time))
        return x + self.mlp(self.norm2(x, time))


class LongSkip(nnx.Module):
    """A long skip h_s joins the stream h_m, by one of the paper's ways (Sec. 3.1, Fig. 2a)."""

    def __init__(self, kind: str, embed_dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.kind, self.dtype, d = kind, dtype, embed_dim
        if kind == "concat":  # a kernel for h_m and one for h_s
            self.kernel = nnx.Param(NORMAL_02(rngs.params(), (2, d, d), jnp.float32))
            self.bias = nnx.Param(jnp.zeros((d,), jnp.float32))
        elif kind != "add":
            self.linear = nnx.Linear(d, d, dtype=dtype, kernel_init=NORMAL_02, rngs=rngs)

    def __call__(self, x: Float[Array, "b t d"], skip: Float[Array, "b t d"]) -> Array:
        match self.kind:
            case "concat":
                both = jnp.concatenate([x, skip], axis=-1)
                kernel = self.kernel[...].reshape(both.shape[-1], -1)
                return both @ kernel.astype(self.dtype) + self.bias[...].astype(self.dtype)
            case "add_then_linear":
                return self.linear(x + skip)
            case "linear_then_add":
                return x + self.linear(skip)
            case _:
                return x + skip


class Norm(nnx.Module):
    """LayerNorm(h), or with time = "adaln" the paper's AdaLN(h, y) = y_s LayerNorm(h) + y_b.

    (y_s, y_b) is a linear projection of the time embedding (Sec. 3.1); y_s = 1 and y_b = 0 on
    average at first. Statistics are in float32.
    """

    def __init__(self, config: UViTConfig, *, rngs: nnx.Rngs):
        adaptive, d = config.time == "adaln", config.embed_dim
        dtype = jnp.dtype(config.compute_dtype)
        self.norm = nnx.LayerNorm(
            d,
            epsilon=EPSILON,
            dtype=dtype,
            use_scale=not adaptive,
            use_bias=not adaptive,
            use_fast_variance=False,
            rngs=rngs,
        )
        self.modulation = (
            nnx.Linear(d, 2 * d, dtype=dtype, kernel_init=NORMAL_02, rngs=rngs)
            if adaptive
            else None
        )

    def __call__(
        self, x: Float[Array, "b t d"], time: Float[Array, "b d"] | None
    ) -> Float[Array, "b t d"]:
        h = self.norm(x)
        if self.modulation is None:
            return h
        assert time is not None
        scale, shift = jnp.split(self.modulation(time)[:, None], 2, axis=-1)
        return (1 + scale) * h + shift


class MLP(nnx.Module):
    """Linear D -> ratio D, exact GELU, Linear back."""

    def __init__(self, embed_dim: int, hidden_dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.fc1 = nnx.Linear(embed_dim, hidden_dim, dtype=dtype, kernel_init=NORMAL_02, rngs=rngs)
        self.fc2 = nnx.Linear(hidden_dim, embed_dim, dtype=dtype, kernel_init=NORMAL_02, rngs=rngs)

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))
