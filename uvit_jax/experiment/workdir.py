"""The folder of a run: whether it can be written to, and what an earlier run left in it."""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import pathlib
import socket
import time
from typing import Any

from uvit_jax.errors import UserError
from uvit_jax.experiment.config import Experiment
from uvit_jax.experiment.sections import DiffusionConfig
from uvit_jax.files import atomic_write
from uvit_jax.parallel import hosts
from uvit_jax.parallel.distributed import DistributedConfig

# How a model is computed, not what it is: these may differ between a checkpoint and the config that
# reads it.
HOW_FIELDS = ("dtype", "remat", "scan_blocks", "attention", "kernels")
# A network's file system may show a new file to other hosts this much later.
_SECONDS_UNTIL_SEEN = 60.0


def agree_on_run(job: str, experiment: Experiment, workdir: pathlib.Path) -> None:
    """Compares what the hosts of a run were asked for, before any of them begins.

    Raises:
      SharedError: naming the first field in which they differ.
    """
    config = {f"config.{name}": value for name, value in _flat(to_save(experiment)).items()}
    versions = {f"the version of {name}": version(name) for name in ("uvit-jax", "jax", "jaxlib")}
    hosts.agree({"--job": job, "--workdir": str(workdir.absolute()), **versions, **config})


def version(package: str) -> str:
    """Of an installed package; "unknown" for one that is not, as a checkout on the path is."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def to_save(experiment: Experiment) -> dict[str, Any]:
    """The config as a workdir keeps it: how its hosts found each other is no part of a run that
    others go on with.
    """
    return dataclasses.asdict(dataclasses.replace(experiment, distributed=DistributedConfig()))


def open_workdir(workdir: pathlib.Path, name: str = "workdir") -> None:
    """Makes the folder; called by all hosts together.

    name: what it is called in the sentence of an error: another field may have named it.

    Raises:
      UserError: if it can't be made or written to, or is not one and the same for all hosts.
    """
    hosts.on_all(_open_workdir, workdir, name)
    if not hosts.are_several():
        return
    token = workdir / f".hosts-{hosts.same_secret()}"
    hosts.on_all(lambda: token.touch() if hosts.is_first() else None)
    try:
        hosts.on_all(_check_seen, workdir, token.name)
    finally:
        if hosts.is_first():
            token.unlink(missing_ok=True)


def _check_seen(workdir: pathlib.Path, name: str) -> None:
    # A name never asked for before is looked up at the server; a listing may be an old one for a
    # while.
    deadline = time.monotonic() + _SECONDS_UNTIL_SEEN
    while not (workdir / name).exists() and name not in os.listdir(workdir):
        if time.monotonic() > deadline:
            raise UserError(
                f"{workdir} on {socket.gethostname()} is not the folder that process 0 writes to, "
                "expected one on a file system that all hosts share"
            )
        time.sleep(0.2)


def save_config(experiment: Experiment, workdir: pathlib.Path) -> None:
    """Writes the workdir's config.json."""
    with atomic_write(workdir / "config.json") as file:
        file.write(json.dumps(to_save(experiment), indent=2).encode() + b"\n")


def _open_workdir(workdir: pathlib.Path, name: str) -> None:
    # Named after the process: several may be asking at once.
    probe = workdir / f".write_test-{socket.gethostname()}-{os.getpid()}"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"{name} {workdir} can't be written to ({error.strerror}), expected a folder of yours"
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
    """Whether the sections that are read of a saved config are some; an older config may lack them."""
    return all(isinstance(saved.get(name, {}), dict) for name in ("diffusion", "ema", "train"))


def has_checkpoints(workdir: pathlib.Path) -> bool:
    """Whether a folder holds the weights of a run."""
    return any(path.name.isdigit() for path in (workdir / "checkpoints").glob("*"))


def changes(experiment: Experiment, saved: dict[str, Any]) -> list[str]:
    """What the config says otherwise than a saved one, a line for each field."""
    now = json.loads(json.dumps(to_save(experiment)))
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


def folder_name(title: str, plan: dict[str, Any]) -> str:
    """A name for the folder of samples or a report: something to read, and a word of its own for
    what was asked.
    """
    digest = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()[:8]
    return f"{title}_{digest}"


def check_run(experiment: Experiment, workdir: pathlib.Path) -> None:
    """Raises a UserError naming the first field in which the workdir's weights are not such as the
    config describes.
    """
    check_architecture(experiment, workdir)
    check_meaning(experiment, workdir)


def check_architecture(experiment: Experiment, workdir: pathlib.Path) -> None:
    """Raises a UserError naming the first field in which the workdir's model is another than the
    config's.
    """
    saved = (saved_config(workdir) or {}).get("model", {})
    for field, value in dataclasses.asdict(experiment.model).items():
        found = saved.get(field, value)
        found = tuple(found) if isinstance(found, list) else found
        if field not in HOW_FIELDS and found != value:
            raise UserError(
                f"{workdir} holds a model with {field} = {found!r}, but config.model.{field} is "
                f"{value!r}: take another --workdir or the config it was trained with"
            )


def check_meaning(experiment: Experiment, workdir: pathlib.Path) -> None:
    """Raises a UserError where the workdir's weights mean something else than the config says.

    What the network's output stands for, at which noise, and whether the label table's last row is
    the empty label: no shape tells that. A config of before one of these fields was a run of the
    field's default. How latents are scaled and which class a label is stand in the workdir's
    data.json (`datacard.carried_on`).
    """
    config = saved_config(workdir)
    if config is None:
        return
    saved, default, asked = config.get("diffusion", {}), DiffusionConfig(), experiment.diffusion
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
