import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvit_jax.telemetry.trace import StepTrace
from uvit_jax.training import loop
from uvit_jax.training.loop import Hook, Log, fit
from uvit_jax.training.state import TrainState

STEP_SECONDS = 2.0


class Clock:
    """A fake module `time`, which moves only when a test moves it."""

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


class Value:
    """A number on the fake device, there when its step has ended; who asks sooner waits."""

    def __init__(self, clock: Clock, value: float, ready: float):
        self.clock, self.value, self.ready = clock, value, ready

    def block_until_ready(self) -> "Value":
        self.clock.now = max(self.clock.now, self.ready)
        return self

    def is_ready(self) -> bool:
        return self.clock.now >= self.ready

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self.block_until_ready().value, dtype)


class Device:
    """A fake device that runs steps in turn, STEP_SECONDS each, while the host does other work."""

    def __init__(self, clock: Clock):
        self.clock, self.free, self.idle, self.steps, self.most_behind = (
            clock,
            clock.now,
            0.0,
            [],
            0,
        )

    def running(self) -> int:
        return sum(end > self.clock.now for end in self.steps)

    def run(self, **values: float) -> dict[str, Value]:
        self.idle += max(0.0, self.clock.now - self.free)
        self.free = max(self.clock.now, self.free) + STEP_SECONDS
        self.steps.append(self.free)
        self.most_behind = max(self.most_behind, self.running())
        return {name: Value(self.clock, value, self.free) for name, value in values.items()}


class Run:
    """A fit over fake steps: the loss is the batch's number, and `events` lists what happened."""

    def __init__(self, clock: Clock):
        self.clock, self.events, self.windows, self.batches = clock, [], {}, []
        self.device, self.data_seconds, self.log_seconds = Device(clock), 0.0, 0.0

    def data(self, start):
        for number in range(start, 1000):
            self.clock.advance(self.data_seconds)
            yield number

    def hook(self, name="hook", *, every=0, at_end=False, timed=True, seconds=0.0) -> Hook:
        def run(state):
            self.events.append((name, int(state.step)))
            self.clock.advance(seconds)

        return Hook(run, every, at_end=at_end, timed=timed)

    def fit(self, *, steps, log_every, start=0, **options) -> TrainState:
        def train_step(state, batch):
            self.batches.append(batch)
            return state_at(int(state.step) + 1), self.device.run(loss=batch, norm=-2 * batch)

        def on_log(step, window):
            self.windows[step] = window
            self.events.append(("log", step))
            self.clock.advance(self.log_seconds)

        return fit(
            train_step,
            state_at(start),
            self.data(start),
            steps=steps,
            on_step=lambda step: self.events.append(("step", step)),
            log=Log(log_every, on_log),
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
        steps=2,
        log_every=2,
        hooks=[run.hook("draw", every=2, at_end=True), run.hook("save", every=1, at_end=True)],
    )
    assert run.events == [
        ("step", 1),
        ("save", 1),
        ("step", 2),
        ("log", 2),
        ("draw", 2),
        ("save", 2),
    ]


def test_seconds_count_steps_and_timed_hooks_but_not_untimed_ones(run):
    timed = run.hook("save", every=3, timed=True, seconds=10.0)
    untimed = run.hook("draw", every=2, timed=False, seconds=1000.0)
    run.fit(steps=8, log_every=4, hooks=[untimed, timed, untimed])
    # Step 3's save is in the first window, step 6's in the second; step 4's drawing comes after its
    # log.
    assert {step: window.seconds for step, window in run.windows.items()} == {
        4: 4 * STEP_SECONDS + 10,
        8: 4 * STEP_SECONDS + 10,
    }


def test_the_device_always_has_a_step_to_do_but_never_more_than_the_bound(run):
    # A log and a batch take nearly as long as all the steps that are under way.
    run.log_seconds = (loop.STEPS_IN_FLIGHT - 1.3) * STEP_SECONDS
    run.data_seconds = 0.2 * STEP_SECONDS
    run.fit(steps=40, log_every=8)
    assert run.device.idle == pytest.approx(run.data_seconds)  # the first batch
    assert run.device.most_behind == loop.STEPS_IN_FLIGHT
    assert run.device.free - 100 == pytest.approx(40 * STEP_SECONDS + run.data_seconds)


def test_metrics_are_fetched_when_their_step_is_the_bound_behind(run):
    run.fit(steps=20, log_every=8)
    late = loop.STEPS_IN_FLIGHT - 1
    assert [event for event in run.events if event[0] == "log"] == [
        ("log", 8),
        ("log", 16),
        ("log", 20),
    ]
    assert run.events[run.events.index(("log", 8)) - 1] == ("step", 8 + late)
    assert run.events[run.events.index(("log", 16)) - 1] == ("step", 16 + late)
    assert run.events[-2:] == [("step", 20), ("log", 20)]


