"""The training loop: devices queue steps while the host logs late, in bulk, and calls hooks."""

import collections
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from uvit_jax.parallel.batches import Batch
from uvit_jax.training.state import TrainState
from uvit_jax.training.step import Metrics

# Steps handed to the devices before the host waits for the first of them: enough to keep them busy
# while it fetches batches and logs, few enough to bound the memory of batches.
STEPS_IN_FLIGHT = 4


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

    The last three attributes are the host's own time. While it waits for data or logs, the devices
    have up to `STEPS_IN_FLIGHT` - 1 steps queued, so that at most this time is lost, and less where
    it is spent in parts.

    Attributes:
      metrics: means over all its steps.
      steps: number of steps.
      seconds: time from the end of the last logged step to the end of this one, without untimed
        hooks.
      data_seconds: time that the host waited for batches.
      log_seconds: time in which it fetched and logged the metrics of earlier windows.
      hook_seconds: time in timed hooks.
    """

    metrics: dict[str, float]
    steps: int
    seconds: float
    data_seconds: float = 0.0
    log_seconds: float = 0.0
    hook_seconds: float = 0.0


def fit(
    train_step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]],
    state: TrainState,
    batches: Iterator[Batch],
    *,
    steps: int,
    log_every: int,
    on_step: Callable[[int], None],
    on_log: Callable[[int, Window], None],
    hooks: Sequence[Hook] = (),
    check: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
    should_stop: Callable[[int], bool] = lambda step: False,
) -> TrainState:
    """Trains from `state.step` to `steps`, or until `should_stop(step)`; returns the last state.

    A run that is stopped between two logs forgets its metrics since the first of them: the resumed
    run averages over the steps from there to the second. Nothing else depends on where a run is
    stopped.

    `check(step, metrics)` gets a step's own metrics before a hook gets its state, and may raise: a
    state with NaN must not be saved.

    The host waits for the step it has just started only before a hook and at the end; else it stays
    `STEPS_IN_FLIGHT` - 1 steps ahead of the devices. Metrics stay on the devices until the step
    that they are logged with has ended; by then the next ones are queued, so `on_log` delays
    nothing. It is called before the hooks of its step.
    """
    account = _Account(lambda step: step % log_every == 0 or step == steps, on_log)
    for step in range(int(state.step) + 1, steps + 1):
        state, metrics = train_step(state, account.spend("data", next, batches))
        account.start(step, metrics)
        on_step(step)
        last = step if should_stop(step) else steps
        due = [hook for hook in hooks if hook.is_due(step, last)]
        account.wait(0 if due or step == last else STEPS_IN_FLIGHT - 1)
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
        self._open_window(time.monotonic())

    def _open_window(self, now: float) -> None:
        self._ended: list[Metrics] = []
        self._spent: dict[str, float] = collections.defaultdict(float)
        self._began = now

    def spend(self, part: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Calls function(*arguments), whose time counts as this part's."""
        began = time.monotonic()
        result = function(*arguments)
        self._spent[part] += time.monotonic() - began
        return result

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
                now, ended, spent = time.monotonic(), self._ended, self._spent
                seconds = now - self._began - spent["untimed"]
                self._open_window(now)
                self.spend("log", self._log, step, ended, seconds, spent)

    def _log(
        self, step: int, ended: list[Metrics], seconds: float, spent: dict[str, float]
    ) -> None:
        values = jax.device_get(ended)
        means = {name: float(np.mean([value[name] for value in values])) for name in values[0]}
        parts = {f"{part}_seconds": spent[part] for part in ("data", "log", "hook")}
        self._on_log(step, Window(means, len(values), seconds, **parts))
