"""The KL autoencoder of Stable Diffusion (latent diffusion, arXiv:2112.10752): images to latent
moments and back.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from uvit_jax.errors import UserError, check_choice
from uvit_jax.models.layers import torch_uniform
from uvit_jax.models.uvit_config import DTYPES

AnyArray = Array | np.ndarray

GROUPS = 32  # of every GroupNorm


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """The architecture of a KL autoencoder; the defaults are Stable Diffusion's KL-f8.

    Attributes:
      in_channels: channels of the image that goes in.
      out_channels: channels of the image that comes out.
      channels: width of the first resolution, a multiple of 32.
      multipliers: width of each resolution over `channels`; every one but the last halves the
        image.
      num_res_blocks: residual blocks at each resolution of the encoder; the decoder has one more.
      z_channels: channels of the latents.
      middle_attention: whether a self-attention stands between the two residual blocks in the
        middle.
      quant_convs: whether a 1x1 convolution stands after the encoder and before the decoder (not in
        SD3's and Flux's).
      dtype: what convolutions are computed in; parameters and the statistics of GroupNorm are
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
                f"GroupNorm)"
            )
        if not self.multipliers or min(self.multipliers) < 1:
            raise UserError(
                f"multipliers is {self.multipliers}, expected one number of at least 1 a resolution"
            )

    @property
    def factor(self) -> int:
        """Pixels of the image to one of the latents, along each side."""
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
        """Moments `[b, h/f, w/f, 2 z]` of images in [-1, 1], f = 8 for KL-f8: mean, then logvar
        (not clipped), float32.

        Raises:
          UserError: for another number of channels than the config's, or sides that are no
            multiples of f.
        """
        check_shape("images", x, self.config.in_channels, self.config.factor)
        moments = self.encoder(jnp.asarray(x))
        return (moments if self.quant_conv is None else self.quant_conv(moments)).astype(
            jnp.float32
        )

    def decode(self, z: Float[AnyArray, "b i j z"]) -> Float[Array, "b h w c"]:
        """Images `[b, f i, f j, c]` of unscaled latents, in float32, about [-1, 1] and not clipped.

        Unscaled: as `Normalization.denormalize` gives them. Raises a UserError for another number
        of channels.
        """
        check_shape("latents", z, self.config.z_channels)
        h = jnp.asarray(z)
        return self.decoder(h if self.post_quant_conv is None else self.post_quant_conv(h)).astype(
            jnp.float32
        )


def decode_tiled(
    decode: Callable[[Array], Array],
    z: Float[AnyArray, "b i j z"],
    *,
    tile: int = 64,
    overlap: int = 16,
) -> Float[Array, "b h w c"]:
    """What `decode` makes of latents too large for it, tile by tile, blended linearly where tiles
    overlap.

    A single tile gives `decode(z)` itself; with more, attention and GroupNorm see one tile at a
    time, so the image is not quite `decode(z)`, and memory is that of one tile. Call it under
    `jit`: outside, every call compiles its loop.

    Args:
      decode: `[b, i, j, z] -> [b, f i, f j, c]` for a fixed f, as the autoencoders' `decode`.
      z: latents `[b, i, j, z]`.
      tile: side of a tile in latent pixels.
      overlap: the least number of latent pixels that neighbouring tiles share.

    Raises:
      UserError: for an overlap outside 1..tile-1.
    """
    if not 1 <= overlap < tile:
        raise UserError(
            f"overlap is {overlap}, expected 1 to {tile - 1}, less than a tile of {tile}"
        )
    z = jnp.asarray(z)
    b, i, j, c = z.shape
    if max(i, j) <= tile:
        return decode(z)
    shape = (b, min(tile, i), min(tile, j), c)
    image = jax.eval_shape(decode, jax.ShapeDtypeStruct(shape, z.dtype))
    factor = image.shape[1] // shape[1]
    rows, row_weights = _tiles(i, shape[1], overlap, factor)
    columns, column_weights = _tiles(j, shape[2], overlap, factor)

    def add(canvas, position):
        row, column = position
        y, x = rows[row], columns[column]
        part = decode(jax.lax.dynamic_slice(z, (0, y, x, 0), shape))
        weights = row_weights[row][:, None, None] * column_weights[column][:, None]
        corner = (0, factor * y, factor * x, 0)
        part = weights * part + jax.lax.dynamic_slice(canvas, corner, part.shape)
        return jax.lax.dynamic_update_slice(canvas, part, corner), None

    positions = np.indices((len(rows), len(columns))).reshape(2, -1).T
    canvas = jnp.zeros((b, factor * i, factor * j, image.shape[3]), jnp.float32)
    return jax.lax.scan(add, canvas, positions)[0]


