"""Finds a published autoencoder's files in a folder, and reads a diffusers config.json."""

import dataclasses
import json
import math
import pathlib
import re
from typing import Any

from uvit_jax.errors import UserError
from uvit_jax.interop.file_kinds import check_content
from uvit_jax.interop.hub import INDEX, WEIGHTS, find_model
from uvit_jax.models.frozen.autoencoder import AutoencoderConfig
from uvit_jax.models.frozen.autoencoder_layers import GROUPS
from uvit_jax.models.frozen.tiny_autoencoder import BLOCKS, HALVINGS, TinyAutoencoderConfig

_DIFFUSERS = "diffusion_pytorch_model"
_CONFIG = "config.json"
# Sets of files in a folder, the preferred first, with the preferred suffix first.
_FOLDERS = (
    *(
        (f"{inner}{_CONFIG}", f"{inner}{_DIFFUSERS}{suffix}")
        for inner in ("", "vae/")
        # Variants are named between the dots: fp16, non_ema.
        for suffix in (".safetensors", ".bin", ".*.safetensors", ".*.bin")
    ),
    *(
        (
            f"{inner}{_CONFIG}",
            f"{inner}{_DIFFUSERS}-*.safetensors",
            f"{inner}{_DIFFUSERS}.safetensors{INDEX}",
        )
        for inner in ("", "vae/")
    ),
    *((f"*_encoder{suffix}", f"*_decoder{suffix}") for suffix in (".safetensors", ".pth")),
)
_HALF = re.compile(r"(.*)_(encoder|decoder)(\.\w+)")


@dataclasses.dataclass(frozen=True)
class AutoencoderFiles:
    """The weights, in one file or as encoder and decoder, and the config.json beside them."""

    weights: tuple[pathlib.Path, ...]
    config: pathlib.Path | None = None


@dataclasses.dataclass(frozen=True)
class PublishedConfig:
    """A diffusers config.json.

    Attributes:
      path: of the file.
      scale: its factor of the latents, None if it has none.
      shift: its shift of the latents, 0 if it has none.
      fields: all of its fields.
    """

    path: pathlib.Path
    scale: float | None
    shift: float
    fields: dict[str, Any]

    def check(self, config: AutoencoderConfig | TinyAutoencoderConfig) -> None:
        """Raises a UserError for a field that contradicts the weights, or our network."""
        for name, expected in _expected_fields(config).items():
            if name in self.fields and self.fields[name] not in expected:
                found = json.dumps(self.fields[name])
                wanted = " or ".join(json.dumps(value) for value in expected)
                raise UserError(
                    f"{self.path}: {name} is {found}, expected {wanted} for the weights beside it"
                )


def find_autoencoder(name: str) -> AutoencoderFiles:
    """The files of the autoencoder of this name; `open_autoencoder` says what a name may be.

    Raises:
      UserError: for a name that leads nowhere, and a folder that holds none or several.
    """
    if name.endswith(WEIGHTS):
        path = find_model(name, _companions(re.split("[/:]", name)[-1]))
    else:
        path = find_model(name, *_FOLDERS)
    return _in_folder(path) if path.is_dir() else _of_file(path)


def read_config(path: pathlib.Path) -> PublishedConfig:
    """Reads a diffusers config.json.

    Raises:
      UserError: for a file that is not a JSON object, of a class that we have no network for, or
        with a scale or shift that is not a number.
    """
    check_content(path)
    try:
        fields = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error})") from None
    if not isinstance(fields, dict) or fields.get("_class_name") not in (
        "AutoencoderKL",
        "AutoencoderTiny",
    ):
        found = fields.get("_class_name") if isinstance(fields, dict) else fields
        raise UserError(
            f"{path}: _class_name is {json.dumps(found)}, expected AutoencoderKL or AutoencoderTiny"
        )
    scale, shift = fields.get("scaling_factor"), fields.get("shift_factor") or 0.0
    if scale is not None and not (_is_number(scale) and scale > 0):
        raise UserError(
            f"{path}: scaling_factor is {json.dumps(scale)}, expected a positive number"
        )
    if not _is_number(shift):
        raise UserError(f"{path}: shift_factor is {json.dumps(shift)}, expected a number")
    return PublishedConfig(path, None if scale is None else float(scale), float(shift), fields)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _companions(file: str) -> tuple[str, ...]:
    """Files that have to be beside this file of weights."""
    if file.startswith(f"{_DIFFUSERS}."):
        return (_CONFIG,)
    half = _HALF.fullmatch(file)
    return (
        (f"{half[1]}_{'decoder' if half[2] == 'encoder' else 'encoder'}{half[3]}",) if half else ()
    )


