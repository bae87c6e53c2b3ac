"""The names and shapes of published autoencoders, CompVis, diffusers and TAESD, and the arrays of
ours in them.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from uvit_jax.errors import UserError
from uvit_jax.interop.state_dict import StateDict, check_names, checked_array
from uvit_jax.models.frozen.autoencoder import AutoencoderConfig
from uvit_jax.models.frozen.tiny_autoencoder import BLOCKS, HALVINGS, TinyAutoencoderConfig

# Every autoencoder has one of these: KL's in both layouts, diffusers' of the TAESD family, the
# family's own.
ANCHORS = ("encoder.conv_in.weight", "encoder.layers.0.weight", "encoder.0.weight")

Path = tuple[str | int, ...]
Arrays = dict[Path, np.ndarray]


@dataclasses.dataclass(frozen=True)
class _Names:
    """How a layout names the parts of a KL autoencoder: {i} a resolution in the order of execution,
    {j} a block.

    `up` and `upsample` also know {k}, the resolution counted from the finest, as CompVis does.
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


@dataclasses.dataclass(frozen=True)
class _Entry:
    """One published array: its path in our state, and the shapes it may have, the usual one first."""

    path: Path
    shapes: tuple[tuple[int, ...], ...]


Layout = dict[str, _Entry]


def is_tiny(state_dict: StateDict) -> bool:
    """Whether the names are of the TAESD family, its own or diffusers'."""
    return any(name in state_dict for name in ("encoder.0.weight", "encoder.layers.0.weight"))


def read_kl(state_dict: StateDict, *, dtype: str) -> tuple[AutoencoderConfig, Arrays]:
    """The architecture and the arrays of a KL autoencoder's weights; see `load_autoencoder`."""
    state_dict = {name: array for name, array in state_dict.items() if not _is_of_training(name)}
    names = _detect_names(state_dict)
    config = _infer_config(state_dict, names, dtype)
    return config, _arrays(state_dict, _kl_layout(config, names))


def read_tiny(state_dict: StateDict, *, dtype: str) -> tuple[TinyAutoencoderConfig, Arrays]:
    """The architecture and the arrays of a tiny autoencoder's weights.

    The names are `encoder.0.weight` and `decoder.1.weight`, the numbers of the family's own files,
    or diffusers' `encoder.layers.0.weight` and `decoder.layers.0.weight`, whose decoder doesn't
    count the squashing at its start.
    """
    state_dict = {_own_tiny_name(name): array for name, array in state_dict.items()}
    channels, _ = _conv_shape(state_dict, "encoder.0.weight")
    _, z_channels = _conv_shape(state_dict, "decoder.1.weight")
    global_norm = any(".pool." in name for name in state_dict)
    config = TinyAutoencoderConfig(z_channels, channels, global_norm, dtype)
    return config, _arrays(state_dict, _tiny_layout(config))


def _is_of_training(name: str) -> bool:
    """Whether an array of a training checkpoint is of its discriminator, or a counter of its moving
    average.
    """
    return name.startswith("loss.") or name in ("model_ema.decay", "model_ema.num_updates")


def _own_tiny_name(name: str) -> str:
    match = re.fullmatch(r"(encoder|decoder)\.layers\.(\d+)\.(.+)", name)
    if match is None:
        return name
    part, number, rest = match.groups()
    return f"{part}.{int(number) + (part == 'decoder')}.{rest}"


def _arrays(state_dict: StateDict, layout: Layout) -> Arrays:
    """The arrays of a state dict in our layout, float32, by our paths; their names and shapes are
    checked.
    """
    check_names(state_dict, layout, "the weights are of no autoencoder known here")
    arrays = {}
    for name, entry in layout.items():
        array = checked_array(name, state_dict[name], *entry.shapes).reshape(entry.shapes[0])
        arrays[entry.path] = (
            np.ascontiguousarray(array.transpose(2, 3, 1, 0)) if array.ndim == 4 else array
        )
    return arrays


