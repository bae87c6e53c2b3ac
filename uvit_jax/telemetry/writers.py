"""The writer of a run's numbers: `metrics.jsonl` and loggers, resumable after a kill."""

import json
import math
import os
import pathlib
import time
import types
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from uvit_jax.errors import UserError
from uvit_jax.files import atomic_write
from uvit_jax.telemetry.loggers.logger import LoggedRun
from uvit_jax.telemetry.loggers.registry import open_loggers

Number = float | int | np.floating | np.integer | None
_SECONDS_BETWEEN_FLUSHES = 10.0


class MetricWriter:
    """Appends a run's numbers and images to its workdir, and resumes where a killed run stopped.

    `<workdir>/metrics.jsonl` gets one JSON object per line, `{"step": step, **scalars}`; a number
    that is not finite becomes null. The loggers get every number and image.

    There is exactly one line for each logged step, if the caller calls `flush()` before it saves a
    checkpoint. In between, lines are synced to the disk at the first write after every 10 seconds.

    Args:
      workdir: folder of the run.
      resume_step: number of steps in the state that the run resumes from. Lines of later steps, and
        a last line torn by a kill, are dropped (the file is replaced in one move). Lines of earlier
        steps are not written again.
      active: False reads and writes nothing, on processes other than the first.
      loggers: names of `loggers.registry.LOGGERS`.
      config: of the run, for loggers that show it.

    Raises:
      UserError: the workdir can't be written, or metrics.jsonl holds a line (not the last) that is
        not a JSON object.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        resume_step: int = 0,
        *,
        active: bool = True,
        loggers: Sequence[str] = ("tensorboard",),
        config: Mapping[str, Any] | None = None,
    ):
        self.active = active
        if not active:
            return
        workdir = pathlib.Path(workdir)
        path = workdir / "metrics.jsonl"
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            kept = _truncate(path, resume_step)
            self._lines = path.open("a", encoding="utf-8")
            self._loggers = open_loggers(loggers, LoggedRun(workdir, resume_step, config or {}))
        except OSError as error:
            raise UserError(
                f"cannot write to {workdir}: {error.strerror}; expected a writable workdir"
            ) from error
        # The line of a train step has a loss; other lines are evaluations.
        self._logged = {line["step"] for line in kept if "step" in line and "loss" in line}
        self._evaluated = {
            (line["step"], *sorted(line.keys() - {"step"}))
            for line in kept
            if "step" in line and "loss" not in line
        }
        self._last_step = -1
        self._flushed = time.monotonic()

    def write(self, step: int, scalars: Mapping[str, Number]) -> None:
        """Writes a line of metrics.jsonl, which survives a SIGKILL right after, and to loggers.

        scalars: Python or NumPy numbers (no device arrays), or None, written as null.

        Raises:
          ValueError: `step` is not greater than the last one written, or `scalars` has a "step".
        """
        if not self.active or step in self._logged:
            return
        if step <= self._last_step:
            raise ValueError(
                f"write: got step {step} after step {self._last_step}, expected one write a step"
            )
        self._last_step = step
        self._write(step, scalars)

    def write_evaluation(self, step: int, scalars: Mapping[str, Number]) -> None:
        """Writes a line of its own for a step's evaluation; it is on the disk on return.

        Its names are not those of `write`. A line that a killed run already wrote is kept as it is.
        """
        if self.active and scalars and not self.has_evaluation(step, scalars):
            self._write(step, scalars)
            self._evaluated.add((step, *sorted(scalars)))
            self.flush()

    def has_evaluation(self, step: int, names: Collection[str]) -> bool:
        """True if a line of this step with these names exists; False on an inactive writer."""
        return self.active and (step, *sorted(names)) in self._evaluated

    def _write(self, step: int, scalars: Mapping[str, Number]) -> None:
        if "step" in scalars:
            raise ValueError('write: scalars has the key "step", which the step argument fills')
        values = {
            key: value.item() if isinstance(value, np.number) else value
            for key, value in scalars.items()
        }
        line = {"step": step} | {key: _finite(value) for key, value in values.items()}
        self._lines.write(json.dumps(line, allow_nan=False) + "\n")
        self._lines.flush()
        known = {key: value for key, value in values.items() if value is not None}
        for logger in self._loggers:
            logger.scalars(step, known)
        self._flush_if_due()

    def write_image(self, tag: str, step: int, image: UInt8[np.ndarray, "h w c"]) -> None:
        """Gives the loggers a picture of 1, 3 or 4 channels."""
        if self.active:
            for logger in self._loggers:
                logger.image(tag, step, image)
            self._flush_if_due()

    def flush(self) -> None:
        """Syncs lines and loggers to the disk, out of the operating system's cache."""
        if self.active:
            self._lines.flush()
            os.fsync(self._lines.fileno())
            for logger in self._loggers:
                logger.sync()
            self._flushed = time.monotonic()

    def _flush_if_due(self) -> None:
        if time.monotonic() - self._flushed >= _SECONDS_BETWEEN_FLUSHES:
            self.flush()

    def close(self, *, failed: bool = False) -> None:
        """Flushes and closes all; a second call does nothing.

        failed: True where the run ends with an error, which some loggers show.
        """
        if self.active:
            self.flush()
            self._lines.close()
            for logger in self._loggers:
                logger.close(failed=failed)
            self.active = False

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        self.close(failed=kind is not None)


def read_metrics(path: str | os.PathLike[str]) -> list[dict]:
    """Reads the lines of a metrics.jsonl as dicts, without a last line torn by a kill.

    Raises:
      UserError: there is no such file, or a line (not the last) is not a JSON object.
    """
    try:
        lines = pathlib.Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}; expected the metrics.jsonl of a run"
        ) from error
    metrics = []
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if isinstance(entry, dict):
            metrics.append(entry)
        elif number < len(lines):
            shown = line[:60].decode(errors="replace")
            raise UserError(
                f"{path} line {number} is {shown!r}; expected a JSON object: delete the line to "
                "go on"
            )
    return metrics


def _truncate(path: pathlib.Path, resume_step: int) -> list[dict]:
    """Drops lines after `resume_step` and a torn one from the file; returns the lines it keeps."""
    if not path.exists():
        return []
    kept = [line for line in read_metrics(path) if line.get("step", 0) <= resume_step]
    content = "".join(json.dumps(line) + "\n" for line in kept).encode()
    if content != path.read_bytes():
        with atomic_write(path) as file:
            file.write(content)
    return kept


def _finite(value: float | int | None) -> float | int | None:
    return None if value is None or not math.isfinite(value) else value
