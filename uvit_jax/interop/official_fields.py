"""The architecture of official U-ViT weights as config fields, read from names and shapes."""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from uvit_jax.interop.state_dict import StateDict
from uvit_jax.models.uvit_config import UViTConfig


def differences(state_dict: StateDict, config: UViTConfig) -> str:
    """The fields in which weights and config differ, as the end of a sentence.

    Empty if names and shapes show no difference; they never show num_heads.

    Empty if names and shapes show no difference; they never show num_heads.
    """
    found = [
        f"{name} = {value} (the model's {name} is {ours})"
        for name, value in _fields(state_dict, config).items()
        if value != (ours := _ours(config, name))
    ]
    return f"; the weights are of {', '.join(found)}" if found else ""


def _ours(config: UViTConfig, name: str) -> Any:
    if name == "image_size":
        height, width = config.input_size
        return height if height == width else (height, width)
    return getattr(config, name)


def _fields(state_dict: StateDict, config: UViTConfig) -> dict[str, Any]:
    """Fields that the arrays of a U-ViT show; empty for those of another network."""
    shapes = {name: np.shape(array) for name, array in state_dict.items()}
    tokens, patches = shapes.get("pos_embed", ()), shapes.get("patch_embed.proj.weight", ())
    if len(tokens) != 3 or len(patches) != 4:
        return {}
    blocks = [int(match[1]) for name in shapes if (match := re.match(r"in_blocks\.(\d+)\.", name))]
    context = shapes.get("context_embed.weight", (0, 0))
    hidden = shapes.get("mid_block.mlp.fc1.bias", (0,))[0]
    fields = {
        "embed_dim": tokens[2],
        "depth": 2 * (max(blocks, default=-1) + 1) + 1,
        "patch_size": patches[2],
        "in_channels": patches[1],
        "num_classes": shapes.get("label_emb.weight", (0,))[0],
        "context_dim": context[-1],
        "mlp_ratio": hidden / tokens[2] if hidden and tokens[2] else config.mlp_ratio,
        "time_mlp": "time_embed.0.weight" in shapes,
        "qkv_bias": "mid_block.attn.qkv.bias" in shapes,
        "skip": "concat" if "out_blocks.0.skip_linear.weight" in shapes else "none",
        "conv": "after" if "final_layer.weight" in shapes else "none",
    }
    return fields | _size(tokens[1], fields, config)


def _size(tokens: int, fields: Mapping[str, Any], config: UViTConfig) -> dict[str, Any]:
    """The image size of a number of tokens, if it is a square; text is as long as the config's."""
    if tokens == config.num_tokens and fields["patch_size"] == config.patch_size:
        return {}
    length = config.context_length if fields["context_dim"] else 0
    area = tokens - 1 - bool(fields["num_classes"]) - length
    side = math.isqrt(max(area, 0))
    return {"image_size": side * fields["patch_size"]} if side and side * side == area else {}
