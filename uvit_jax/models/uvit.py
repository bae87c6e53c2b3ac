"""U-ViT: a ViT whose tokens are time, condition and noisy patches, with long skips.

arXiv:2209.12152, "All are Worth Words"; the network is its Fig. 1, each ablation one of Sec. 3.1.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Num

from uvit_jax.models.blocks import Block, Norm
from uvit_jax.models.embeddings import (
    PATCH_EMBEDS,
    TimeMLP,
    conv3x3,
    sincos_2d,
    timestep_embedding,
    unpatchify,
)
from uvit_jax.models.kernels import fused
from uvit_jax.models.kernels.compute import Compute
from uvit_jax.models.layers import NORMAL_02, broadcast_like, convolve, linear, lookup
from uvit_jax.models.placement import ONE_DEVICE, Placement
from uvit_jax.models.run_blocks import run_blocks
from uvit_jax.models.uvit_config import UViTConfig
from uvit_jax.models.uvit_inputs import check_inputs

__all__ = ["UViT", "UViTConfig"]

AnyArray = jax.Array | np.ndarray


class UViT(nnx.Module):
    """The network: `model(x, t, label=None, context=None)` predicts the noise, or another target.

    `plain` is the paper's forward pass, a specification. A call gives the same numbers by whatever
    runs fast on the hardware. Parameters are float32, block by block whatever `config.scan_blocks`
    is, so that a checkpoint serves every way of running.

    >>> config = UViTConfig(image_size=8, embed_dim=32, depth=3, num_heads=2, num_classes=10)
    >>> model = UViT(config, rngs=nnx.Rngs(0))
    >>> x, t, label = jnp.zeros((2, 8, 8, 3)), jnp.full(2, 500.0), jnp.array([3, 7])
    >>> jax.jit(model)(x, t, label).shape
    (2, 8, 8, 3)
    """

    def __init__(self, config: UViTConfig, *, rngs: nnx.Rngs, placement: Placement = ONE_DEVICE):
        """A network with fresh parameters.

        Args:
          config: the architecture and how it is computed.
          rngs: of the initial parameters, as `nnx.Rngs(0)`.
          placement: shards parameters and activations over a mesh; one device by default.
        """
        self.config, self.placement = config, placement
        dtype, d, half = jnp.dtype(config.compute_dtype), config.embed_dim, config.depth // 2
        channels, patch = config.in_channels, config.patch_size
        self.patch_embed = PATCH_EMBEDS[config.patch_embed](
            patch, channels, d, dtype=dtype, rngs=rngs
        )
        self.time_mlp = (
            TimeMLP(d, dtype=dtype, kernel_init=NORMAL_02, rngs=rngs) if config.time_mlp else None
        )
        normal = nnx.initializers.normal(1.0)
        self.label_embed = (
            nnx.Embed(config.num_classes, d, dtype=dtype, embedding_init=normal, rngs=rngs)
            if config.num_classes
            else None
        )
        self.context_embed = (
            nnx.Linear(config.context_dim, d, dtype=dtype, kernel_init=NORMAL_02, rngs=rngs)
            if config.context_dim
            else None
        )
        self.pos_embed = (
            nnx.Param(NORMAL_02(rngs.params(), (config.num_tokens, d), jnp.float32))
            if config.pos_embed == "learned"
            else None
        )
        self.in_blocks = nnx.List(Block(config, takes_skip=False, rngs=rngs) for _ in range(half))
        self.mid_block = Block(config, takes_skip=False, rngs=rngs)
        self.out_blocks = nnx.List(Block(config, takes_skip=True, rngs=rngs) for _ in range(half))
        self.norm = Norm(config, rngs=rngs)
        self.conv_before = (
            conv3x3(d, d, dtype=dtype, rngs=rngs) if config.conv == "before" else None
        )
        self.head = nnx.Linear(
            d, patch**2 * channels, dtype=dtype, kernel_init=NORMAL_02, rngs=rngs
        )
        self.conv_after = (
            conv3x3(channels, channels, dtype=dtype, rngs=rngs) if config.conv == "after" else None
        )

    def plain(
        self,
        x: Float[AnyArray, "b h w c"],
        t: Num[AnyArray, " b"],
        label: Int[AnyArray, " b"] | None = None,
        context: Float[AnyArray, "b l k"] | None = None,
    ) -> Float[Array, "b h w c"]:
        """The forward pass as the paper has it: `model(x, t, label, context)`, slower.

        Block i's output is the long skip of block depth + 1 - i, counted from 1. Products are in
        the dtype of activations, also where `config.dtype` is "fp8"; `remat`, `scan_blocks`,
        `attention`, `kernels` and the placement mean nothing here. Arguments are those of a call,
        unchecked.
        """
        h, time = self._tokens(x, t, label, context)
        skips = []
        for block in self.in_blocks:
            h = block(h, None, time)
            skips.append(h)
        h = self.mid_block(h, None, time)
        for block in self.out_blocks:
            h = block(h, skips.pop(), time)
        return self._image(self.norm(h, time))

    def __call__(
        self,
        x: Float[AnyArray, "b h w c"],
        t: Num[AnyArray, " b"],
        label: Int[AnyArray, " b"] | None = None,
        context: Float[AnyArray, "b l k"] | None = None,
    ) -> Float[Array, "b h w c"]:
        """The network's prediction for noisy images, in float32: `plain` as the hardware likes it.

        Args:
          x: noisy images or latents `[b, h, w, c]`.
          t: the network's own time, 0..1000 (a schedule's `model_time`), `[b]`.
          label: ids `[b]` in 0..num_classes-1; given exactly when the model has labels.
          context: text states `[b, context_length, context_dim]`; given exactly when the model has
            text.

        Raises:
          UserError: for a shape that is not the config's, a condition missing or too many, a label
            outside the table (checked where the label's value is known, that is outside `jit`).
        """
        check_inputs(self.config, x, t, label, context)
        compute = Compute.of(self.config, self.placement)
        h, time = self._tokens(x, t, label, context)
        blocks = list(self.in_blocks), self.mid_block, list(self.out_blocks)
        unsummed = run_blocks(self.config, compute, blocks, self.placement.tokens(h), time)
        return self._image(fused.add_norm(compute, self.norm, unsummed, time)[1])

    def _tokens(
        self, x: AnyArray, t: AnyArray, label: AnyArray | None, context: AnyArray | None
    ) -> tuple[Float[Array, "b t d"], Float[Array, "b d"] | None]:
        """All inputs as tokens (label, time, text, patches), and the time for AdaLN or None."""
        config = self.config
        dtype = jnp.dtype(config.compute_dtype)
        time = timestep_embedding(jnp.asarray(t), config.embed_dim).astype(dtype)
        if self.time_mlp is not None:
            time = self.time_mlp(time)
        tokens = []
        if self.label_embed is not None:
            tokens.append(lookup(self.label_embed, jnp.asarray(label), dtype)[:, None])
        if config.time == "token":
            tokens.append(time[:, None])
        if self.context_embed is not None:
            tokens.append(linear(self.context_embed, jnp.asarray(context)))
        tokens.append(self.patch_embed(jnp.asarray(x)))
        h = jnp.concatenate(tokens, axis=1)
        if self.pos_embed is not None:
            positions = self.pos_embed[...]
        else:
            patches = sincos_2d(config.grid, config.embed_dim)
            positions = jnp.pad(patches, ((config.num_extra_tokens, 0), (0, 0)))
        h = h + broadcast_like(positions, h)
        return h, time if config.time == "adaln" else None

    def _image(self, h: Float[Array, "b t d"]) -> Float[Array, "b h w c"]:
        """The prediction, from the normalised tokens of all inputs."""
        config = self.config
        h = h[:, config.num_extra_tokens :]
        if self.conv_before is not None:
            grid = h.reshape(h.shape[0], *config.grid, config.embed_dim)
            h = convolve(self.conv_before, grid).reshape(h.shape)
        image = unpatchify(linear(self.head, h), config.grid, config.patch_size)
        if self.conv_after is not None:
            image = convolve(self.conv_after, image)
        return image.astype(jnp.float32)
