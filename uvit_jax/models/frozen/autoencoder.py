"""The KL autoencoder of Stable Diffusion (arXiv:2112.10752): images to latent moments and back."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from uvit_jax.errors import UserError, check_choice
from uvit_jax.models.frozen.autoencoder_layers import (
    GROUPS,
    AnyArray,
    check_shape,
    convolution,
    group_norm,
    upsample_nearest,
)
from uvit_jax.models.uvit_config import DTYPES


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """The architecture of a KL autoencoder; the defaults are Stable Diffusion's KL-f8.

    Attributes:
      in_channels: channels of the image that goes in.
      out_channels: channels of the image that comes out.
      channels: width of the first resolution, a multiple of 32.
      multipliers: width of each resolution over `channels`; each but the last halves the image.
      num_res_blocks: residual blocks at each resolution of the encoder; the decoder has one more.
      z_channels: channels of the latents.
      middle_attention: True if a self-attention is between the two residual blocks in the middle.
      quant_convs: True if a 1x1 convolution follows the encoder, and another precedes the decoder
        (False for SD3's and Flux's).
      dtype: dtype of the convolutions; parameters and the statistics of GroupNorm are
        float32 either way.
    """

    in_channels: int = 3
    out_channels: int = 3
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    z_channels: int = 4
    middle_attention: bool = True
    quant_convs: bool = True
    dtype: str = "float32"

    def __post_init__(self):
        check_choice("dtype", self.dtype, DTYPES)
        for field in ("in_channels", "out_channels", "channels", "num_res_blocks", "z_channels"):
            if getattr(self, field) < 1:
                raise UserError(f"{field} is {getattr(self, field)}, expected at least 1")
        if self.channels % GROUPS:
            raise UserError(
                f"channels is {self.channels}, expected a multiple of {GROUPS} (the groups of its "
                "GroupNorm)"
            )
        if not self.multipliers or min(self.multipliers) < 1:
            raise UserError(
                f"multipliers is {self.multipliers}, expected one number of at least 1 a resolution"
            )

    @property
    def factor(self) -> int:
        """Pixels of the image per pixel of the latents, along each side."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels at each resolution, the finest first."""
        return tuple(self.channels * m for m in self.multipliers)


class AutoencoderKL(nnx.Module):
    """Images in [-1, 1] to the mean and logvar of their latents, and latents to images."""

    def __init__(self, config: AutoencoderConfig, rngs: nnx.Rngs):
        self.config = config
        z, dtype = config.z_channels, jnp.dtype(config.dtype)
        self.encoder = Encoder(config, rngs=rngs)
        self.quant_conv = (
            convolution(2 * z, 2 * z, 1, dtype=dtype, rngs=rngs) if config.quant_convs else None
        )
        self.post_quant_conv = (
            convolution(z, z, 1, dtype=dtype, rngs=rngs) if config.quant_convs else None
        )
        self.decoder = Decoder(config, rngs=rngs)

    def encode(self, x: Float[AnyArray, "b h w c"]) -> Float[Array, "b i j m"]:
        """Moments `[b, h/f, w/f, 2 z]`, float32, of images in [-1, 1]; f is 8 for KL-f8.

        Mean, then logvar, which is not clipped.

        f is 8 for KL-f8.

        Raises:
          UserError: for another number of channels than the config's, or sides that are not
            multiples of f.
        """
        check_shape("images", x, self.config.in_channels, self.config.factor)
        moments = self.encoder(jnp.asarray(x))
        return (moments if self.quant_conv is None else self.quant_conv(moments)).astype(
            jnp.float32
        )

    def decode(self, z: Float[AnyArray, "b i j z"]) -> Float[Array, "b h w c"]:
        """Images `[b, f i, f j, c]`, float32, about [-1, 1], not clipped, of unscaled latents.

        Unscaled: as `Normalization.denormalize` gives them. Raises a UserError for another number
        of channels.
        """
        check_shape("latents", z, self.config.z_channels)
        h = jnp.asarray(z)
        return self.decoder(h if self.post_quant_conv is None else self.post_quant_conv(h)).astype(
            jnp.float32
        )


