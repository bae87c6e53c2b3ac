import types

import jax.numpy as jnp
import pytest

from uvit_jax.training import loop
from uvit_jax.training.loop import Hook, fit
from uvit_jax.training.state import TrainState

STEP_SECONDS = 2.0


class Clock:
    """Stands in for the module `time`; moves only when told."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(loop, "time", types.SimpleNamespace(monotonic=lambda: self.now))

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def state_at(step: int) -> TrainState:
    return TrainState(step=jnp.asarray(step, jnp.int32), params={}, ema={}, opt_state=())


class Run:
    """A fit over fake steps, whose loss is the batch's number and whose accounts are kept as a list of events."""

    def __init__(self, clock: Clock):
        self.clock, self.events, self.windows, self.batches = clock, [], {}, []

    def hook(self, name="hook", *, every=0, at_end=False, timed=True, seconds=0.0) -> Hook:
        def run(state):
            self.events.append((name, int(state.step)))
            self.clock.advance(seconds)

        return Hook(run, every, at_end=at_end, timed=timed)

    def fit(self, *, steps, log_every, start=0, **options) -> TrainState:
        def train_step(state, batch):
            self.clock.advance(STEP_SECONDS)
            self.batches.append(batch)
            return state_at(int(state.step) + 1), {"loss": jnp.float32(batch), "norm": jnp.float32(-2 * batch)}

        def on_log(step, window):
            self.windows[step] = window
            self.events.append(("log", step))

        return fit(
            train_step,
            state_at(start),
            iter(range(start, 1000)),
            steps=steps,
            log_every=log_every,
            on_step=lambda step: self.events.append(("step", step)),
            on_log=on_log,
            **options,
        )

    def steps_of(self, name) -> list[int]:
        return [step for event, step in self.events if event == name]


@pytest.fixture
def run(clock):
    return Run(clock)


def test_every_step_takes_one_batch_and_the_last_state_comes_back(run):
    state = run.fit(steps=11, log_every=100)
    assert int(state.step) == 11
    assert run.batches == list(range(11))
    assert run.steps_of("step") == list(range(1, 12))


def test_a_log_is_the_mean_over_all_steps_since_the_one_before(run):
    run.fit(steps=10, log_every=4)
    # Step k has loss k - 1; the last window is what is left.
    assert {step: (window.metrics, window.steps) for step, window in run.windows.items()} == {
        4: ({"loss": 1.5, "norm": -3.0}, 4),
        8: ({"loss": 5.5, "norm": -11.0}, 4),
        10: ({"loss": 8.5, "norm": -17.0}, 2),
    }


def test_a_resumed_run_goes_on_from_its_step_and_logs_at_the_same_ones(run):
    state = run.fit(start=6, steps=10, log_every=4, hooks=[run.hook(every=3)])
    assert int(state.step) == 10
    assert run.batches == [6, 7, 8, 9]
    assert {step: window.steps for step, window in run.windows.items()} == {8: 2, 10: 2}
    assert run.steps_of("hook") == [9]


@pytest.mark.parametrize("start", [5, 7])
def test_a_run_that_is_done_does_nothing(run, start):
    state = run.fit(start=start, steps=5, log_every=1, hooks=[run.hook(every=1, at_end=True)])
    assert int(state.step) == start
    assert run.events == []
    assert run.batches == []


@pytest.mark.parametrize(
    ("every", "at_end", "expected"),
    [
        (3, False, [3, 6]),
        (3, True, [3, 6, 9]),
        (4, True, [4, 8, 9]),
        (4, False, [4, 8]),
        (0, True, [9]),
        (0, False, []),
        (100, True, [9]),
    ],
)
def test_a_hook_runs_at_its_multiples_and_last_only_if_asked(run, every, at_end, expected):
    run.fit(steps=9, log_every=100, hooks=[run.hook(every=every, at_end=at_end)])
    assert run.steps_of("hook") == expected


def test_a_step_is_counted_then_logged_then_given_to_the_hooks_in_their_order(run):
    run.fit(
        steps=2, log_every=2, hooks=[run.hook("draw", every=2, at_end=True), run.hook("save", every=1, at_end=True)]
    )
    assert run.events == [("step", 1), ("save", 1), ("step", 2), ("log", 2), ("draw", 2), ("save", 2)]


def test_seconds_count_steps_and_timed_hooks_but_not_untimed_ones(run):
    timed = run.hook("save", every=3, timed=True, seconds=10.0)
    untimed = run.hook("draw", every=2, timed=False, seconds=1000.0)
    run.fit(steps=8, log_every=4, hooks=[untimed, timed, untimed])
    # Step 3's save is in the first window, step 6's in the second; step 4's drawing comes after its log.
    assert {step: window.seconds for step, window in run.windows.items()} == {
        4: 4 * STEP_SECONDS + 10,
        8: 4 * STEP_SECONDS + 10,
    }


def test_the_host_waits_only_for_a_step_well_behind_the_one_it_started(clock, monkeypatch):
    started, waited = [], []

    class Loss(float):
        def block_until_ready(self):
            waited.append((int(self), started[-1]))

    def train_step(state, batch):
        started.append(batch)
        return state_at(int(state.step) + 1), {"loss": Loss(batch)}

    monkeypatch.setattr(loop.jax, "device_get", lambda pending: pending)
    fit(
        train_step,
        state_at(0),
        iter(range(100)),
        steps=9,
        log_every=100,
        on_step=lambda step: None,
        on_log=lambda step, window: None,
    )
    assert waited
    assert {now - then for then, now in waited} == {loop.STEPS_IN_FLIGHT - 1}


def test_a_run_that_is_stopped_ends_after_that_step_with_the_hooks_of_the_end_alone(run):
    asked = []

    def should_stop(step):
        asked.append(step)
        return step == 6

    hooks = [run.hook("draw", every=3), run.hook("save", every=4, at_end=True)]
    state = run.fit(steps=100, log_every=4, hooks=hooks, should_stop=should_stop)
    assert int(state.step) == 6
    assert asked == run.steps_of("step") == [1, 2, 3, 4, 5, 6]
    assert run.steps_of("draw") == [3]
    assert run.steps_of("save") == [4, 6]
    assert run.steps_of("log") == [4]


def test_a_notice_at_the_last_step_changes_nothing(run):
    run.fit(steps=4, log_every=4, hooks=[run.hook(every=3, at_end=True)], should_stop=lambda step: step == 4)
    assert run.steps_of("hook") == [3, 4]
    assert run.steps_of("log") == [4]
