"""Finds a published CLIP tower's config and weights, the hub's or OpenCLIP's."""

import pathlib
from collections.abc import Sequence

from uvit_jax.errors import UserError
from uvit_jax.interop.hub import INDEX, WEIGHTS, find_model

HUB_CONFIG, OPEN_CLIP_CONFIG = "config.json", "open_clip_config.json"
# Config and weights, the preferred first.
HUB_FOLDERS = (
    (HUB_CONFIG, "model.safetensors"),
    (HUB_CONFIG, "pytorch_model.bin"),
    # Variants, as fp16; and weights in several files.
    (HUB_CONFIG, "model.*.safetensors"),
    (HUB_CONFIG, "pytorch_model.*.bin"),
    (HUB_CONFIG, "model-*.safetensors", f"model.safetensors{INDEX}"),
)
OPEN_CLIP_FOLDERS = (
    (OPEN_CLIP_CONFIG, "open_clip_model.safetensors"),
    (OPEN_CLIP_CONFIG, "open_clip_pytorch_model.bin"),
)


def find_tower(
    name: str,
    folders: Sequence[tuple[str, ...]],
    tower: str,
    where: str = "",
    beside: Sequence[str] = (),
) -> tuple[pathlib.Path, pathlib.Path]:
    """The config and the weights of the tower of this name.

    Args:
      name: as for `find_model`: a folder, or a file of weights.
      folders: config and weights relative to a folder, the best first; the last name is what is
        read.
      tower: "text" or "image".
      where: folders that are searched for the hub's files, named in errors.
      beside: files to download with a HUB_CONFIG, if the hub has them.

    Raises:
      UserError: for a name that leads to no such files.
    """
    path = _find(name, folders, beside)
    if name.endswith(WEIGHTS):
        for file in (HUB_CONFIG, OPEN_CLIP_CONFIG):
            if (config := path.with_name(file)).is_file():
                return config, path
        raise UserError(
            f"{path} has no {HUB_CONFIG} or {OPEN_CLIP_CONFIG} beside it, expected one: heads and "
            "activation are not in the weights"
        )
    if path.is_file():
        raise UserError(
            f"{path} is not a file of weights, expected one of {', '.join(WEIGHTS)}, or a folder"
        )
    for config_file, *_, weights_file in folders:
        found = sorted(path.glob(weights_file))
        if (path / config_file).is_file() and len(found) > 1:
            listed = ", ".join(file.name for file in found)
            raise UserError(
                f"{path} holds {len(found)} variants of one tower ({listed}), expected one of "
                f"these named"
            )
        if (path / config_file).is_file() and found:
            return path / config_file, found[0]
    names = ", ".join(sorted(inside.name for inside in path.iterdir())[:8]) or "nothing"
    raise UserError(
        f"{path} holds {names}, expected a CLIP {tower} tower: {HUB_CONFIG} with model.safetensors "
        f"or pytorch_model.bin{where and ' '}{where}, or {OPEN_CLIP_CONFIG} with its weights"
    )


def _find(name: str, folders: Sequence[tuple[str, ...]], beside: Sequence[str]) -> pathlib.Path:
    sets = ((HUB_CONFIG,), (OPEN_CLIP_CONFIG,)) if name.endswith(WEIGHTS) else folders
    if beside:
        try:
            return find_model(
                name, *((*files, *beside) if HUB_CONFIG in files else files for files in sets)
            )
        except UserError:
            pass  # The hub lacks them, or the next search finds another fault and names it.
    return find_model(name, *sets)
