"""CLIP image towers as published, on the hub or by OpenCLIP: their configs and layouts."""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np

from uvit_jax.errors import UserError
from uvit_jax.interop.clip_files import HUB_CONFIG
from uvit_jax.interop.clip_towers import (
    block_layout,
    from_open_clip,
    hub_tower,
    parse_config,
    read_tower,
    whole,
)
from uvit_jax.interop.layout import Entry, Layout, norm
from uvit_jax.interop.state_dict import Arrays, StateDict
from uvit_jax.models.frozen.clip_vision import CHANNELS, MEAN, STD, CLIPVisionConfig, PerChannel

VISUAL_PROJECTION = "visual_projection.weight"
PREPROCESSOR = "preprocessor_config.json"

_HUB, _OPEN_CLIP = "vision_model.", "visual."
# Every image tower has one of these.
ANCHORS = (f"{_HUB}embeddings.class_embedding", f"{_OPEN_CLIP}class_embedding")
# OpenCLIP's names and the hub's (with its own spelling).
_RENAMED = (
    (r"class_embedding$", "embeddings.class_embedding"),
    (r"conv1\.", "embeddings.patch_embedding."),
    (r"positional_embedding$", "embeddings.position_embedding.weight"),
    (r"ln_pre\.", "pre_layrnorm."),
    (r"ln_post\.", "post_layernorm."),
    (r"proj$", VISUAL_PROJECTION),
)


def read_vision_config(path: pathlib.Path, dtype: str) -> CLIPVisionConfig:
    """The architecture in a hub's or OpenCLIP's config.

    Missing fields take the publisher's defaults.

    The normalization of images is in OpenCLIP's config itself, and in the hub's
    `preprocessor_config.json` beside it; the default is CLIP's.

    Raises:
      UserError: for a config of another network, or one with another preprocessing of images
        than CLIP's.
    """

    def parse(saved: dict[str, Any]) -> CLIPVisionConfig:
        fields = _open_clip_fields(saved) if "model_cfg" in saved else _hub_fields(saved)
        return CLIPVisionConfig(**fields, dtype=dtype)

    def prepared(saved: dict[str, Any]) -> CLIPVisionConfig:
        mean, std = _hub_preparation(saved, config.image_size)
        return dataclasses.replace(config, mean=mean, std=std)

    config = parse_config(path, parse)
    beside = path.with_name(PREPROCESSOR)
    return (
        parse_config(beside, prepared) if path.name == HUB_CONFIG and beside.is_file() else config
    )


def _hub_fields(saved: dict[str, Any]) -> dict[str, Any]:
    saved = hub_tower(saved, "vision")
    _check(saved, {"num_channels": [CHANNELS]})
    width = whole(saved, "hidden_size", 768)
    return {
        "image_size": whole(saved, "image_size", 224),
        "patch_size": whole(saved, "patch_size", 32),
        "width": width,
        "layers": whole(saved, "num_hidden_layers", 12),
        "heads": whole(saved, "num_attention_heads", 12),
        "mlp_ratio": whole(saved, "intermediate_size", 3072) / width,
        "activation": saved.get("hidden_act", "quick_gelu"),
    }


def _open_clip_fields(saved: dict[str, Any]) -> dict[str, Any]:
    model, vision = saved["model_cfg"], saved["model_cfg"]["vision_cfg"]
    defaults = {"image_size": 224, "patch_size": 16, "width": 768, "layers": 12, "head_width": 64}
    # Anything else (other poolings, position embeddings, towers of other families) is another
    # network; patches are dropped in training alone.
    if unknown := sorted(set(vision) - {*defaults, "mlp_ratio", "patch_dropout"}):
        raise UserError(
            f"vision_cfg has {unknown[0]}, expected only {', '.join(defaults)} and mlp_ratio"
        )
    fields: dict[str, Any] = {
        name: whole(vision, name, default) for name, default in defaults.items()
    }
    head_width = fields.pop("head_width")
    if fields["width"] % head_width:
        raise UserError(
            f"width is {fields['width']}, expected a multiple of head_width = {head_width}"
        )
    prepare = saved.get("preprocess_cfg") or {}
    size = fields["image_size"]
    ways = {
        "interpolation": ["bicubic"],
        "resize_mode": ["shortest"],
        "mode": ["RGB"],
        "size": [size, [size, size]],
    }
    _check(prepare, ways)
    return {
        **fields,
        "heads": fields["width"] // head_width,
        "mlp_ratio": vision.get("mlp_ratio", 4),
        "activation": "quick_gelu" if model.get("quick_gelu", False) else "gelu",
        "mean": _per_channel(prepare, "mean", MEAN),
        "std": _per_channel(prepare, "std", STD),
    }


