"""TensorBoard's event files, written in the caller's thread."""

import os
import socket
import time
import uuid
from collections.abc import Mapping

import numpy as np
import tensorboardX
from jaxtyping import UInt8
from tensorboardX import summary
from tensorboardX.proto import event_pb2, summary_pb2

from uvit_jax.telemetry.loggers.logger import LoggedRun


class TensorBoard:
    """One event file in `<workdir>/tensorboard/`; events after the resumed step are dropped there.

    tensorboardX's SummaryWriter passes events to a thread through a queue that its `flush` does not
    wait for, so a kill after a flush can lose up to ten of them. Its RecordWriter has no queue.
    """

    def __init__(self, run: LoggedRun):
        folder = run.workdir / "tensorboard"
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
        purge_step = run.resume_step + 1
        self._write(event_pb2.Event(step=purge_step, session_log=start))
        self.sync()

    def scalars(self, step: int, values: Mapping[str, float | int]) -> None:
        """Adds an event for each number."""
        for key, value in values.items():
            self._add(step, summary.scalar(key, value))

    def image(self, tag: str, step: int, image: UInt8[np.ndarray, "h w c"]) -> None:
        """Adds a picture of 1, 3 or 4 channels."""
        self._add(step, summary.image(tag, image, dataformats="HWC"))

    def sync(self) -> None:
        """Syncs all events to the disk."""
        self._records.flush()
        # A bucket mounted as a folder gets written data only when a file is synced or closed.
        with self._path.open("ab") as same:
            os.fsync(same.fileno())

    def close(self, *, failed: bool) -> None:
        """Closes the file."""
        self._records.close()

    def _add(self, step: int, content: summary_pb2.Summary) -> None:
        self._write(event_pb2.Event(step=step, summary=content))

    def _write(self, event: event_pb2.Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())
