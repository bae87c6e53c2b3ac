"""A workdir's `config.json`: written by a run, read back, compared with the config of today."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections

from uvit_jax.errors import UserError, check_format
from uvit_jax.experiment.config import Experiment, default_config
from uvit_jax.experiment.sections import DiffusionConfig
from uvit_jax.files import atomic_write
from uvit_jax.models.uvit_config import UViTConfig
from uvit_jax.parallel.distributed import DistributedConfig

FILE = "config.json"
FORMAT_VERSION = 1  # files without one are of version 1
# Fields of the model that say how it is computed: they may differ between a checkpoint and the
# config that reads it, and have no part in what a sample is.
EXECUTION_FIELDS = ("dtype", "remat", "scan_blocks", "attention", "kernels")


def to_save(experiment: Experiment) -> dict[str, Any]:
    """Returns the config as a workdir keeps it: `distributed` at its defaults.

    How hosts found each other is not part of a run: other hosts may go on with it.
    """
    return dataclasses.asdict(dataclasses.replace(experiment, distributed=DistributedConfig()))


def save_config(config: Mapping[str, Any], workdir: pathlib.Path) -> None:
    """Writes the workdir's config.json; config: from `to_save`."""
    values = {"format_version": FORMAT_VERSION, **config}
    with atomic_write(workdir / FILE) as file:
        file.write(json.dumps(values, indent=2).encode() + b"\n")


def saved_config(workdir: pathlib.Path) -> dict[str, Any] | None:
    """Reads the config that the workdir's run was started with; None where there is none.

    Raises:
      UserError: for a file that is not such a config, or of a newer version.
    """
    path = workdir / FILE
    if not path.exists():
        return None
    try:
        saved = json.loads(path.read_text())
    except (ValueError, OSError):
        saved = None
    if isinstance(saved, dict):  # before the rest, whose names a newer version may have changed
        check_format(path, saved.pop("format_version", 1), FORMAT_VERSION)
    if (
        not isinstance(saved, dict)
        or not isinstance(saved.get("model"), dict)
        or not _has_sections(saved)
    ):
        raise UserError(
            f"{path} can't be read as the config of a run, expected the JSON that training wrote "
            f"there"
        )
    return saved


def _has_sections(saved: dict[str, Any]) -> bool:
    """Checks that the sections read below are dicts; an older config may lack them."""
    return all(isinstance(saved.get(name, {}), dict) for name in ("diffusion", "ema", "train"))


def config_of_run(workdir: pathlib.Path) -> ml_collections.ConfigDict:
    """Builds the config that `--workdir DIR` alone, without `--config`, names.

    Raises:
      UserError: for a folder without a config.json, or with one that is not a run's.
    """
    saved = saved_config(workdir)
    if saved is None:
        raise UserError(f"{workdir} holds no {FILE}: give --config, or the --workdir of a run")
    config = default_config()
    config.update(saved)
    return config


def changes(config: Mapping[str, Any], saved: Mapping[str, Any]) -> list[str]:
    """Lists the fields in which a config, from `to_save`, differs from a saved one, a line each."""
    now, before = flat_fields(json.loads(json.dumps(config))), flat_fields(saved)
    return [
        f"config.{name}: {before[name]} before, {value} now"
        for name, value in now.items()
        if before.get(name, value) != value
    ]


def flat_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a config by their dotted names, as "train.steps"."""
    return {
        f"{section}.{field}" if field else section: value
        for section, fields in config.items()
        for field, value in (fields.items() if isinstance(fields, dict) else [("", fields)])
    }


def check_run(model: UViTConfig, diffusion: DiffusionConfig, workdir: pathlib.Path) -> None:
    """Raises a UserError naming the first field in which the workdir's weights don't fit these."""
    check_architecture(model, workdir)
    check_meaning(diffusion, workdir)


def check_architecture(model: UViTConfig, workdir: pathlib.Path) -> None:
    """Raises a UserError naming the first field in which the workdir's model is not this one."""
    saved = (saved_config(workdir) or {}).get("model", {})
    for field, value in dataclasses.asdict(model).items():
        found = saved.get(field, value)
        found = tuple(found) if isinstance(found, list) else found
        if field not in EXECUTION_FIELDS and found != value:
            raise UserError(
                f"{workdir} holds a model with {field} = {found!r}, but config.model.{field} is "
                f"{value!r}: take another --workdir or the config it was trained with"
            )


def check_meaning(asked: DiffusionConfig, workdir: pathlib.Path) -> None:
    """Raises a UserError where the workdir's weights mean something else than the config says.

    No shape shows what the network predicts, at which noise, and whether the label table's last
    row is the empty label. A saved config older than one of these fields had the field's default.
    The scale of latents and the names of classes are in data.json (`data_card.carried_on`).
    """
    config = saved_config(workdir)
    if config is None:
        return
    saved, default = config.get("diffusion", {}), DiffusionConfig()
    for field in ("prediction", "schedule"):
        found, value = saved.get(field, getattr(default, field)), getattr(asked, field)
        if found != value:
            raise UserError(
                f"{workdir} holds a model with {field} = {found!r}, but config.diffusion.{field} "
                f"is {value!r}: take another --workdir or the config it was trained with"
            )
    found = saved.get("p_uncond", default.p_uncond)
    if bool(found) != bool(asked.p_uncond):
        knows, expected = ("an", "a number above 0") if found else ("no", "0")
        raise UserError(
            f"{workdir} holds a model with p_uncond = {found!r}, which knows {knows} empty "
            f"condition, but config.diffusion.p_uncond is {asked.p_uncond!r}, expected {expected}: "
            "take another --workdir or the config it was trained with"
        )
