"""The training loop: devices queue steps while the host logs late, in bulk, and calls hooks."""

import collections
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from uvit_jax.parallel.batches import Batch
from uvit_jax.telemetry.trace import NO_TRACE, StepTrace
from uvit_jax.training.state import TrainState
from uvit_jax.training.step import Metrics

# Steps handed to the devices before the host waits for the first of them: enough to keep them busy
# while it fetches batches and logs, few enough to bound the memory of batches.
STEPS_IN_FLIGHT = 4
# The parts of the host's time that a window counts.
_TIMED = ("data", "log", "hook")


@dataclasses.dataclass(frozen=True)
class Hook:
    """A call with the state every so many steps.

    Attributes:
      run: called with the state.
      every: steps between calls; 0 for none but perhaps the last.
      at_end: True to run after the last step, too, also where training stops early.
      timed: True if its time counts in the throughput that is logged.
    """

    run: Callable[[TrainState], None]
    every: int
    at_end: bool
    timed: bool

    def is_due(self, step: int, steps: int) -> bool:
        """Returns True if it runs after this step."""
        return self.at_end if step == steps else self.every > 0 and step % self.every == 0


@dataclasses.dataclass(frozen=True)
class Window:
    """The steps since the last log.

    The three attributes after `seconds` are the host's own time. While it waits for data or logs,
    the devices have up to `STEPS_IN_FLIGHT` - 1 steps queued, so that at most this time is lost,
    and less where it is spent in parts.

    Attributes:
      metrics: means over all its steps.
      steps: number of steps.
      seconds: time from the end of the last logged step to the end of this one, without untimed
        hooks.
      data_seconds: time that the host waited for batches.
      log_seconds: time in which it fetched and logged the metrics of earlier windows.
      hook_seconds: time in timed hooks.
      idle: those parts of the three times, by "data", "log" and "hook", at whose end the devices
        had nothing left to do: at most this time they were idle.
    """

    metrics: dict[str, float]
    steps: int
    seconds: float
    data_seconds: float = 0.0
    log_seconds: float = 0.0
    hook_seconds: float = 0.0
    idle: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Log:
    """A call with the window that ends with a step, every so many steps and after the last.

    Attributes:
      every: steps between calls.
      run: called with the step and its window.
    """

    every: int
    run: Callable[[int, Window], None]


def fit(
    train_step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]],
    state: TrainState,
    batches: Iterator[Batch],
    *,
    steps: int,
    on_step: Callable[[int], None],
    log: Log,
    hooks: Sequence[Hook] = (),
    check: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
    should_stop: Callable[[int], bool] = lambda step: False,
    trace: StepTrace = NO_TRACE,
) -> TrainState:
    """Trains from `state.step` to `steps`, or until `should_stop(step)`; returns the last state.

    A run that is stopped between two logs forgets its metrics since the first of them: the resumed
    run averages over the steps from there to the second. Nothing else depends on where a run is
    stopped.

    `check(step, metrics)` gets a step's own metrics before a hook gets its state, and may raise: a
    state with NaN must not be saved.

    The host waits for the step it has just started only before a hook and at the end; else it stays
    `STEPS_IN_FLIGHT` - 1 steps ahead of the devices. Metrics stay on the devices until the step
    that they are logged with has ended; by then the next ones are queued, so `log` delays nothing.
    It is called before the hooks of its step.

    `trace` holds whole steps: those before it have ended when it starts, and its own when it stops.
    """
    account = _Account(lambda step: step % log.every == 0 or step == steps, log.run)
    for step in range(int(state.step) + 1, steps + 1):
        if trace.is_due(step):
            account.wait(0)
            account.spend("untimed", trace.start)
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            batch = account.spend("data", next, batches)
            account.note_idle()
            state, metrics = train_step(state, batch)
        account.start(step, metrics)
        on_step(step)
        last = step if should_stop(step) else steps
        due = [hook for hook in hooks if hook.is_due(step, last)]
        ends_trace = trace.is_last(step) or step == last
        account.wait(0 if due or ends_trace else STEPS_IN_FLIGHT - 1)
        if ends_trace:
            account.spend("untimed", trace.stop)
        if due:
            check(step, {name: float(value) for name, value in jax.device_get(metrics).items()})
        for hook in due:
            account.spend("hook" if hook.timed else "untimed", hook.run, state)
        if step == last:
            break
    return state


class _Account:
    """Steps in flight, those that ended since the last log, and the host's time since then."""

    def __init__(self, is_logged: Callable[[int], bool], on_log: Callable[[int, Window], None]):
        self._is_logged, self._on_log = is_logged, on_log
        self._running: collections.deque[tuple[int, Metrics]] = collections.deque()
        self._since_step: dict[str, float] = collections.defaultdict(float)
        self._open_window(time.monotonic())

    def _open_window(self, now: float) -> None:
        self._ended: list[Metrics] = []
        self._spent: dict[str, float] = collections.defaultdict(float)
        self._idle: dict[str, float] = collections.defaultdict(float)
        self._began = now

    def spend(self, part: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Calls function(*arguments), whose time counts as this part's."""
        began = time.monotonic()
        with jax.profiler.TraceAnnotation(part):
            result = function(*arguments)
        seconds = time.monotonic() - began
        self._spent[part] += seconds
        self._since_step[part] += seconds
        return result

    def note_idle(self) -> None:
        """Counts the host's time since the last step as idle if no step is running any more."""
        steps = [metrics for _, metrics in self._running]
        if all(value.is_ready() for value in jax.tree.leaves(steps[-1:])):
            for part in _TIMED:
                self._idle[part] += self._since_step[part]
        self._since_step.clear()

    def start(self, step: int, metrics: Metrics) -> None:
        """Adds a step that was dispatched to the devices."""
        self._running.append((step, metrics))

    def wait(self, running: int) -> None:
        """Waits until at most `running` steps are in flight; logs the windows of the others."""
        while len(self._running) > running:
            step, metrics = self._running.popleft()
            jax.block_until_ready(metrics)
            self._ended.append(metrics)
            if self._is_logged(step):
                now, ended, spent, idle = time.monotonic(), self._ended, self._spent, self._idle
                seconds = now - self._began - spent["untimed"]
                self._open_window(now)
                self.spend("log", self._log, step, ended, seconds, spent, idle)

    def _log(
        self,
        step: int,
        ended: list[Metrics],
        seconds: float,
        spent: dict[str, float],
        idle: dict[str, float],
    ) -> None:
        values = jax.device_get(ended)
        means = {name: float(np.mean([value[name] for value in values])) for name in values[0]}
        parts = {f"{part}_seconds": spent[part] for part in _TIMED}
        self._on_log(step, Window(means, len(values), seconds, **parts, idle=idle))
