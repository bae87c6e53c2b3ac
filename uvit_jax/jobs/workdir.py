"""The folder of a run: whether it can be written to, and what an earlier run left in it."""

import dataclasses
import json
import pathlib
from typing import Any

from uvit_jax.errors import UserError
from uvit_jax.jobs.config import Experiment

# How a model is computed, not what it is: these may differ between a checkpoint and the config that reads it.
_HOW_FIELDS = ("dtype", "remat", "scan_blocks", "attention")


def open_workdir(workdir: pathlib.Path) -> None:
    """Makes the folder.

    Raises:
      UserError: if it can't be made or written to.
    """
    probe = workdir / ".write_test"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"workdir {workdir} can't be written to ({error.strerror}), expected a folder of yours"
        ) from None


def saved_config(workdir: pathlib.Path) -> dict[str, Any] | None:
    """The config that the workdir's run was started with; None where there is none.

    Raises:
      UserError: for a file that is no such config.
    """
    path = workdir / "config.json"
    if not path.exists():
        return None
    try:
        saved = json.loads(path.read_text())
    except (ValueError, OSError):
        saved = None
    if not isinstance(saved, dict) or not isinstance(saved.get("model"), dict):
        raise UserError(f"{path} can't be read as the config of a run, expected the JSON that training wrote there")
    return saved


def changes(experiment: Experiment, saved: dict[str, Any]) -> list[str]:
    """What the config says otherwise than a saved one, a line for each field."""
    now = json.loads(json.dumps(dataclasses.asdict(experiment)))
    return [
        f"config.{name}: {before} before, {value} now"
        for name, value in _flat(now).items()
        if (before := _flat(saved).get(name, value)) != value
    ]


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """Fields by their dotted names."""
    return {
        f"{section}.{field}" if field else section: value
        for section, fields in config.items()
        for field, value in (fields.items() if isinstance(fields, dict) else [("", fields)])
    }


def check_architecture(experiment: Experiment, workdir: pathlib.Path) -> None:
    """Raises a UserError naming the first field in which the workdir's model is another than the config's."""
    saved = (saved_config(workdir) or {}).get("model", {})
    for field, value in dataclasses.asdict(experiment.model).items():
        found = saved.get(field, value)
        found = tuple(found) if isinstance(found, list) else found
        if field not in _HOW_FIELDS and found != value:
            raise UserError(
                f"{workdir} holds a model with {field} = {found!r}, but config.model.{field} is {value!r}: "
                "take another --workdir or the config it was trained with"
            )
