"""How far a job with a known number of steps is: a bar on a terminal, now and then a plain line in
a log file.
"""

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
    """A text file, as far as it is needed here: `sys.stderr`, an open log, an `io.StringIO`."""

    def write(self, text: str, /) -> object: ...

    def flush(self) -> object: ...

    def isatty(self) -> bool: ...


class Progress:
    """Shows percent, step/total, loss, images/s and time left of a job that counts steps from
    `start` to `total`.

    On a terminal this is a tqdm bar. Elsewhere (a log file, CI) it is a plain line after the first
    update, then at most one every `interval` seconds, and one when the job is done; never a
    carriage return.

    Time left is measured from the first update on: steps done since then over the seconds since
    then. Steps of an earlier run, and the time before the first update, in which the first step is
    compiled, don't count.

    With `active=False` (hosts other than the first) nothing is shown.

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
    ) -> None:
        """Says that `step` steps are done; a loss or rate not given stays the last one known. Cheap
        at every step.

        The numbers of a step that lies behind the last one may come late; they turn nothing back.
        """
        if not self._active:
            return
        now = self._clock()
        if self._first is None:
            self._first = (step, now)
        self._step = max(self._step, step)
        self._loss = self._loss if loss is None else loss
        self._images_per_sec = self._images_per_sec if images_per_sec is None else images_per_sec
        if now - self._shown_at >= self._interval or self._step >= self._total:
            self._show(now)

    def seconds_left(self) -> float | None:
        """The seconds the remaining steps will take at this run's pace; None until two updates were
        seen.
        """
        if self._first is None:
            return None
        step, at = self._first
        steps, seconds = self._step - step, self._clock() - at
        return (self._total - self._step) * seconds / steps if steps > 0 else None

    def write(self, message: str) -> None:
        """A line of text of its own, above the bar where there is one."""
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
            # tqdm's own rate and time left would count the compile step, so the numbers are ours.
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
            "" if left is None else f"{tqdm.tqdm.format_interval(left)} left",
        ]
        return "".join(f"  {part}" for part in parts if part)


def _columns() -> int:
    """The terminal's width now, 80 if it says 0.

    Terminals made by CI or `docker exec` may say 0 x 0, and where tqdm asks them itself, it then
    shows nothing.
    """
    return shutil.get_terminal_size().columns