def _of_file(path: pathlib.Path) -> AutoencoderFiles:
    for companion in _companions(path.name):
        beside = path.with_name(companion)
        if companion == _CONFIG:
            return AutoencoderFiles((path,), beside if beside.is_file() else None)
        encoder, decoder = (path, beside) if "_encoder." in path.name else (beside, path)
        return AutoencoderFiles((encoder, decoder))
    # The config.json beside a file of another name may be another program's.
    beside = path.with_name(_CONFIG)
    return AutoencoderFiles(
        (path,), beside if beside.is_file() and b'"Autoencoder' in beside.read_bytes() else None
    )


def _in_folder(folder: pathlib.Path) -> AutoencoderFiles:
    for *_, pattern in _FOLDERS:
        found = sorted(folder.glob(pattern))
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise UserError(
                f"{folder} holds {len(found)} autoencoders ({names}), expected one, or one of "
                "these named"
            )
        if found:
            return _of_file(found[0])
    weights = sorted(path for path in folder.iterdir() if path.name.endswith(WEIGHTS))
    if len(weights) == 1:
        return _of_file(weights[0])
    if weights:
        names = ", ".join(path.name for path in weights[:8])
        raise UserError(
            f"{folder} holds {len(weights)} files of weights ({names}), expected one, or one of "
            f"these named"
        )
    names = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
    raise UserError(
        f"{folder} holds {names}, expected an autoencoder: {_DIFFUSERS}.safetensors or .bin with "
        f"{_CONFIG} (here or in vae), or *_encoder and *_decoder as .safetensors or .pth"
    )


def _expected_fields(config: AutoencoderConfig | TinyAutoencoderConfig) -> dict[str, list[Any]]:
    """Values that config.json may have for a network like this, field by field."""
    if isinstance(config, TinyAutoencoderConfig):
        levels = HALVINGS + 1
        return {
            "_class_name": ["AutoencoderTiny"],
            "in_channels": [3],
            "out_channels": [3],
            "latent_channels": [config.z_channels],
            "encoder_block_out_channels": [[config.channels] * levels],
            "decoder_block_out_channels": [[config.channels] * levels],
            "num_encoder_blocks": [[1, *[BLOCKS] * HALVINGS]],
            "num_decoder_blocks": [[*[BLOCKS] * HALVINGS, 1]],
            "act_fn": ["relu"],
            "upsample_fn": ["nearest"],
            "upsampling_scaling_factor": [2],
        }
    levels = len(config.widths)
    return {
        "_class_name": ["AutoencoderKL"],
        "in_channels": [config.in_channels],
        "out_channels": [config.out_channels],
        "latent_channels": [config.z_channels],
        "block_out_channels": [list(config.widths)],
        "layers_per_block": [config.num_res_blocks],
        "down_block_types": [["DownEncoderBlock2D"] * levels],
        "up_block_types": [["UpDecoderBlock2D"] * levels],
        "mid_block_add_attention": [config.middle_attention],
        "use_quant_conv": [config.quant_convs],
        "use_post_quant_conv": [config.quant_convs],
        "norm_num_groups": [GROUPS],
        "act_fn": ["silu", "swish"],
        # Per-channel statistics in the place of one factor, which no autoencoder of U-ViT's has.
        "latents_mean": [None],
        "latents_std": [None],
    }
