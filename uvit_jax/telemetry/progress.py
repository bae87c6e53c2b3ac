"""Progress of a job with a known number of steps: a bar on a terminal, plain lines elsewhere."""

import shutil
import sys
import time
import types
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import tqdm

_SECONDS_BETWEEN_REDRAWS = 0.1
_BAR = "{desc} {percentage:3.0f}%|{bar}| {n}/{total}"


@runtime_checkable
class Stream(Protocol):
    """The methods used of a text file: `sys.stderr`, an open log, an `io.StringIO`."""

    def write(self, text: str, /) -> object: ...

    def flush(self) -> object: ...

    def isatty(self) -> bool: ...


class Progress:
    """Shows percent, step/total, loss, images/s, a note and time left of a job.

    On a terminal this is a tqdm bar. Elsewhere (a log file, CI) it is a plain line after the first
    update, then at most one every `interval` seconds, and one when the job is done; never a
    carriage return.

    Time left follows from the pace since the first update: steps of an earlier run do not count,
    nor does the time before that update, in which the first step is compiled.

    Args:
      total: last step of the job.
      start: step that the job begins after.
      description: name of the job in the line.
      active: False shows nothing, on processes other than the first.
      file: default `sys.stderr`.
      interval: seconds between lines where there is no bar.
      clock: source of seconds, for tests.

    Raises:
      ValueError: `start` is not within 0..total.
    """

    def __init__(
        self,
        total: int,
        *,
        start: int = 0,
        description: str = "train",
        active: bool = True,
        file: Stream | None = None,
        interval: float | int = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        if not 0 <= start <= total:
            raise ValueError(f"Progress: start is {start}, expected 0..{total}")
        self._total, self._step, self._description = total, start, description
        self._active, self._clock = active, clock
        self._file: Stream = sys.stderr if file is None else file
        self._loss: float | int | None = None
        self._images_per_sec: float | int | None = None
        self._note = ""
        self._first: tuple[int, float] | None = None
        self._shown_step, self._shown_at = -1, float("-inf")
        self._bar: tqdm.tqdm | None = None
        self._interval = interval
        if active and self._file.isatty():
            self._interval = _SECONDS_BETWEEN_REDRAWS
            self._bar = tqdm.tqdm(
                total=total,
                initial=start,
                desc=description,
                file=self._file,
                ncols=_columns(),
                nrows=20,
                bar_format=_BAR,
            )

    def update(
        self,
        step: int,
        *,
        loss: float | int | None = None,
        images_per_sec: float | int | None = None,
        note: str | None = None,
    ) -> None:
        """Records that `step` steps are done; a loss, rate or note not given keeps its last value.

        Cheap at every step. The numbers of an earlier step may come late: the bar never goes back.
        """
        if not self._active:
            return
        now = self._clock()
        if self._first is None:
            self._first = (step, now)
        self._step = max(self._step, step)
        self._loss = self._loss if loss is None else loss
        self._images_per_sec = self._images_per_sec if images_per_sec is None else images_per_sec
        self._note = self._note if note is None else note
        if now - self._shown_at >= self._interval or self._step >= self._total:
            self._show(now)

    def seconds_left(self) -> float | None:
        """Estimates seconds for the remaining steps; None before the second update."""
        if self._first is None:
            return None
        step, at = self._first
        steps, seconds = self._step - step, self._clock() - at
        return (self._total - self._step) * seconds / steps if steps > 0 else None

    def write(self, message: str) -> None:
        """Writes a line of text, above the bar if there is one."""
        if self._bar is not None:
            self._bar.write(message, file=self._file)
        elif self._active:
            print(message, file=self._file, flush=True)

    def close(self) -> None:
        """Shows the last step and leaves the bar on the screen; a second call does nothing."""
        if self._active:
            if self._first is not None:
                self._show(self._clock())
            if self._bar is not None:
                self._bar.close()
            self._active = False

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        self.close()

    def _show(self, now: float) -> None:
        if self._step == self._shown_step:
            return
        self._shown_step, self._shown_at = self._step, now
        if self._bar is not None:
            self._bar.n, self._bar.ncols = self._step, _columns()
            # tqdm's own rate and time left would count the compile step.
            self._bar.bar_format = _BAR + self._numbers()
            self._bar.refresh()
        else:
            percent = 100 if self._total == 0 else 100 * self._step // self._total
            line = f"{self._description} {percent:3d}% {self._step}/{self._total}{self._numbers()}"
            print(line, file=self._file, flush=True)

    def _numbers(self) -> str:
        left, rate = self.seconds_left(), self._images_per_sec
        parts = [
            "" if self._loss is None else f"loss {self._loss:.4f}",
            "" if rate is None else f"{rate:,.{0 if rate >= 100 else 1}f} images/s",
            self._note,
            "" if left is None else f"{tqdm.tqdm.format_interval(left)} left",
        ]
        return "".join(f"  {part}" for part in parts if part)


def _columns() -> int:
    """Returns the terminal's current width, 80 if it reports 0.

    Terminals of CI or `docker exec` may report 0 x 0, for which tqdm itself shows nothing.
    """
    return shutil.get_terminal_size().columns
