"""Images, times and positions to tokens, and tokens back to images."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from uvit_jax.models.layers import convolve, linear, torch_uniform


def timestep_embedding(t: Num[Array, " b"], dim: int) -> Float[Array, "b {dim}"]:
    """Sinusoidal embedding [cos(t f), sin(t f)] of the network's time, in float32.

    f_i = 10000^(-i / (dim / 2)).
    """
    half = dim // 2
    frequencies = jnp.exp(-math.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = t.astype(jnp.float32)[:, None] * frequencies
    embedding = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    return jnp.pad(embedding, ((0, 0), (0, dim % 2)))


def patchify(x: Float[Array, "b h w c"], patch_size: int) -> Float[Array, "b n p"]:
    """Cuts images into patches, row by row; in a patch too, with the channel fastest."""
    b, h, w, c = x.shape
    p = patch_size
    x = x.reshape(b, h // p, p, w // p, p, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, (h // p) * (w // p), p * p * c)


def unpatchify(
    x: Float[Array, "b n p"], grid: tuple[int, int], patch_size: int
) -> Float[Array, "b h w c"]:
    """The images whose `patchify` is x; `grid` is the number of patches down and across."""
    b, p, c = x.shape[0], patch_size, x.shape[2] // patch_size**2
    x = x.reshape(b, *grid, p, p, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, grid[0] * p, grid[1] * p, c)


def sincos_2d(grid: tuple[int, int], dim: int) -> Float[np.ndarray, "n {dim}"]:
    """The paper's fixed 2-D position embedding (Sec. 3.1): [sin, cos] of row, then column."""
    frequencies = 10000.0 ** (-np.arange(dim // 4) / (dim // 4))
    rows, columns = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequencies for axis in (rows, columns)]
    return np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], axis=1).astype(
        np.float32
    )


class LinearPatchEmbed(nnx.Module):
    """A linear map of each patch, `[b, h, w, c] -> [b, n, d]`.

    It is the paper's p x p convolution with stride p.
    """

    def __init__(
        self, patch_size: int, in_channels: int, embed_dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        fan_in = patch_size**2 * in_channels
        self.patch_size = patch_size
        self.proj = nnx.Linear(
            fan_in,
            embed_dim,
            dtype=dtype,
            kernel_init=torch_uniform(fan_in),
            bias_init=torch_uniform(fan_in),
            rngs=rngs,
        )

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b n d"]:
        return linear(self.proj, patchify(x, self.patch_size))


def stack_channels(patch_size: int, in_channels: int, embed_dim: int) -> list[int]:
    """Channels before the first and after each of the 3x3 convolutions of `ConvStackPatchEmbed`."""
    stages = max(int(math.log2(patch_size)), 1)
    return [in_channels, *(max(embed_dim >> (stages - 1 - i), 1) for i in range(stages))]


class ConvStackPatchEmbed(nnx.Module):
    """3x3 convolutions and a 1x1 one, `[b, h, w, c] -> [b, n, d]`: the paper's other embedding.

    As in "Early Convolutions Help Transformers See Better" (arXiv:2106.14881) each 3x3 convolution
    halves the image and doubles the channels up to embed_dim and is followed by a ReLU; patch_size
    is a power of two. With patch_size 1 a single 3x3 convolution keeps the resolution. No batch
    normalisation: a diffusion batch mixes noise levels.
    """

    def __init__(
        self, patch_size: int, in_channels: int, embed_dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        channels = stack_channels(patch_size, in_channels, embed_dim)
        self.stages = nnx.List(
            conv3x3(c_in, c_out, strides=1 if patch_size == 1 else 2, dtype=dtype, rngs=rngs)
            for c_in, c_out in itertools.pairwise(channels)
        )
        fan_in = channels[-1]
        self.proj = nnx.Linear(
            fan_in,
            embed_dim,
            dtype=dtype,
            kernel_init=torch_uniform(fan_in),
            bias_init=torch_uniform(fan_in),
            rngs=rngs,
        )

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b n d"]:
        for conv in self.stages:
            x = jax.nn.relu(convolve(conv, x))
        b, h, w, c = x.shape
        return linear(self.proj, x.reshape(b, h * w, c))


PATCH_EMBEDS = {"linear": LinearPatchEmbed, "conv_stack": ConvStackPatchEmbed}


def conv3x3(
    in_channels: int, out_channels: int, *, strides: int = 1, dtype: DTypeLike, rngs: nnx.Rngs
) -> nnx.Conv:
    """A 3x3 convolution, padding 1, with PyTorch's initial weights."""
    uniform = torch_uniform(9 * in_channels)
    return nnx.Conv(
        in_channels,
        out_channels,
        (3, 3),
        strides=strides,
        padding=1,
        dtype=dtype,
        kernel_init=uniform,
        bias_init=uniform,
        rngs=rngs,
    )


class TimeMLP(nnx.Module):
    """Linear D -> 4D, SiLU, Linear 4D -> D on the time embedding, `[b, d] -> [b, d]`."""

    def __init__(
        self, embed_dim: int, *, dtype: DTypeLike, kernel_init: nnx.Initializer, rngs: nnx.Rngs
    ):
        self.fc1 = nnx.Linear(
            embed_dim, 4 * embed_dim, dtype=dtype, kernel_init=kernel_init, rngs=rngs
        )
        self.fc2 = nnx.Linear(
            4 * embed_dim, embed_dim, dtype=dtype, kernel_init=kernel_init, rngs=rngs
        )

    def __call__(self, time: Float[Array, "b d"]) -> Float[Array, "b d"]:
        return linear(self.fc2, jax.nn.silu(linear(self.fc1, time)))