class Encoder(nnx.Module):
    """Residual blocks at every resolution, halving in between; images to `[b, h/f, w/f, 2 z]`."""

    def __init__(self, config: AutoencoderConfig, *, rngs: nnx.Rngs):
        widths, dtype = config.widths, jnp.dtype(config.dtype)
        incoming = (config.channels, *widths[:-1])
        self.conv_in = convolution(config.in_channels, config.channels, 3, dtype=dtype, rngs=rngs)
        self.down = nnx.List(
            nnx.List(res_blocks(config.num_res_blocks, c_in, c_out, dtype=dtype, rngs=rngs))
            for c_in, c_out in zip(incoming, widths, strict=True)
        )
        # Padded by one row and column of zeros, below and to the right, as in training.
        self.downsample = nnx.List(
            convolution(c, c, 3, strides=2, padding=((0, 1), (0, 1)), dtype=dtype, rngs=rngs)
            for c in widths[:-1]
        )
        self.mid = Middle(widths[-1], attention=config.middle_attention, dtype=dtype, rngs=rngs)
        self.norm_out = group_norm(widths[-1], dtype=dtype, rngs=rngs)
        self.conv_out = convolution(widths[-1], 2 * config.z_channels, 3, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j m"]:
        h = self.conv_in(x)
        for level, blocks in enumerate(self.down):
            for block in blocks:
                h = block(h)
            if level < len(self.downsample):
                h = self.downsample[level](h)
        return self.conv_out(jax.nn.silu(self.norm_out(self.mid(h))))


class Decoder(nnx.Module):
    """The encoder's mirror image, coarsest resolution first; latents to `[b, f i, f j, c]`."""

    def __init__(self, config: AutoencoderConfig, *, rngs: nnx.Rngs):
        widths, dtype = config.widths[::-1], jnp.dtype(config.dtype)
        incoming = (widths[0], *widths[:-1])
        self.conv_in = convolution(config.z_channels, widths[0], 3, dtype=dtype, rngs=rngs)
        self.mid = Middle(widths[0], attention=config.middle_attention, dtype=dtype, rngs=rngs)
        self.up = nnx.List(
            nnx.List(res_blocks(config.num_res_blocks + 1, c_in, c_out, dtype=dtype, rngs=rngs))
            for c_in, c_out in zip(incoming, widths, strict=True)
        )
        self.upsample = nnx.List(convolution(c, c, 3, dtype=dtype, rngs=rngs) for c in widths[:-1])
        self.norm_out = group_norm(widths[-1], dtype=dtype, rngs=rngs)
        self.conv_out = convolution(widths[-1], config.out_channels, 3, dtype=dtype, rngs=rngs)

    def __call__(self, z: Float[Array, "b i j z"]) -> Float[Array, "b h w c"]:
        h = self.mid(self.conv_in(z))
        for level, blocks in enumerate(self.up):
            for block in blocks:
                h = block(h)
            if level < len(self.upsample):
                h = self.upsample[level](upsample_nearest(h))
        return self.conv_out(jax.nn.silu(self.norm_out(h)))


class Middle(nnx.Module):
    """Residual block, attention, residual block, at the coarsest resolution."""

    def __init__(self, channels: int, *, attention: bool, dtype: DTypeLike, rngs: nnx.Rngs):
        self.block_1 = ResBlock(channels, channels, dtype=dtype, rngs=rngs)
        self.attn = PixelAttention(channels, dtype=dtype, rngs=rngs) if attention else None
        self.block_2 = ResBlock(channels, channels, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        x = self.block_1(x)
        if self.attn is not None:
            x = self.attn(x)
        return self.block_2(x)


class ResBlock(nnx.Module):
    """x + Conv(SiLU(GN(Conv(SiLU(GN(x)))))), x by a 1x1 convolution if the width changes."""

    def __init__(self, c_in: int, c_out: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.norm1 = group_norm(c_in, dtype=dtype, rngs=rngs)
        self.conv1 = convolution(c_in, c_out, 3, dtype=dtype, rngs=rngs)
        self.norm2 = group_norm(c_out, dtype=dtype, rngs=rngs)
        self.conv2 = convolution(c_out, c_out, 3, dtype=dtype, rngs=rngs)
        self.shortcut = (
            convolution(c_in, c_out, 1, dtype=dtype, rngs=rngs) if c_in != c_out else None
        )

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        h = self.conv1(jax.nn.silu(self.norm1(x)))
        h = self.conv2(jax.nn.silu(self.norm2(h)))
        return h + (x if self.shortcut is None else self.shortcut(x))


def res_blocks(
    number: int, c_in: int, c_out: int, *, dtype: DTypeLike, rngs: nnx.Rngs
) -> list[ResBlock]:
    """The residual blocks of one resolution; the first one changes the width."""
    return [ResBlock(c_out if i else c_in, c_out, dtype=dtype, rngs=rngs) for i in range(number)]


class PixelAttention(nnx.Module):
    """x + proj(softmax(q k^T / sqrt(c)) v) over all pixels: one head, softmax in float32."""

    def __init__(self, channels: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.norm = group_norm(channels, dtype=dtype, rngs=rngs)
        self.q, self.k, self.v, self.proj = (
            convolution(channels, channels, 1, dtype=dtype, rngs=rngs) for _ in "qkvp"
        )

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        normed = self.norm(x)
        q, k, v = (layer(normed).reshape(b, h * w, 1, c) for layer in (self.q, self.k, self.v))
        # cuDNN's kernels don't take a head of 512 channels.
        out = jax.nn.dot_product_attention(q, k, v, implementation="xla")
        return x + self.proj(out.reshape(b, h, w, c))
