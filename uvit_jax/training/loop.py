"""The loop: steps follow each other on the devices while the host logs late, in bulk, and calls
hooks in between.
"""

import collections
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from uvit_jax.data.training_data import Batch
from uvit_jax.training.state import TrainState

# Steps handed to the devices before the host waits for the first of them: enough to keep them busy
# while it fetches batches and logs, few enough to bound the memory of batches.
STEPS_IN_FLIGHT = 4

Metrics = dict[str, Any]  # scalars on the devices


@dataclasses.dataclass(frozen=True)
class Hook:
    """Something done with the state every so many steps.

    Attributes:
      run: called with the state.
      every: steps between calls; 0 for none but perhaps the last.
      at_end: whether it runs after the last step too, whichever it turns out to be.
      timed: whether its time counts in the throughput that is logged.
    """

    run: Callable[[TrainState], None]
    every: int
    at_end: bool
    timed: bool

    def is_due(self, step: int, steps: int) -> bool:
        """Whether it runs after this step."""
        return self.at_end if step == steps else self.every > 0 and step % self.every == 0


@dataclasses.dataclass(frozen=True)
class Window:
    """What happened since the last log.

    The last three attributes are the host's own time. While it waits for data or logs, the devices
    have up to `STEPS_IN_FLIGHT` - 1 steps to go on with, so that no more than this is lost, and
    less where it is spent in parts.

    Attributes:
      metrics: means over all its steps.
      steps: how many.
      seconds: from the end of the step that was logged last to the end of this one, untimed hooks
        left out.
      data_seconds: in which the host waited for batches.
      log_seconds: in which it fetched the metrics of the windows before and logged them.
      hook_seconds: in timed hooks.
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
    """Trains from `state.step` to `steps`, or to the first step of which `should_stop` says so;
    returns the last state.

    A run that is stopped between two logs forgets its metrics since the first of them: the run that
    goes on averages over the steps from there to the second. Nothing else depends on where a run is
    stopped.

    `check(step, metrics)` sees a step's own metrics before a hook has its state, and may raise: a
    state that is no number any more is not to be saved.

    The host never waits for the step it has just started, but before a hook and at the end: it
    stays `STEPS_IN_FLIGHT`
    - 1 steps ahead of the devices. Metrics stay on them until the step they are logged with has
    ended; by then the devices have the next ones to do, so `on_log` holds nothing up. It comes
    before the hooks of its step all the same.
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
    """Steps under way, those that ended since the last log, and what the host's time since then
    went to.
    """

    def __init__(self, is_logged: Callable[[int], bool], on_log: Callable[[int, Window], None]):
        self._is_logged, self._on_log = is_logged, on_log
        self._running: collections.deque[tuple[int, Metrics]] = collections.deque()
        self._open_window(time.monotonic())

    def _open_window(self, now: float) -> None:
        self._ended: list[Metrics] = []
        self._spent: dict[str, float] = collections.defaultdict(float)
        self._began = now

    def spend(self, part: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """`function(*arguments)`, the time of which counts as this part's."""
        began = time.monotonic()
        result = function(*arguments)
        self._spent[part] += time.monotonic() - began
        return result

    def start(self, step: int, metrics: Metrics) -> None:
        """A step is on its way to the devices."""
        self._running.append((step, metrics))

    def wait(self, running: int) -> None:
        """Returns when no more than so many steps are under way, and all windows of the others are
        logged.
        """
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
