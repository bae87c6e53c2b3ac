"""The folder of a run: made, writable, and the same one on all hosts."""

import importlib.metadata
import os
import pathlib
import socket
import time
from collections.abc import Mapping
from typing import Any

from uvit_jax.errors import UserError
from uvit_jax.experiment.saved_config import flat_fields
from uvit_jax.fingerprints import sha256_of_json
from uvit_jax.parallel import hosts

# A network's file system may show a new file to other hosts this much later.
_SECONDS_UNTIL_SEEN = 60.0


def agree_on_run(job: str, saved: Mapping[str, Any], workdir: pathlib.Path) -> None:
    """Compares the jobs, configs and versions of the hosts of a run, before any of them begins.

    saved: the config, from `saved_config.to_save`.

    Raises:
      SharedError: naming the first field in which they differ.
    """
    config = {f"config.{name}": value for name, value in flat_fields(saved).items()}
    versions = {f"the version of {name}": version(name) for name in ("uvit-jax", "jax", "jaxlib")}
    hosts.agree({"--job": job, "--workdir": str(workdir.absolute()), **versions, **config})


def version(package: str) -> str:
    """Version of an installed package, "unknown" for a checkout on PYTHONPATH."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def open_workdir(workdir: pathlib.Path, name: str = "workdir") -> None:
    """Makes the folder; called by all hosts together.

    name: of the folder in the sentence of an error, as the field that named it.

    Raises:
      UserError: if it can't be made or written to, or is not the same folder on all hosts.
    """
    hosts.on_all(_open_workdir, workdir, name)
    if not hosts.are_several():
        return
    token = workdir / f".hosts-{hosts.same_secret()}"
    hosts.on_first(token.touch)
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


def has_checkpoints(workdir: pathlib.Path) -> bool:
    """True if a folder holds the weights of a run."""
    return any(path.name.isdigit() for path in (workdir / "checkpoints").glob("*"))


def folder_name(title: str, plan: dict[str, Any]) -> str:
    """Name of a folder of samples or of a report: a readable title and a hash of the plan."""
    return f"{title}_{sha256_of_json(plan)[:8]}"
