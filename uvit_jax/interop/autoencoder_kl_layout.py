"""Layouts of KL autoencoders, CompVis' and diffusers', and the architecture from shapes."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from uvit_jax.errors import UserError
from uvit_jax.interop.autoencoder_shapes import UNKNOWN, conv_shape
from uvit_jax.interop.layout import Layout, convolution, norm, read_layout
from uvit_jax.interop.state_dict import Arrays, KeyPath, StateDict
from uvit_jax.models.frozen.autoencoder import AutoencoderConfig


@dataclasses.dataclass(frozen=True)
class _Names:
    """Names of a KL autoencoder's parts in one layout.

    {i} is a resolution in the order of execution, {j} a block. In `up` and `upsample` {k} is the
    resolution counted from the finest, as CompVis counts.
    """

    down: str = "encoder.down_blocks.{i}.resnets.{j}"
    downsample: str = "encoder.down_blocks.{i}.downsamplers.0.conv"
    up: str = "decoder.up_blocks.{i}.resnets.{j}"
    upsample: str = "decoder.up_blocks.{i}.upsamplers.0.conv"
    shortcut: str = "conv_shortcut"
    mid_blocks: tuple[str, str] = ("mid_block.resnets.0", "mid_block.resnets.1")
    attention: str = "mid_block.attentions.0"
    attention_norm: str = "group_norm"
    attention_parts: tuple[str, str, str, str] = ("to_q", "to_k", "to_v", "to_out.0")
    norm_out: str = "conv_norm_out"


_DIFFUSERS = _Names()
# Hub files written before diffusers 0.17, Stable Diffusion's among them.
_DIFFUSERS_OLD = _Names(attention_parts=("query", "key", "value", "proj_attn"))
_COMPVIS = _Names(
    down="encoder.down.{i}.block.{j}",
    downsample="encoder.down.{i}.downsample.conv",
    up="decoder.up.{k}.block.{j}",
    upsample="decoder.up.{k}.upsample.conv",
    shortcut="nin_shortcut",
    mid_blocks=("mid.block_1", "mid.block_2"),
    attention="mid.attn_1",
    attention_norm="norm",
    attention_parts=("q", "k", "v", "proj_out"),
    norm_out="norm_out",
)


def read_kl(state_dict: StateDict, *, dtype: str) -> tuple[AutoencoderConfig, Arrays]:
    """Returns the architecture and the arrays of KL weights; see `load_autoencoder`."""
    state_dict = {name: array for name, array in state_dict.items() if not _is_for_training(name)}
    names = _detect_names(state_dict)
    config = _infer_config(state_dict, names, dtype)
    return config, read_layout(state_dict, _kl_layout(config, names), UNKNOWN)


def _is_for_training(name: str) -> bool:
    """Checks if an array is of the discriminator or a counter, which only training needs."""
    return name.startswith("loss.") or name in ("model_ema.decay", "model_ema.num_updates")


def _detect_names(state_dict: StateDict) -> _Names:
    for names in (_COMPVIS, _DIFFUSERS):
        if f"{names.down.format(i=0, j=0)}.conv1.weight" in state_dict:
            break
    else:
        first = next(iter(state_dict), "nothing")
        raise UserError(
            f"the weights hold {first}, expected a KL autoencoder with CompVis names "
            "(encoder.down.0.block.0.conv1.weight) or diffusers names "
            "(encoder.down_blocks.0.resnets.0.conv1.weight)"
        )
    old = f"encoder.{_DIFFUSERS_OLD.attention}.{_DIFFUSERS_OLD.attention_parts[0]}.weight"
    return _DIFFUSERS_OLD if old in state_dict else names


def _infer_config(state_dict: StateDict, names: _Names, dtype: str) -> AutoencoderConfig:
    def blocks(level: int) -> int:
        return _count(lambda j: f"{names.down.format(i=level, j=j)}.conv1.weight" in state_dict)

    channels, in_channels = conv_shape(state_dict, "encoder.conv_in.weight")
    widths = [
        conv_shape(state_dict, f"{names.down.format(i=i, j=0)}.conv1.weight")[0]
        for i in range(_count(blocks))
    ]
    if any(width % channels for width in widths):
        raise UserError(
            f"the encoder's widths are {widths}, expected multiples of the first convolution's "
            f"{channels}"
        )
    return AutoencoderConfig(
        in_channels=in_channels,
        out_channels=conv_shape(state_dict, "decoder.conv_out.weight")[0],
        channels=channels,
        multipliers=tuple(width // channels for width in widths),
        num_res_blocks=blocks(0),
        z_channels=conv_shape(state_dict, "decoder.conv_in.weight")[1],
        middle_attention=any(name.startswith(f"encoder.{names.attention}.") for name in state_dict),
        quant_convs=any(
            name in state_dict for name in ("quant_conv.weight", "post_quant_conv.weight")
        ),
        dtype=dtype,
    )


def _count(holds: Callable[[int], Any]) -> int:
    """Counts 0, 1, 2, ... up to the first for which `holds` is false."""
    number = 0
    while holds(number):
        number += 1
    return number


def _kl_layout(config: AutoencoderConfig, names: _Names) -> Layout:
    z = config.z_channels
    layout = _encoder(config, names) | _decoder(config, names)
    if config.quant_convs:
        layout |= convolution("quant_conv", ("quant_conv",), 2 * z, 2 * z, kernel=1)
        layout |= convolution("post_quant_conv", ("post_quant_conv",), z, z, kernel=1)
    return layout


def _encoder(config: AutoencoderConfig, names: _Names) -> Layout:
    widths, top, first = config.widths, config.widths[-1], config.channels
    layout = convolution("encoder.conv_in", ("encoder", "conv_in"), config.in_channels, first)
    for i, (c_in, c_out) in enumerate(zip((first, *widths[:-1]), widths, strict=True)):
        for j, (a, b) in enumerate(_block_widths(c_in, c_out, config.num_res_blocks)):
            name = names.down.format(i=i, j=j)
            layout |= _res_block(name, ("encoder", "down", i, j), a, b, names)
        if i < len(widths) - 1:
            name = names.downsample.format(i=i)
            layout |= convolution(name, ("encoder", "downsample", i), c_out, c_out)
    layout |= _middle("encoder", config, names)
    layout |= norm(f"encoder.{names.norm_out}", ("encoder", "norm_out"), top)
    return layout | convolution(
        "encoder.conv_out", ("encoder", "conv_out"), top, 2 * config.z_channels
    )


def _decoder(config: AutoencoderConfig, names: _Names) -> Layout:
    widths, top, last = config.widths, config.widths[-1], len(config.widths) - 1
    layout = convolution("decoder.conv_in", ("decoder", "conv_in"), config.z_channels, top)
    layout |= _middle("decoder", config, names)
    for i, (c_in, c_out) in enumerate(zip((top, *widths[:0:-1]), widths[::-1], strict=True)):
        for j, (a, b) in enumerate(_block_widths(c_in, c_out, config.num_res_blocks + 1)):
            name = names.up.format(i=i, j=j, k=last - i)
            layout |= _res_block(name, ("decoder", "up", i, j), a, b, names)
        if i < last:
            name = names.upsample.format(i=i, k=last - i)
            layout |= convolution(name, ("decoder", "upsample", i), c_out, c_out)
    layout |= norm(f"decoder.{names.norm_out}", ("decoder", "norm_out"), widths[0])
    return layout | convolution(
        "decoder.conv_out", ("decoder", "conv_out"), widths[0], config.out_channels
    )


def _block_widths(c_in: int, c_out: int, number: int) -> Iterator[tuple[int, int]]:
    """Channels in and out of one resolution's residual blocks; the first changes the width."""
    return ((c_out if j else c_in, c_out) for j in range(number))


