"""The TAESD family (github.com/madebyollin/taesd): small autoencoders without a variance."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from uvit_jax.errors import UserError, check_choice
from uvit_jax.models.frozen.autoencoder_layers import (
    AnyArray,
    check_shape,
    convolution,
    upsample_nearest,
)
from uvit_jax.models.uvit_config import DTYPES

HALVINGS = 3
BLOCKS = 3  # at each resolution but the finest, which has one


@dataclasses.dataclass(frozen=True)
class TinyAutoencoderConfig:
    """The architecture of a tiny autoencoder.

    Attributes:
      z_channels: channels of the latents: 4 (TAESD, TAESDXL), 16 (TAESD3, TAEF1) or 32 (TAEF2).
      channels: width of every hidden layer.
      global_norm: True if the blocks at the coarsest resolution have a `GlobalNorm` (TAEF2).
      dtype: dtype of the convolutions; parameters are float32 either way.
    """

    z_channels: int = 4
    channels: int = 64
    global_norm: bool = False
    dtype: str = "float32"

    def __post_init__(self):
        check_choice("dtype", self.dtype, DTYPES)
        for field in ("z_channels", "channels"):
            if getattr(self, field) < 1:
                raise UserError(f"{field} is {getattr(self, field)}, expected at least 1")

    @property
    def factor(self) -> int:
        """Pixels of the image per pixel of the latents, along each side."""
        return 2**HALVINGS


class TinyAutoencoder(nnx.Module):
    """Images in [-1, 1] to latents and back, deterministic; inside, images are in [0, 1]."""

    def __init__(self, config: TinyAutoencoderConfig, rngs: nnx.Rngs):
        self.config = config
        self.encoder = TinyEncoder(config, rngs=rngs)
        self.decoder = TinyDecoder(config, rngs=rngs)

    def encode(self, x: Float[AnyArray, "b h w c"]) -> Float[Array, "b i j z"]:
        """Latents `[b, h/8, w/8, z]` of images `[b, h, w, 3]` in [-1, 1], in float32.

        Raises:
          UserError: for another number of channels than 3, or sides that are not multiples of 8.
        """
        check_shape("images", x, 3, self.config.factor)
        return self.encoder((jnp.asarray(x) + 1) / 2).astype(jnp.float32)

    def decode(self, z: Float[AnyArray, "b i j z"]) -> Float[Array, "b h w c"]:
        """Images `[b, 8 i, 8 j, 3]`, float32, about [-1, 1], not clipped, of `encode`'s latents.

        Raises:
          UserError: for another number of channels than the config's.
        """
        check_shape("latents", z, self.config.z_channels)
        return self.decoder(jnp.asarray(z)).astype(jnp.float32) * 2 - 1


class TinyEncoder(nnx.Module):
    """A block, then thrice a stride-2 convolution and three blocks: [0, 1] images to latents."""

    def __init__(self, config: TinyAutoencoderConfig, *, rngs: nnx.Rngs):
        d, dtype = config.channels, jnp.dtype(config.dtype)
        self.conv_in = convolution(3, d, 3, dtype=dtype, rngs=rngs)
        self.block_in = TinyBlock(d, global_norm=False, dtype=dtype, rngs=rngs)
        self.downsample = nnx.List(
            convolution(d, d, 3, strides=2, use_bias=False, dtype=dtype, rngs=rngs)
            for _ in range(HALVINGS)
        )
        self.down = nnx.List(
            nnx.List(
                _stage(
                    d, global_norm=config.global_norm and i == HALVINGS - 1, dtype=dtype, rngs=rngs
                )
            )
            for i in range(HALVINGS)
        )
        self.conv_out = convolution(d, config.z_channels, 3, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j z"]:
        h = self.block_in(self.conv_in(x))
        for downsample, blocks in zip(self.downsample, self.down, strict=True):
            h = downsample(h)
            for block in blocks:
                h = block(h)
        return self.conv_out(h)


class TinyDecoder(nnx.Module):
    """Three times three blocks and a doubling, then a block: latents to [0, 1] images.

    Latents are first squashed to (-3, 3).
    """

    def __init__(self, config: TinyAutoencoderConfig, *, rngs: nnx.Rngs):
        d, dtype = config.channels, jnp.dtype(config.dtype)
        self.conv_in = convolution(config.z_channels, d, 3, dtype=dtype, rngs=rngs)
        self.up = nnx.List(
            nnx.List(_stage(d, global_norm=config.global_norm and i == 0, dtype=dtype, rngs=rngs))
            for i in range(HALVINGS)
        )
        self.upsample = nnx.List(
            convolution(d, d, 3, use_bias=False, dtype=dtype, rngs=rngs) for _ in range(HALVINGS)
        )
        self.block_out = TinyBlock(d, global_norm=False, dtype=dtype, rngs=rngs)
        self.conv_out = convolution(d, 3, 3, dtype=dtype, rngs=rngs)

    def __call__(self, z: Float[Array, "b i j z"]) -> Float[Array, "b h w c"]:
        h = jax.nn.relu(self.conv_in(3 * jnp.tanh(z / 3)))
        for blocks, upsample in zip(self.up, self.upsample, strict=True):
            for block in blocks:
                h = block(h)
            h = upsample(upsample_nearest(h))
        return self.conv_out(self.block_out(h))


class TinyBlock(nnx.Module):
    """ReLU(x + three 3x3 convolutions with ReLUs between), after a `GlobalNorm` if there is one."""

    def __init__(self, channels: int, *, global_norm: bool, dtype: DTypeLike, rngs: nnx.Rngs):
        self.pool = GlobalNorm(channels, dtype=dtype, rngs=rngs) if global_norm else None
        self.convs = nnx.List(
            convolution(channels, channels, 3, dtype=dtype, rngs=rngs) for _ in range(3)
        )

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        if self.pool is not None:
            x = self.pool(x)
        h = x
        for i, conv in enumerate(self.convs):
            h = conv(jax.nn.relu(h) if i else h)
        return jax.nn.relu(h + x)


class GlobalNorm(nnx.Module):
    """x + W_2 ReLU(GN(W_1 x)), four times wider inside; 4 groups over the whole image, eps 1e-5."""

    def __init__(self, channels: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        inner = 4 * channels
        self.expand = convolution(channels, inner, 1, use_bias=False, dtype=dtype, rngs=rngs)
        self.norm = nnx.GroupNorm(
            inner, 4, epsilon=1e-5, dtype=dtype, use_fast_variance=False, rngs=rngs
        )
        self.contract = convolution(inner, channels, 1, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return x + self.contract(jax.nn.relu(self.norm(self.expand(x))))


def _stage(
    channels: int, *, global_norm: bool, dtype: DTypeLike, rngs: nnx.Rngs
) -> list[TinyBlock]:
    return [
        TinyBlock(channels, global_norm=global_norm, dtype=dtype, rngs=rngs) for _ in range(BLOCKS)
    ]
