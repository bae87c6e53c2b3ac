"""The text tower of CLIP (arXiv:2103.00020): token ids to the states that condition a U-ViT."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from uvit_jax.errors import UserError, check_choice
from uvit_jax.models.frozen.clip_layers import ACTIVATIONS, activate, layer_norm
from uvit_jax.models.uvit_config import DTYPES

TokenIds = Int[Array, "b l"] | Int[np.ndarray, "b l"]


@dataclasses.dataclass(frozen=True)
class CLIPTextConfig:
    """The architecture of a CLIP text tower; the defaults are those of OpenAI's ViT-L/14.

    Attributes:
      vocab_size: rows of the token table.
      context_length: the most tokens a text may have.
      width: width of every state.
      layers: number of blocks.
      heads: attention heads; head_dim = width / heads.
      mlp_ratio: hidden width of the MLP over `width`.
      activation: of the MLP, "quick_gelu" (OpenAI's) or "gelu" (OpenCLIP's), see `activate`.
      projection: width of the embedding that texts and images share; 0 for a tower without one.
      dtype: dtype of the matrix products; parameters, LayerNorm, softmax and the residual
        stream are float32 either way.
    """

    vocab_size: int = 49408
    context_length: int = 77
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_ratio: int | float = 4
    activation: str = "quick_gelu"
    projection: int = 0
    dtype: str = "float32"

    def __post_init__(self):
        check_choice("dtype", self.dtype, DTYPES)
        check_choice("activation", self.activation, ACTIVATIONS)
        for field in ("vocab_size", "context_length", "width", "layers", "heads", "hidden_dim"):
            if getattr(self, field) < 1:
                raise UserError(f"{field} is {getattr(self, field)}, expected at least 1")
        if self.projection < 0:
            raise UserError(f"projection is {self.projection}, expected 0 (none) or more")
        if self.width % self.heads:
            raise UserError(f"width is {self.width}, expected a multiple of heads = {self.heads}")

    @property
    def hidden_dim(self) -> int:
        """Hidden width of the MLP."""
        return round(self.width * self.mlp_ratio)


class CLIPText(nnx.Module):
    """A pre-LN transformer with causal attention, and a last LayerNorm."""

    def __init__(self, config: CLIPTextConfig, rngs: nnx.Rngs):
        self.config = config
        d, dtype = config.width, jnp.dtype(config.dtype)
        # The initial standard deviations are those of CLIP's own code.
        self.token_embed = nnx.Embed(
            config.vocab_size, d, embedding_init=nnx.initializers.normal(0.02), rngs=rngs
        )
        self.pos_embed = nnx.Param(0.01 * rngs.params.normal((config.context_length, d)))
        self.blocks = nnx.List(TextBlock(config, rngs=rngs) for _ in range(config.layers))
        self.final_norm = layer_norm(d, rngs=rngs)
        self.projection = (
            nnx.Linear(
                d,
                config.projection,
                use_bias=False,
                kernel_init=_normal(d**-0.5),
                dtype=dtype,
                rngs=rngs,
            )
            if config.projection
            else None
        )

    def __call__(self, token_ids: TokenIds) -> Float[Array, "b l d"]:
        """Last hidden states, after the final LayerNorm, float32.

        An id outside the vocabulary gives NaN.

        Raises:
          UserError: for more tokens than the context has room for.
        """
        length = token_ids.shape[1]
        if length > self.config.context_length:
            raise UserError(
                f"the texts have {length} tokens, expected at most {self.config.context_length}"
            )
        x = self.token_embed(jnp.asarray(token_ids)) + self.pos_embed[:length]
        for block in self.blocks:
            x = block(x)
        return self.final_norm(x)

    def embed(self, token_ids: TokenIds) -> Float[Array, "b p"]:
        """The texts' embeddings, float32, not normalized: the first end token's state, projected.

        The end token has the highest id of CLIP's vocabulary, so padding does not matter.

        Raises:
          UserError: for a tower without a projection, and as calling the tower does.
        """
        if self.projection is None:
            raise UserError(
                "the text tower has no projection, expected one: text embeddings are its output"
            )
        end = jnp.argmax(jnp.asarray(token_ids), axis=1)
        state = jnp.take_along_axis(self(token_ids), end[:, None, None], axis=1)[:, 0]
        return self.projection(state).astype(jnp.float32)


class TextBlock(nnx.Module):
    """x += attention(LN(x)); x += MLP(LN(x)), on a residual stream in float32."""

    def __init__(self, config: CLIPTextConfig, *, rngs: nnx.Rngs):
        d, hidden, dtype = config.width, config.hidden_dim, jnp.dtype(config.dtype)
        residual = _normal((2 * config.layers * d) ** -0.5)
        self.norm1 = layer_norm(d, rngs=rngs)
        self.attn = CausalAttention(d, config.heads, residual=residual, dtype=dtype, rngs=rngs)
        self.norm2 = layer_norm(d, rngs=rngs)
        self.fc1 = nnx.Linear(
            d, hidden, kernel_init=_normal((2 * d) ** -0.5), dtype=dtype, rngs=rngs
        )
        self.fc2 = nnx.Linear(hidden, d, kernel_init=residual, dtype=dtype, rngs=rngs)
        self.activation = config.activation

    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(activate(self.fc1(self.norm2(x)), self.activation))


class CausalAttention(nnx.Module):
    """Multi-head causal self-attention, every projection with a bias."""

    def __init__(
        self, width: int, heads: int, *, residual: nnx.Initializer, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        k = width // heads
        self.qkv = nnx.LinearGeneral(
            width, (3, heads, k), kernel_init=_normal(width**-0.5), dtype=dtype, rngs=rngs
        )
        self.proj = nnx.LinearGeneral(
            (heads, k), width, axis=(-2, -1), kernel_init=residual, dtype=dtype, rngs=rngs
        )

    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        q, k, v = jnp.moveaxis(self.qkv(x), 2, 0)
        # Not fused: it hardly matters for 77 tokens, an odd number that cuDNN's don't all take.
        return self.proj(
            jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="xla")
        )


def _normal(std: float) -> nnx.Initializer:
    return nnx.initializers.normal(std)