def _tiles(length: int, tile: int, overlap: int, factor: int) -> tuple[Array, Array]:
    """Where tiles start along one axis `[n]`, and the weights of their pixels `[n, factor * tile]`,
    1 at each pixel.
    """
    number = 1 if length <= tile else math.ceil((length - overlap) / (tile - overlap))
    starts = np.linspace(0, length - tile, number).round().astype(int)
    inwards = np.arange(factor * tile) + 0.5
    ramp = np.minimum(np.minimum(inwards, inwards[::-1]) / (factor * overlap), 1)
    pixels = factor * starts[:, None] + np.arange(factor * tile)
    total = np.bincount(pixels.ravel(), np.tile(ramp, number))
    return jnp.asarray(starts), jnp.asarray(ramp / total[pixels], jnp.float32)


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
        # Half a pixel off centre, as the weights were trained: one row and column of zeros, below
        # and to the right.
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
                h = self.upsample[level](double(h))
        return self.conv_out(jax.nn.silu(self.norm_out(h)))


class Middle(nnx.Module):
    """At the coarsest resolution: residual block, attention, residual block."""

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
    """x + Conv(SiLU(GN(Conv(SiLU(GN(x)))))), x through a 1x1 convolution where the width changes."""

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
    """x + proj(softmax(q k^T / sqrt(c)) v): every pixel attends to all, one head, softmax in
    float32.
    """

    def __init__(self, channels: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.norm = group_norm(channels, dtype=dtype, rngs=rngs)
        self.q, self.k, self.v, self.proj = (
            convolution(channels, channels, 1, dtype=dtype, rngs=rngs) for _ in "qkvp"
        )

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        normed = self.norm(x)
        q, k, v = (layer(normed).reshape(b, h * w, 1, c) for layer in (self.q, self.k, self.v))
        # A head of 512 channels is wider than cuDNN's kernels take.
        out = jax.nn.dot_product_attention(q, k, v, implementation="xla")
        return x + self.proj(out.reshape(b, h, w, c))


def group_norm(channels: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.GroupNorm:
    """GroupNorm of 32 groups, eps 1e-6; statistics in float32."""
    return nnx.GroupNorm(
        channels, GROUPS, epsilon=1e-6, dtype=dtype, use_fast_variance=False, rngs=rngs
    )


def convolution(
    c_in: int, c_out: int, kernel: int, *, dtype: DTypeLike, rngs: nnx.Rngs, **options: Any
) -> nnx.Conv:
    """A convolution padded by kernel // 2 with PyTorch's initial weights, unless `options`
    (nnx.Conv's) differ.
    """
    uniform = torch_uniform(kernel**2 * c_in)
    options = {"padding": kernel // 2, "kernel_init": uniform, "bias_init": uniform, **options}
    return nnx.Conv(c_in, c_out, (kernel, kernel), dtype=dtype, rngs=rngs, **options)


def double(x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
    """The image at twice the size, by nearest neighbour."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def check_shape(what: str, x: AnyArray, channels: int, factor: int = 1) -> None:
    """Raises a UserError unless x is `[b, h, w, channels]` with sides that are multiples of
    `factor`.
    """
    _, h, w, c = x.shape
    if c != channels or h % factor or w % factor:
        sides = f" and sides that are multiples of {factor}" if factor > 1 else ""
        raise UserError(f"{what} are {h}x{w}x{c}, expected {channels} channels{sides}")
