"""The TAESD family's layouts, its own and diffusers': arrays by their place in a sequence."""

import re

from uvit_jax.interop.autoencoder_shapes import UNKNOWN, conv_shape
from uvit_jax.interop.layout import Layout, convolution, norm, read_layout
from uvit_jax.interop.state_dict import Arrays, KeyPath, StateDict
from uvit_jax.models.frozen.tiny_autoencoder import BLOCKS, HALVINGS, TinyAutoencoderConfig


def is_tiny(state_dict: StateDict) -> bool:
    """Checks if the names are of the TAESD family, its own or diffusers'."""
    return any(name in state_dict for name in ("encoder.0.weight", "encoder.layers.0.weight"))


def read_tiny(state_dict: StateDict, *, dtype: str) -> tuple[TinyAutoencoderConfig, Arrays]:
    """Returns the architecture and the arrays of a tiny autoencoder's weights.

    The names are `encoder.0.weight` and `decoder.1.weight`, the numbers of the family's own files,
    or diffusers' `encoder.layers.0.weight` and `decoder.layers.0.weight`, whose decoder doesn't
    count the squashing at its start.
    """
    state_dict = {_own_tiny_name(name): array for name, array in state_dict.items()}
    channels, _ = conv_shape(state_dict, "encoder.0.weight")
    _, z_channels = conv_shape(state_dict, "decoder.1.weight")
    global_norm = any(".pool." in name for name in state_dict)
    config = TinyAutoencoderConfig(z_channels, channels, global_norm, dtype)
    return config, read_layout(state_dict, _tiny_layout(config), UNKNOWN)


def _own_tiny_name(name: str) -> str:
    match = re.fullmatch(r"(encoder|decoder)\.layers\.(\d+)\.(.+)", name)
    if match is None:
        return name
    part, number, rest = match.groups()
    return f"{part}.{int(number) + (part == 'decoder')}.{rest}"


def _tiny_layout(config: TinyAutoencoderConfig) -> Layout:
    """Every array of both networks, by its place in the reference's sequences."""
    return _encoder(config) | _decoder(config)


def _encoder(config: TinyAutoencoderConfig) -> Layout:
    d, last = config.channels, HALVINGS - 1
    layout = convolution("encoder.0", ("encoder", "conv_in"), 3, d)
    layout |= _block("encoder.1", ("encoder", "block_in"), d, global_norm=False)
    for i in range(HALVINGS):
        start = 2 + i * (BLOCKS + 1)  # a convolution and the blocks
        layout |= convolution(f"encoder.{start}", ("encoder", "downsample", i), d, d, bias=False)
        for j in range(BLOCKS):
            global_norm = config.global_norm and i == last
            name = f"encoder.{start + 1 + j}"
            layout |= _block(name, ("encoder", "down", i, j), d, global_norm=global_norm)
    end = 2 + HALVINGS * (BLOCKS + 1)
    return layout | convolution(f"encoder.{end}", ("encoder", "conv_out"), d, config.z_channels)


def _decoder(config: TinyAutoencoderConfig) -> Layout:
    d = config.channels
    # Places 0 and 2 squash the latents and rectify; they have no parameters.
    layout = convolution("decoder.1", ("decoder", "conv_in"), config.z_channels, d)
    for i in range(HALVINGS):
        start = 3 + i * (BLOCKS + 2)  # the blocks, an upsampling and a convolution
        for j in range(BLOCKS):
            global_norm = config.global_norm and i == 0
            name = f"decoder.{start + j}"
            layout |= _block(name, ("decoder", "up", i, j), d, global_norm=global_norm)
        name = f"decoder.{start + BLOCKS + 1}"
        layout |= convolution(name, ("decoder", "upsample", i), d, d, bias=False)
    end = 3 + HALVINGS * (BLOCKS + 2)
    layout |= _block(f"decoder.{end}", ("decoder", "block_out"), d, global_norm=False)
    return layout | convolution(f"decoder.{end + 1}", ("decoder", "conv_out"), d, 3)


def _block(name: str, path: KeyPath, d: int, *, global_norm: bool) -> Layout:
    layout: Layout = {}
    for i in range(3):
        layout |= convolution(f"{name}.conv.{2 * i}", (*path, "convs", i), d, d)
    if global_norm:
        expand, contract = (*path, "pool", "expand"), (*path, "pool", "contract")
        layout |= convolution(f"{name}.pool.0", expand, d, 4 * d, kernel=1, bias=False)
        layout |= norm(f"{name}.pool.1", (*path, "pool", "norm"), 4 * d)
        layout |= convolution(f"{name}.pool.3", contract, 4 * d, d, kernel=1, bias=False)
    return layout
