"""Weights & Biases: one run for each workdir, which resumed processes go on with."""

import contextlib
import logging
import os
import threading
import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8

from uvit_jax.extras import import_extra
from uvit_jax.files import atomic_write
from uvit_jax.telemetry.loggers.logger import LoggedRun

LOG = logging.getLogger("uvit_jax")

_ID_FILE = "wandb_run_id.txt"
_SECONDS_TO_UPLOAD = 60.0


class WandbRun:
    """A run of wandb, whose id is kept in the workdir; no failure of wandb's ends the training.

    The project is "uvit-jax" unless the environment's WANDB_PROJECT says otherwise, and wandb's
    other variables count, too (WANDB_MODE, WANDB_ENTITY, ...). Without a connection or an account
    the run is kept in `<workdir>/wandb/` for `wandb sync`.
    """

    def __init__(self, run: LoggedRun):
        self._wandb = import_extra("wandb", "wandb", "config.train.loggers has 'wandb'")
        self._folder = run.workdir / "wandb"
        self._run: Any = None
        run_id, name = _identity(run)
        try:
            self._run = self._start(run, run_id, name)
        except Exception as error:  # of the network, the account or wandb's own process
            with contextlib.suppress(Exception):
                self._wandb.teardown()  # of the attempt, which holds the run's id
                self._run = self._start(run, run_id, name, mode="offline")
            kept = f"'wandb sync' can upload {self._folder} later" if self._run else "without it"
            LOG.warning(
                "wandb can't be reached (%s): training goes on, %s", _first_line(error), kept
            )

    def _start(self, run: LoggedRun, run_id: str, name: str | None, mode: str | None = None) -> Any:
        started = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "uvit-jax",
            name=name,
            id=run_id,
            resume="allow",
            dir=str(run.workdir),
            mode=mode,
        )
        # A run may go on with other fields than it began with.
        started.config.update(dict(run.config), allow_val_change=True)
        return started

    def scalars(self, step: int, values: Mapping[str, float | int]) -> None:
        """Adds numbers to the step's row."""
        self._log(step, dict(values))

    def image(self, tag: str, step: int, image: UInt8[np.ndarray, "h w c"]) -> None:
        """Adds a picture to the step's row."""
        self._log(step, lambda: {tag: self._wandb.Image(image)})

    def sync(self) -> None:
        """Nothing to do: a process of wandb's own writes what it was given."""

    def close(self, *, failed: bool) -> None:
        """Ends the run; uploads that take longer than a minute are left to `wandb sync`."""
        if self._run is None:
            return
        run, self._run = self._run, None
        ended: list[bool] = []

        def finish() -> None:
            with contextlib.suppress(Exception):
                run.finish(exit_code=int(failed))
                ended.append(True)

        # A daemon: it must not keep a finished job from ending.
        thread = threading.Thread(target=finish, daemon=True)
        thread.start()
        thread.join(_SECONDS_TO_UPLOAD)
        if not ended:
            LOG.warning("wandb has not got all of the run: 'wandb sync' uploads %s", self._folder)

    def _log(self, step: int, values: Any) -> None:
        # A resumed run has rows of steps after its checkpoint, which wandb does not replace.
        if self._run is None or step < self._run.step:
            return
        try:
            self._run.log(values() if callable(values) else values, step=step)
        except Exception as error:
            self._run = None
            LOG.warning("wandb fails (%s): training goes on without it", _first_line(error))


def _identity(run: LoggedRun) -> tuple[str, str | None]:
    """The id of a workdir's run, and the name of a new one: a resumed one has a name already."""
    path = run.workdir / _ID_FILE
    if path.exists():
        return path.read_text().strip(), None
    run_id = os.environ.get("WANDB_RUN_ID") or uuid.uuid4().hex[:8]
    with atomic_write(path) as file:
        file.write(run_id.encode() + b"\n")
    return run_id, os.environ.get("WANDB_NAME") or run.workdir.resolve().name


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
