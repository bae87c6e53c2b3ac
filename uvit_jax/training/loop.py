"""The loop: steps follow each other on the devices while the host logs late, in bulk, and calls hooks in between."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from uvit_jax.training.state import TrainState
from uvit_jax.training.step import Batch

# Steps handed to the devices before the host waits for one: enough to keep them busy, few enough to bound memory.
STEPS_IN_FLIGHT = 4


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
    """What happened since the last log: mean metrics of all its steps, how many steps, and in how long."""

    metrics: dict[str, float]
    steps: int
    seconds: float


def fit(
    train_step: Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]],
    state: TrainState,
    batches: Iterator[Batch],
    *,
    steps: int,
    log_every: int,
    on_step: Callable[[int], None],
    on_log: Callable[[int, Window], None],
    hooks: Sequence[Hook] = (),
    should_stop: Callable[[int], bool] = lambda step: False,
) -> TrainState:
    """Trains from `state.step` to `steps`, or to the first step of which `should_stop` says so; returns the last state.

    A run that is stopped between two logs forgets its metrics since the first of them: the run that goes on averages
    over the steps from there to the second. Nothing else depends on where a run is stopped.

    The host never waits for the step it has just started: metrics stay on the devices until `on_log`, which comes
    before the hooks of its step.
    """
    pending: list[dict[str, jax.Array]] = []
    seconds, resumed = 0.0, time.monotonic()
    for step in range(int(state.step) + 1, steps + 1):
        state, metrics = train_step(state, next(batches))
        pending.append(metrics)
        if len(pending) > STEPS_IN_FLIGHT:
            pending[-STEPS_IN_FLIGHT]["loss"].block_until_ready()
        on_step(step)
        if step % log_every == 0 or step == steps:
            values = jax.device_get(pending)
            means = {name: float(np.mean([value[name] for value in values])) for name in values[0]}
            now = time.monotonic()
            on_log(step, Window(means, steps=len(values), seconds=seconds + now - resumed))
            pending, seconds, resumed = [], 0.0, now
        last = step if should_stop(step) else steps
        for hook in hooks:
            if hook.is_due(step, last):
                if not hook.timed:
                    jax.block_until_ready(state.step)
                    seconds += time.monotonic() - resumed
                hook.run(state)
                if not hook.timed:
                    resumed = time.monotonic()
        if step == last:
            break
    return state
