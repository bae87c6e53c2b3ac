"""Floating point operations of one forward pass of a U-ViT, counted from its config."""

import itertools

from uvit_jax.models.embeddings import stack_channels
from uvit_jax.models.uvit_config import UViTConfig


def forward_flops(config: UViTConfig) -> int:
    """FLOPs of one forward pass on one image: 2 per multiply-add of products and convolutions.

    For T tokens of width D a block costs 2 T D (4 D + 2 r D) in its projections and MLP (r =
    mlp_ratio), 4 T^2 D in attention and, where a skip is concatenated, 4 T D^2. A convolution's
    padding counts as pixels do. Normalisations, activations and sums are left out, as is usual for
    MFU. Three times this, forward and backward, is what a training step of one image counts.
    """
    tokens, d, half = config.num_tokens, config.embed_dim, config.depth // 2
    height, width = config.input_size
    patches = config.grid[0] * config.grid[1]
    pixels = height * width
    patch = config.patch_size**2 * config.in_channels

    block = 2 * tokens * d * (4 * d + 2 * int(config.mlp_ratio * d)) + 4 * tokens**2 * d
    skip = {"concat": 4 * tokens * d**2, "add": 0, "none": 0}.get(config.skip, 2 * tokens * d**2)
    total = config.depth * block + half * skip
    total += _conv_stack(config) if config.patch_embed == "conv_stack" else 2 * patches * patch * d
    total += 2 * patches * patch * d  # head
    total += 2 * config.context_length * config.context_dim * d
    if config.time_mlp:
        total += 16 * d**2
    if config.time == "adaln":
        total += 4 * d**2 * (2 * config.depth + 1)
    if config.conv == "after":
        total += 18 * pixels * config.in_channels**2
    elif config.conv == "before":
        total += 18 * patches * d**2
    return total


def _conv_stack(config: UViTConfig) -> int:
    """FLOPs of the 3x3 convolutions, each at half the height and width before, and the 1x1 one."""
    height, width = config.input_size
    stride = 1 if config.patch_size == 1 else 2
    channels, total = stack_channels(config.patch_size, config.in_channels, config.embed_dim), 0
    for c_in, c_out in itertools.pairwise(channels):
        height, width = height // stride, width // stride
        total += 18 * height * width * c_in * c_out
    return total + 2 * height * width * channels[-1] * config.embed_dim
