"""Official U-ViT configurations as ours."""

from collections.abc import Mapping
from typing import Any

from uvit_jax.errors import UserError
from uvit_jax.models.uvit_config import UViTConfig

# Keys of the official configuration that are fields of ours by another name.
_RENAMED = {
    "img_size": "image_size",
    "patch_size": "patch_size",
    "in_chans": "in_channels",
    "embed_dim": "embed_dim",
    "num_heads": "num_heads",
    "mlp_ratio": "mlp_ratio",
    "qkv_bias": "qkv_bias",
    "mlp_time_embed": "time_mlp",
    "clip_dim": "context_dim",
    "num_clip_token": "context_length",
}
# The other keys it may have: three change values, the rest change no number.
_OTHERS = {
    "depth",
    "num_classes",
    "conv",
    "skip",
    "use_checkpoint",
    "name",
    "num_params",
    "kind",
}
# Official defaults that differ from ours.
_DEFAULTS = {
    "img_size": 224,
    "patch_size": 16,
    "in_chans": 3,
    "embed_dim": 768,
    "num_heads": 12,
    "depth": 12,
}


def config_from_official(official: Mapping[str, Any], **ours: Any) -> UViTConfig:
    """The UViTConfig of an official `config.nnet`, a dict of UViT's keyword arguments.

    Args:
      official: `img_size, patch_size, in_chans, embed_dim, depth` (even: ours is one more),
        `num_heads, mlp_ratio, qkv_bias, mlp_time_embed, num_classes` (-1: none), `conv, skip,
        use_checkpoint, clip_dim, num_clip_token`. What is left out takes the official default.
      **ours: fields of UViTConfig to set or override (dtype, scan_blocks, attention, ...).

    Raises:
      UserError: for any other key, or an odd official depth.
    """
    unknown = sorted(set(official) - set(_RENAMED) - _OTHERS)
    if unknown:
        raise UserError(
            f"official config has {', '.join(unknown)}, expected only {_known_config_keys()}"
        )
    values = {**_DEFAULTS, **official}
    if values["depth"] % 2:
        raise UserError(
            f"official depth is {values['depth']}, expected an even number (it leaves out the "
            "middle block)"
        )
    if "clip_dim" in values:
        values.setdefault("num_clip_token", 77)
    fields = {ours_name: values[name] for name, ours_name in _RENAMED.items() if name in values}
    fields |= {
        "depth": values["depth"] + 1,
        "num_classes": max(values.get("num_classes", -1), 0),
        "conv": "after" if values.get("conv", True) else "none",
        "skip": "concat" if values.get("skip", True) else "none",
        "remat": "full" if values.get("use_checkpoint", False) else "none",
    }
    return UViTConfig(**fields | ours)


def _known_config_keys() -> str:
    return ", ".join(sorted(set(_RENAMED) | _OTHERS))