def _hub_preparation(saved: dict[str, Any], size: int) -> tuple[PerChannel, PerChannel]:
    """Mean and standard deviation of pixels, if all else is as CLIP has it.

    Old files have sizes as bare numbers.
    """
    steps = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
    ways: dict[str, list[Any]] = {
        **{step: [True] for step in steps},
        "resample": [3],  # Pillow's number of bicubic
        "size": [size, {"shortest_edge": size}],
        "crop_size": [size, {"height": size, "width": size}],
    }
    _check(saved, ways)
    return _per_channel(saved, "image_mean", MEAN), _per_channel(saved, "image_std", STD)


def _check(fields: dict[str, Any], ways: dict[str, list[Any]]) -> None:
    """Raises a UserError for a field that is present with another value than these."""
    for name, expected in ways.items():
        if fields.get(name) is not None and fields[name] not in expected:
            wanted = " or ".join(json.dumps(value) for value in expected)
            raise UserError(f"{name} is {json.dumps(fields[name])}, expected {wanted}")


def _per_channel(fields: dict[str, Any], name: str, default: PerChannel) -> PerChannel:
    value = fields.get(name)
    if value is None:
        return default
    if not (
        isinstance(value, list)
        and len(value) == CHANNELS
        and all(isinstance(x, int | float) for x in value)
    ):
        raise UserError(f"{name} is {json.dumps(value)}, expected {CHANNELS} numbers")
    red, green, blue = map(float, value)
    return red, green, blue


def hub_vision_names(state_dict: StateDict) -> dict[str, np.ndarray]:
    """The image tower's arrays under the hub's names, without `vision_model.`.

    Arrays in OpenCLIP's layout are renamed.

    Raises:
      UserError: for weights without an image tower.
    """
    for prefix in (_HUB, _OPEN_CLIP):
        # A text tower beside it, and constants that old files store, are left out.
        tower = {
            name.removeprefix(prefix): np.asarray(array)
            for name, array in state_dict.items()
            if (name.startswith(prefix) or name == VISUAL_PROJECTION)
            and not name.endswith("position_ids")
        }
        if set(tower) - {VISUAL_PROJECTION}:
            return tower if prefix == _HUB else from_open_clip(tower, _RENAMED)
    first = next(iter(state_dict), "nothing")
    raise UserError(
        f"the weights hold {first} ..., expected a CLIP image tower: {_HUB}* or {_OPEN_CLIP}*"
    )


def vision_layout(config: CLIPVisionConfig) -> Layout:
    """Every array of a tower in the hub's layout."""
    d, p = config.width, config.patch_size
    return {
        "embeddings.class_embedding": Entry(("class_embed",), (d,)),
        "embeddings.patch_embedding.weight": Entry(
            ("patch_embed", "kernel"), (d, CHANNELS, p, p), _patches
        ),
        "embeddings.position_embedding.weight": Entry(("pos_embed",), (config.tokens, d)),
        **norm("pre_layrnorm", ("pre_norm",), d),
        **block_layout(config),
        **norm("post_layernorm", ("post_norm",), d),
        VISUAL_PROJECTION: Entry(("projection", "kernel"), (config.projection, d), np.transpose),
    }


def _patches(kernel: np.ndarray) -> np.ndarray:
    """A convolution's kernel as a matrix; a patch's pixels run row by row, channels fastest."""
    return kernel.transpose(2, 3, 1, 0).reshape(-1, len(kernel))


def our_vision_arrays(state_dict: StateDict, config: CLIPVisionConfig) -> Arrays:
    """The arrays in our layout, float32, by our paths; their names and shapes are checked."""
    return read_tower(state_dict, vision_layout(config), config, "a CLIP image tower")
