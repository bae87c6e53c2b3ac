"""Writers of a run's numbers: `metrics.jsonl` and TensorBoard events, resumable after a kill."""

import json
import math
import os
import pathlib
import socket
import time
import types
import uuid
from collections.abc import Collection, Mapping

import numpy as np
import tensorboardX
from jaxtyping import UInt8
from tensorboardX import summary
from tensorboardX.proto import event_pb2, summary_pb2

from uvit_jax.errors import UserError
from uvit_jax.files import atomic_write

Number = float | int | np.floating | np.integer | None
_SECONDS_BETWEEN_FLUSHES = 10.0


class MetricWriter:
    """Appends a run's numbers and images to its workdir, and resumes where a killed run stopped.

    `<workdir>/metrics.jsonl` gets one JSON object per line, `{"step": step, **scalars}`; a number
    that is not finite becomes null. `<workdir>/tensorboard/` gets every number and image as events.

    There is exactly one line for each logged step, if the caller calls `flush()` before it saves a
    checkpoint. In between, lines are synced to the disk at the first write after every 10 seconds.

    Args:
      workdir: folder of the run.
      resume_step: number of steps in the state that the run resumes from. Lines of later steps, and
        a last line torn by a kill, are dropped (the file is replaced in one move); TensorBoard
        drops events of later steps. Lines of earlier steps are not written again.
      active: False reads and writes nothing, on processes other than the first.

    Raises:
      UserError: the workdir can't be written, or metrics.jsonl holds a line (not the last) that is
        not a JSON object.
    """

    def __init__(
        self, workdir: str | os.PathLike[str], resume_step: int = 0, *, active: bool = True
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
            self._events = _EventFile(workdir / "tensorboard", purge_step=resume_step + 1)
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
        """Writes a line of metrics.jsonl, which survives a SIGKILL right after, and events.

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
        for key, value in values.items():
            if value is not None:
                self._events.add(step, summary.scalar(key, value))
        self._flush_if_due()

    def write_image(self, tag: str, step: int, image: UInt8[np.ndarray, "h w c"]) -> None:
        """Writes a TensorBoard image of 1, 3 or 4 channels."""
        if self.active:
            self._events.add(step, summary.image(tag, image, dataformats="HWC"))
            self._flush_if_due()

    def flush(self) -> None:
        """Syncs all lines and events to the disk, out of the operating system's cache."""
        if self.active:
            self._lines.flush()
            os.fsync(self._lines.fileno())
            self._events.sync()
            self._flushed = time.monotonic()

    def _flush_if_due(self) -> None:
        if time.monotonic() - self._flushed >= _SECONDS_BETWEEN_FLUSHES:
            self.flush()

    def close(self) -> None:
        """Flushes and closes both files; a second call does nothing."""
        if self.active:
            self.flush()
            self._lines.close()
            self._events.close()
            self.active = False

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        self.close()


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


class _EventFile:
    """One TensorBoard event file, written in the caller's thread.

    tensorboardX's SummaryWriter passes events to a thread through a queue that its `flush` does not
    wait for, so a kill after a flush can lose up to ten of them. Its RecordWriter has no queue.
    """

    def __init__(self, folder: pathlib.Path, purge_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        # The random end keeps apart two runs that start within a second: opening a file of the same
        # name would empty it.
        name = (
            f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{uuid.uuid4().hex[:8]}"
        )
        self._path = folder / name
        self._records = tensorboardX.RecordWriter(str(self._path))
        self._write(event_pb2.Event(file_version="brain.Event:2"))
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(event_pb2.Event(step=purge_step, session_log=start))
        self.sync()

    def _write(self, event: event_pb2.Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())

    def add(self, step: int, content: summary_pb2.Summary) -> None:
        self._write(event_pb2.Event(step=step, summary=content))

    def sync(self) -> None:
        self._records.flush()
        # A bucket mounted as a folder gets written data only when a file is synced or closed.
        with self._path.open("ab") as same:
            os.fsync(same.fileno())

    def close(self) -> None:
        self._records.close()