def _middle(part: str, config: AutoencoderConfig, names: _Names) -> Layout:
    d = config.widths[-1]
    layout: Layout = {}
    for block, path in zip(names.mid_blocks, ("block_1", "block_2"), strict=True):
        layout |= _res_block(f"{part}.{block}", (part, "mid", path), d, d, names)
    if config.middle_attention:
        name, attn = f"{part}.{names.attention}", (part, "mid", "attn")
        layout |= norm(f"{name}.{names.attention_norm}", (*attn, "norm"), d)
        for theirs, ours in zip(names.attention_parts, ("q", "k", "v", "proj"), strict=True):
            layout |= convolution(f"{name}.{theirs}", (*attn, ours), d, d, kernel=1)
            # CompVis has 1x1 convolutions here, diffusers linear layers, converted files either.
            weight = f"{name}.{theirs}.weight"
            layout[weight] = dataclasses.replace(layout[weight], other_shapes=((d, d),))
    return layout


def _res_block(name: str, path: KeyPath, c_in: int, c_out: int, names: _Names) -> Layout:
    layout = norm(f"{name}.norm1", (*path, "norm1"), c_in)
    layout |= convolution(f"{name}.conv1", (*path, "conv1"), c_in, c_out)
    layout |= norm(f"{name}.norm2", (*path, "norm2"), c_out)
    layout |= convolution(f"{name}.conv2", (*path, "conv2"), c_out, c_out)
    if c_in != c_out:
        shortcut = f"{name}.{names.shortcut}"
        layout |= convolution(shortcut, (*path, "shortcut"), c_in, c_out, kernel=1)
    return layout