def _conv_shape(state_dict: StateDict, name: str) -> tuple[int, int]:
    """Channels out and in of a convolution, by the name of its weight."""
    if name not in state_dict:
        raise UserError(f"the weights are of no autoencoder known here: they lack {name}")
    shape = np.shape(state_dict[name])
    if len(shape) != 4:
        raise UserError(
            f"{name} has shape {shape}, expected [out, in, kernel height, kernel width]"
        )
    return shape[0], shape[1]


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

    channels, in_channels = _conv_shape(state_dict, "encoder.conv_in.weight")
    widths = [
        _conv_shape(state_dict, f"{names.down.format(i=i, j=0)}.conv1.weight")[0]
        for i in range(_count(blocks))
    ]
    if any(width % channels for width in widths):
        raise UserError(
            f"the encoder's widths are {widths}, expected multiples of the first convolution's "
            f"{channels}"
        )
    return AutoencoderConfig(
        in_channels=in_channels,
        out_channels=_conv_shape(state_dict, "decoder.conv_out.weight")[0],
        channels=channels,
        multipliers=tuple(width // channels for width in widths),
        num_res_blocks=blocks(0),
        z_channels=_conv_shape(state_dict, "decoder.conv_in.weight")[1],
        middle_attention=any(name.startswith(f"encoder.{names.attention}.") for name in state_dict),
        quant_convs=any(
            name in state_dict for name in ("quant_conv.weight", "post_quant_conv.weight")
        ),
        dtype=dtype,
    )


def _count(holds: Callable[[int], Any]) -> int:
    """How many of 0, 1, 2, ... hold before the first that doesn't."""
    number = 0
    while holds(number):
        number += 1
    return number


def _kl_layout(config: AutoencoderConfig, names: _Names) -> Layout:
    widths, z, top = config.widths, config.z_channels, config.widths[-1]
    last = len(widths) - 1

    layout = _conv("encoder.conv_in", ("encoder", "conv_in"), config.in_channels, config.channels)
    for i, (c_in, c_out) in enumerate(zip((config.channels, *widths[:-1]), widths, strict=True)):
        for j, (a, b) in enumerate(_block_widths(c_in, c_out, config.num_res_blocks)):
            layout |= _res_block(
                names.down.format(i=i, j=j), ("encoder", "down", i, j), a, b, names
            )
        if i < last:
            layout |= _conv(
                names.downsample.format(i=i), ("encoder", "downsample", i), c_out, c_out
            )
    layout |= _middle("encoder", config, names)
    layout |= _norm(f"encoder.{names.norm_out}", ("encoder", "norm_out"), top)
    layout |= _conv("encoder.conv_out", ("encoder", "conv_out"), top, 2 * z)

    layout |= _conv("decoder.conv_in", ("decoder", "conv_in"), z, top)
    layout |= _middle("decoder", config, names)
    for i, (c_in, c_out) in enumerate(zip((top, *widths[:0:-1]), widths[::-1], strict=True)):
        for j, (a, b) in enumerate(_block_widths(c_in, c_out, config.num_res_blocks + 1)):
            layout |= _res_block(
                names.up.format(i=i, j=j, k=last - i), ("decoder", "up", i, j), a, b, names
            )
        if i < last:
            layout |= _conv(
                names.upsample.format(i=i, k=last - i), ("decoder", "upsample", i), c_out, c_out
            )
    layout |= _norm(f"decoder.{names.norm_out}", ("decoder", "norm_out"), widths[0])
    layout |= _conv("decoder.conv_out", ("decoder", "conv_out"), widths[0], config.out_channels)
    if config.quant_convs:
        layout |= _conv("quant_conv", ("quant_conv",), 2 * z, 2 * z, kernel=1)
        layout |= _conv("post_quant_conv", ("post_quant_conv",), z, z, kernel=1)
    return layout


def _block_widths(c_in: int, c_out: int, number: int) -> Iterator[tuple[int, int]]:
    """Channels in and out of each residual block at one resolution: the first one changes the
    width.
    """
    return ((c_out if j else c_in, c_out) for j in range(number))


def _middle(part: str, config: AutoencoderConfig, names: _Names) -> Layout:
    d = config.widths[-1]
    layout: Layout = {}
    for block, path in zip(names.mid_blocks, ("block_1", "block_2"), strict=True):
        layout |= _res_block(f"{part}.{block}", (part, "mid", path), d, d, names)
    if config.middle_attention:
        name, attn = f"{part}.{names.attention}", (part, "mid", "attn")
        layout |= _norm(f"{name}.{names.attention_norm}", (*attn, "norm"), d)
        for theirs, ours in zip(names.attention_parts, ("q", "k", "v", "proj"), strict=True):
            layout |= _conv(f"{name}.{theirs}", (*attn, ours), d, d, kernel=1)
            # 1x1 convolutions to CompVis, linear layers to diffusers, and files converted halfway
            # have either.
            layout[f"{name}.{theirs}.weight"] = _Entry(
                (*attn, ours, "kernel"), ((d, d, 1, 1), (d, d))
            )
    return layout


def _res_block(name: str, path: Path, c_in: int, c_out: int, names: _Names) -> Layout:
    layout = _norm(f"{name}.norm1", (*path, "norm1"), c_in)
    layout |= _conv(f"{name}.conv1", (*path, "conv1"), c_in, c_out)
    layout |= _norm(f"{name}.norm2", (*path, "norm2"), c_out)
    layout |= _conv(f"{name}.conv2", (*path, "conv2"), c_out, c_out)
    if c_in != c_out:
        layout |= _conv(f"{name}.{names.shortcut}", (*path, "shortcut"), c_in, c_out, kernel=1)
    return layout


def _tiny_layout(config: TinyAutoencoderConfig) -> Layout:
    """Every array of both networks; the numbers are places in the reference's sequences, some
    without parameters.
    """
    d, z, norm = config.channels, config.z_channels, config.global_norm
    layout = _conv("encoder.0", ("encoder", "conv_in"), 3, d)
    layout |= _tiny_block("encoder.1", ("encoder", "block_in"), d, global_norm=False)
    for i in range(HALVINGS):
        start = 2 + i * (BLOCKS + 1)  # a convolution and the blocks
        layout |= _conv(f"encoder.{start}", ("encoder", "downsample", i), d, d, bias=False)
        for j in range(BLOCKS):
            path = ("encoder", "down", i, j)
            layout |= _tiny_block(
                f"encoder.{start + 1 + j}", path, d, global_norm=norm and i == HALVINGS - 1
            )
    layout |= _conv(f"encoder.{2 + HALVINGS * (BLOCKS + 1)}", ("encoder", "conv_out"), d, z)

    layout |= _conv("decoder.1", ("decoder", "conv_in"), z, d)
    for i in range(HALVINGS):
        start = 3 + i * (BLOCKS + 2)  # the blocks, an upsampling and a convolution
        for j in range(BLOCKS):
            layout |= _tiny_block(
                f"decoder.{start + j}", ("decoder", "up", i, j), d, global_norm=norm and i == 0
            )
        layout |= _conv(
            f"decoder.{start + BLOCKS + 1}", ("decoder", "upsample", i), d, d, bias=False
        )
    end = 3 + HALVINGS * (BLOCKS + 2)
    layout |= _tiny_block(f"decoder.{end}", ("decoder", "block_out"), d, global_norm=False)
    return layout | _conv(f"decoder.{end + 1}", ("decoder", "conv_out"), d, 3)


def _tiny_block(name: str, path: Path, d: int, *, global_norm: bool) -> Layout:
    layout: Layout = {}
    for i in range(3):
        layout |= _conv(f"{name}.conv.{2 * i}", (*path, "convs", i), d, d)
    if global_norm:
        layout |= _conv(f"{name}.pool.0", (*path, "pool", "expand"), d, 4 * d, kernel=1, bias=False)
        layout |= _norm(f"{name}.pool.1", (*path, "pool", "norm"), 4 * d)
        layout |= _conv(
            f"{name}.pool.3", (*path, "pool", "contract"), 4 * d, d, kernel=1, bias=False
        )
    return layout


def _conv(
    name: str, path: Path, c_in: int, c_out: int, *, kernel: int = 3, bias: bool = True
) -> Layout:
    layout = {f"{name}.weight": _Entry((*path, "kernel"), ((c_out, c_in, kernel, kernel),))}
    if bias:
        layout[f"{name}.bias"] = _Entry((*path, "bias"), ((c_out,),))
    return layout


def _norm(name: str, path: Path, d: int) -> Layout:
    return {
        f"{name}.weight": _Entry((*path, "scale"), ((d,),)),
        f"{name}.bias": _Entry((*path, "bias"), ((d,),)),
    }