def test_every_due_log_comes_before_a_hook(run):
    # The log of step 4 is still to come when step 5 has a hook.
    run.fit(steps=6, log_every=2, hooks=[run.hook("save", every=5)])
    before = run.events[: run.events.index(("save", 5))]
    assert [step for event, step in before if event == "log"] == [2, 4]


def test_a_window_lasts_from_step_to_step_however_late_it_is_logged(run):
    run.log_seconds, run.data_seconds = 3.0, 0.5
    run.fit(steps=12, log_every=4)
    first, *others = (window.seconds for window in run.windows.values())
    assert first == 4 * STEP_SECONDS + run.data_seconds  # of the first batch
    assert others == [4 * STEP_SECONDS] * 2


def test_a_window_says_what_the_host_waited_for(run):
    run.log_seconds, run.data_seconds = 3.0, 0.25
    save = run.hook("save", every=5, seconds=10.0)
    draw = run.hook("draw", every=6, timed=False, seconds=1000.0)
    run.fit(steps=12, log_every=4, hooks=[save, draw])
    parts = {
        step: (window.data_seconds, window.log_seconds, window.hook_seconds)
        for step, window in run.windows.items()
    }
    # Batches are fetched up to three steps ahead of the window's end, but not over a save: so many
    # in all when steps 4, 8 and 12 ended.
    ahead = [5, 10, 12]
    assert parts == {
        4: (ahead[0] * 0.25, 0.0, 0.0),
        8: ((ahead[1] - ahead[0]) * 0.25, 3.0, 10.0),
        12: ((ahead[2] - ahead[1]) * 0.25, 3.0, 10.0),
    }
    assert all(sum(parts[step]) <= window.seconds for step, window in run.windows.items())
    # The drawing and the last log are in no window.
    assert sum(window.seconds for window in run.windows.values()) == run.clock.now - 100 - 1000 - 3


@pytest.mark.parametrize(
    ("slow", "idle"),
    [
        ({}, [{}, {}, {}]),
        # Shorter than a step: hidden, but for batches that no step runs beside.
        ({"data_seconds": 1.8}, [{"data": 1.8}, {}, {"data": 1.8}]),
        # Longer than a step: every batch, so many in each window, is waited for.
        ({"data_seconds": 3.0}, [{"data": 7 * 3.0}, {"data": 3 * 3.0}, {"data": 2 * 3.0}]),
        # Longer than all steps under way.
        ({"log_seconds": 20.0}, [{}, {"log": 20.0}, {"log": 20.0}]),
    ],
)
def test_waits_that_leave_the_devices_idle_are_told_from_hidden_ones(run, slow, idle):
    for name, seconds in slow.items():
        setattr(run, name, seconds)
    run.fit(steps=12, log_every=4, hooks=[run.hook("save", every=10, seconds=7.0)])
    idle[2]["hook"] = 7.0  # no step runs beside a save
    for step, expected in zip((4, 8, 12), idle, strict=True):
        found = {part: seconds for part, seconds in run.windows[step].idle.items() if seconds}
        assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("steps", "start", "traced"),
    [
        (range(3, 5), 0, [3, 4]),
        (range(3, 5), 3, [4]),  # resumed in between
        (range(3, 5), 4, []),  # resumed after it
        (range(6, 100), 0, [6, 7, 8]),  # to the end of the run
    ],
)
def test_a_trace_holds_whole_steps_and_no_others(run, monkeypatch, steps, start, traced):
    def recorded(event, seconds=0.0):
        def function(*arguments, **options):
            run.events.append((event, run.device.running()))
            run.clock.advance(seconds)

        return function

    monkeypatch.setattr(jax.profiler, "start_trace", recorded("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", recorded("stop", seconds=1000.0))
    run.fit(start=start, steps=8, log_every=8, trace=StepTrace(steps, "profile"))
    within, is_on = [], False
    for event, number in run.events:
        if event in ("start", "stop"):
            assert number == 0  # steps that run on the device
            is_on = event == "start"
        elif event == "step" and is_on:
            within.append(number)
    assert within == traced
    assert run.windows[8].seconds < 100  # without the time in which the trace was written


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
    run.fit(
        steps=4,
        log_every=4,
        hooks=[run.hook(every=3, at_end=True)],
        should_stop=lambda step: step == 4,
    )
    assert run.steps_of("hook") == [3, 4]
    assert run.steps_of("log") == [4]
