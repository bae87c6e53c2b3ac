import itertools
import logging
import math
import shutil

import jax
import numpy as np
import optax
import pytest

from uvit_jax.data.pipeline import train_batches
from uvit_jax.data.training_data import ArrayData
from uvit_jax.errors import UserError
from uvit_jax.parallel.mesh import MeshConfig, batch_sharding, make_mesh, replicated
from uvit_jax.training import ema, posthoc_ema
from uvit_jax.training.checkpoint import Checkpoints
from uvit_jax.training.posthoc_ema import Profile, ema_of_length, nearest_combination
from uvit_jax.training.state import create
from uvit_jax.training.step import apply_gradients


def profile(step, rate, steps):
    """The weights on steps 0..steps, by the recursion that training runs."""
    params = np.eye(steps + 1)
    average = {"w": params[0]}
    for s in range(1, step + 1):
        average = ema.update(average, {"w": params[s]}, rate)
    return average["w"]


def combined(combination, rate, steps):
    return sum(
        a * profile(step, rate, steps) + b * profile(step, 0, steps)
        for step, a, b in zip(combination.steps, combination.ema, combination.params, strict=True)
    )


@pytest.mark.parametrize("t", [0, 1, 2, 7, 30])
@pytest.mark.parametrize("u", [0, 1, 29, 30])
@pytest.mark.parametrize(
    ("r", "q"), [(0.9, 0.99), (0.5, 0.5), (0, 0.7), (0.7, 0), (0, 0), (0.9999, 0.999)]
)
def test_inner_products_of_profiles_are_the_sums_over_the_steps(t, u, r, q):
    products = profile(t, r, 30) * profile(u, q, 30)
    assert Profile(t, r).inner(Profile(u, q)) == pytest.approx(
        products.sum(), rel=1e-12, abs=1e-300
    )
    for after, until in ((-1, t - 1), (-1, 0), (0, t), (3, t), (3, 6), (29, 30)):
        expected = products[after + 1 : max(until, -1) + 1].sum()
        assert Profile(t, r).inner(Profile(u, q), after=after, until=until) == pytest.approx(
            expected, 1e-12, 1e-300
        )


def test_long_averages_lose_no_digits():
    # The norm of an average of length n after very many steps is (1 - r) / (1 + r).
    rate = 1 - 2.0**-30
    assert Profile(10**12, rate).inner(Profile(10**12, rate)) == pytest.approx(
        2.0**-30 / (1 + rate), rel=1e-14
    )


def by_interval(weights, steps):
    """Sums of a profile's weights: on step 0, and from each checkpoint to the next."""
    edges = [0, 1, *(step + 1 for step in steps if step > 0)]
    return np.array([weights[a:b].sum() for a, b in itertools.pairwise(edges)])


@pytest.mark.parametrize("target_length", [3, 20, 40, 100, 500, 3000])
@pytest.mark.parametrize(
    "steps", [range(20, 301, 20), (300,), (100, 299, 300), (0, 1, 2, 3, 300), (17, 250), (0, 300)]
)
def test_the_errors_told_are_those_of_the_profiles_and_the_weights_sum_to_one(steps, target_length):
    rate, target_rate = 0.975, 1 - 1 / target_length
    combination = nearest_combination(tuple(steps), rate, target_rate, 300)
    assert combination.steps == tuple(steps)
    assert sum(combination.ema) + sum(combination.params) == pytest.approx(1, abs=1e-8)
    target = profile(300, target_rate, 300)
    off = target - combined(combination, rate, 300)
    assert combination.error == pytest.approx(
        np.linalg.norm(off[1:]) / np.linalg.norm(target[1:]), abs=1e-7
    )
    assert combination.misplaced == pytest.approx(abs(off[0]), abs=1e-9)


@pytest.mark.parametrize("target_length", [20, 100, 400])
def test_no_other_combination_with_the_targets_weight_between_checkpoints_has_a_smaller_error(
    target_length,
):
    rate, target_rate, steps = 0.975, 1 - 1 / target_length, (0, 150, 200, 201, 280, 300)
    combination = nearest_combination(steps, rate, target_rate, 300)
    # Brute force: least squares over the combinations that fulfil the conditions.
    stored = np.array([profile(t, rate, 300) for t in steps] + [profile(t, 0, 300) for t in steps])
    target = profile(300, target_rate, 300)
    conditions = np.array([by_interval(weights, steps) for weights in stored]).T
    start = np.linalg.lstsq(conditions, by_interval(target, steps), rcond=1e-13)[0]
    free = np.linalg.svd(conditions)[2][np.linalg.matrix_rank(conditions) :].T
    matrix, goal = (stored.T @ free)[1:], (target - stored.T @ start)[1:]
    best = np.linalg.norm(
        matrix @ np.linalg.lstsq(matrix, goal, rcond=1e-13)[0] - goal
    ) / np.linalg.norm(target[1:])
    assert combination.error == pytest.approx(best, rel=1e-6)


# Averages about as long as the training: the digits example of the docs, and a long run.
NEAR_THE_TRAINING = [
    (0.998, 2000, 500, 3500),
    (0.998, 10_000, 500, 3500),
    (0.9999, 200_000, 10_000, 500_000),
]


@pytest.mark.parametrize(("rate", "length", "every", "last"), NEAR_THE_TRAINING)
def test_with_step_0_kept_no_weight_of_a_long_average_lies_between_other_checkpoints(
    rate, length, every, last
):
    steps = tuple(range(0, last + 1, every))
    combination = nearest_combination(steps, rate, 1 - 1 / length, last)
    target = Profile(last, 1 - 1 / length)
    found = np.zeros(last + 1)
    for step, a, b in zip(steps, combination.ema, combination.params, strict=True):
        found[: step + 1] += a * closed_profile(step, rate)
        found[step] += b
    off = closed_profile(last, target.rate) - found
    assert combination.misplaced < 1e-12
    assert np.abs(by_interval(off, steps)).max() < 1e-9
    assert (
        np.abs(off).sum() / 2 < 0.11
    )  # within the intervals, where parameters are near each other
    assert sum(map(float, np.float32(combination.ema + combination.params))) == pytest.approx(
        1, abs=1e-7
    )


@pytest.mark.parametrize(("rate", "length", "every", "last"), NEAR_THE_TRAINING)
def test_without_step_0_its_weight_lies_on_the_first_interval_alone_and_both_numbers_say_so(
    rate, length, every, last
):
    steps = tuple(range(every, last + 1, every))
    combination = nearest_combination(steps, rate, 1 - 1 / length, last)
    found = np.zeros(last + 1)
    for step, a, b in zip(steps, combination.ema, combination.params, strict=True):
        found[: step + 1] += a * closed_profile(step, rate)
        found[step] += b
    off = by_interval(closed_profile(last, 1 - 1 / length) - found, steps)
    assert combination.misplaced == pytest.approx(off[0], abs=1e-9)
    assert off[0] == pytest.approx(-off[1], abs=1e-9)
    assert np.abs(off[2:]).max() < 1e-9
    assert combination.misplaced > 0.05
    assert combination.error > posthoc_ema.LARGE_ERROR


def closed_profile(step, rate):
    """`profile` of steps 0..step, without its recursion."""
    weights = (1 - rate) * rate ** np.arange(step, -1.0, -1)
    weights[0] = rate**step
    return weights


def test_checkpoints_beyond_the_target_or_long_before_it_are_left_out():
    combination = nearest_combination(range(0, 10_001, 100), 0.99, 0.995, 8000)
    used = [
        s
        for s, *c in zip(combination.steps, combination.ema, combination.params, strict=True)
        if any(c)
    ]
    # 0.995^1378 = 1e-3: back to step 6700, and the one before.
    assert used == list(range(6600, 8001, 100))
    assert combination.error < 0.15


def test_a_target_between_checkpoints_is_made_of_the_ones_around_it():
    combination = nearest_combination(range(50, 1001, 50), 0.99, 0.99, 725)
    used = [
        s
        for s, *c in zip(combination.steps, combination.ema, combination.params, strict=True)
        if any(c)
    ]
    assert used[-1] == 750
    assert 0.05 < combination.error < 0.5


def test_what_is_stored_is_found_exactly():
    steps = tuple(range(5000, 500_001, 5000))
    stored = nearest_combination(steps, 0.9999, 0.9999, 400_000)
    assert stored.error < 1e-6
    assert dict(zip(steps, stored.ema, strict=True))[400_000] == pytest.approx(1, abs=1e-12)
    assert sum(map(bool, stored.ema + stored.params)) == 1
    raw = nearest_combination(steps, 0.9999, 0, 400_000)
    assert raw.error < 1e-6
    assert dict(zip(steps, raw.params, strict=True))[400_000] == pytest.approx(1, abs=1e-12)
    assert sum(map(bool, raw.ema + raw.params)) == 1


def test_with_every_step_kept_any_average_is_exact():
    assert nearest_combination(range(0, 301), 0.9, 0.99, 300).error < 1e-7
    # As far as checkpoints are used: 0.5^10 is below 1e-3.
    assert nearest_combination(range(0, 301), 0.9, 0.5, 300).error < 1e-3


def simulate(params, rates, kept):
    """(raw, averages of all rates) at the steps kept, of a training with these parameters."""
    averages = {rate: {"w": params[0]} for rate in rates}
    found = {0: (params[0], {rate: params[0] for rate in rates})} if 0 in kept else {}
    for step, now in enumerate(params[1:], 1):
        averages = {
            rate: ema.update(average, {"w": now}, rate) for rate, average in averages.items()
        }
        if step in kept:
            found[step] = now, {rate: average["w"] for rate, average in averages.items()}
    return found


@pytest.mark.parametrize("length", [100, 400, 600, 3000])
@pytest.mark.parametrize("kind", ["random walk", "line", "noise"])
def test_averages_of_a_simulated_training_come_out_within_the_predicted_error(length, kind):
    rate, target_rate, steps = 1 - 1 / 200, 1 - 1 / length, tuple(range(0, 4001, 100))
    params = np.random.default_rng(0).standard_normal((4001, 500))
    params = {
        "random walk": np.cumsum(params, axis=0),
        "line": np.arange(4001.0)[:, None] * params[:1],
        # Step 0, of which an average holds a share of its own, is met exactly.
        "noise": params * (np.arange(4001) > 0)[:, None],
    }[kind]
    found = simulate(params, (rate, target_rate), steps)
    combination = nearest_combination(steps, rate, target_rate, 4000)
    got = sum(
        a * found[step][1][rate] + b * found[step][0]
        for step, a, b in zip(combination.steps, combination.ema, combination.params, strict=True)
    )
    raw, averages = found[4000]
    target = averages[target_rate]
    off = np.linalg.norm(got - target)
    if kind == "noise":  # The profiles' error is the average's.
        assert off / np.linalg.norm(target) == pytest.approx(combination.error, rel=0.15)
    else:
        # Slow changes: nearer than that share of the way from the raw parameters, and far nearer
        # than the stored average.
        assert off < combination.error * np.linalg.norm(raw - target)
        assert off < 0.2 * np.linalg.norm(averages[rate] - target)


RATE, LONG = 0.95, 40


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small training on disk, a checkpoint each 10 steps up to 80, and an average of `LONG`."""
    directory = tmp_path_factory.mktemp("run")
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    source = ArrayData("ramp", np.zeros((8, 1, 1, 1), np.float32), np.arange(8), ["0"] * 8)
    batches = train_batches(
        source, fields=("label",), batch_size=2, seed=0, sharding=batch_sharding(mesh)
    )
    optimizer = optax.sgd(0.1, momentum=0.9)
    shapes = {"block": {"kernel": (4, 32), "bias": (32,)}, "scale": (3,)}
    is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
    noise = lambda key: jax.tree.map(lambda s: jax.random.normal(key, s), shapes, is_leaf=is_shape)  # noqa: E731
    state = jax.jit(lambda: create(noise, optimizer, 0), out_shardings=replicated(mesh))()
    step = jax.jit(lambda state, key: apply_gradients(state, noise(key), optimizer, RATE))
    long = jax.device_get(state.params)
    checkpoints = Checkpoints(directory, keep_last=9)
    checkpoints.save(state, batches)
    for i in range(1, 81):
        state = step(state, jax.random.key(i))
        long = ema.update(long, jax.device_get(state.params), 1 - 1 / LONG)
        if i % 10 == 0:
            checkpoints.save(state, batches)
    checkpoints.close()
    batches.close()
    template = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)), state.params
    )
    return directory, template, state, long


def distance(a, b):
    return math.sqrt(
        sum(
            float(((x - y) ** 2).sum())
            for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
        )
    )


def equal(a, b):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


def test_a_longer_average_of_a_run_on_disk_is_the_one_tracked_beside_it(run, caplog):
    directory, template, state, long = run
    params, combination = ema_of_length(
        Checkpoints(directory, read_only=True), template, rate=RATE, length=LONG
    )
    assert combination.steps == tuple(range(0, 81, 10))
    assert combination.error < 0.2
    assert distance(params, long) < 0.2 * distance(state.ema, long)
    assert distance(params, long) < combination.error * distance(state.params, long)
    assert jax.tree.map(lambda x: x.sharding, params) == jax.tree.map(
        lambda x: x.sharding, template
    )
    assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype("float32")}
    assert "rough" not in caplog.text


def test_stored_length_and_length_one_are_the_stored_weights_bit_for_bit_and_read_nothing_else(
    run, monkeypatch
):
    directory, template, state, _ = run
    checkpoints = Checkpoints(directory, read_only=True)
    restore, read = checkpoints.restore_weights, []

    def restore_weights(template, *, weights, step):
        read.append((weights, step))
        return restore(template, weights=weights, step=step)

    monkeypatch.setattr(checkpoints, "restore_weights", restore_weights)
    stored, combination = ema_of_length(checkpoints, template, rate=RATE, length=20)
    assert equal(stored, state.ema)
    assert combination.error < 1e-6
    raw, combination = ema_of_length(checkpoints, template, rate=RATE, length=1)
    assert equal(raw, state.params)
    assert combination.error < 1e-6
    earlier, _ = ema_of_length(checkpoints, template, rate=RATE, length=20, step=30)
    assert equal(earlier, restore(template, weights="ema", step=30)[0])
    assert read == [("ema", 80), ("params", 80), ("ema", 30)]


def test_a_rough_average_is_told_with_its_error_and_what_makes_it_better(run, caplog):
    directory, template, *_ = run
    with caplog.at_level(logging.WARNING, "uvit_jax"):
        _, combination = ema_of_length(
            Checkpoints(directory, read_only=True), template, rate=RATE, length=4
        )
    assert combination.error > posthoc_ema.LARGE_ERROR
    (message,) = caplog.messages
    assert message.startswith("warning: the EMA of length 4 ")
    assert f"off by {100 * combination.error:.0f}%" in message
    assert "config.train.keep_every of at most 4" in message


def test_the_beginning_is_an_average_of_any_length(run):
    directory, template, *_ = run
    checkpoints = Checkpoints(directory, read_only=True)
    params, combination = ema_of_length(checkpoints, template, rate=RATE, length=40, step=0)
    assert equal(params, checkpoints.restore_weights(template, weights="params", step=0)[0])
    assert (combination.error, combination.misplaced) == (0, 0)


@pytest.fixture(scope="module")
def old_run(run, tmp_path_factory):
    """The same of before step 0 was kept."""
    directory = tmp_path_factory.mktemp("old") / "run"
    shutil.copytree(run[0], directory)
    shutil.rmtree(directory / "0")
    return directory


def test_weight_that_belongs_on_a_step_0_that_is_not_there_is_told(run, old_run, caplog):
    with caplog.at_level(logging.WARNING, "uvit_jax"):
        _, combination = ema_of_length(
            Checkpoints(old_run, read_only=True), run[1], rate=RATE, length=LONG
        )
    assert combination.misplaced > posthoc_ema.LARGE_MISPLACED
    *_, message = caplog.messages
    assert message.startswith(
        "warning: the EMA of length 40 at step 80 is not what training would have kept: "
    )
    assert f"{100 * combination.misplaced:.0f}% of its weight belongs on step 0" in message
    assert "lies on the steps up to 10;" in message


def test_one_checkpoint_gives_only_what_it_holds(run, old_run):
    directory, template = old_run, run[1]
    checkpoints = Checkpoints(directory, read_only=True)
    with pytest.raises(
        UserError,
        match=r"1 checkpoint up to step 10, .*\(40\) than the stored one \(20\).*keep_every",
    ):
        ema_of_length(checkpoints, template, rate=RATE, length=40, step=10)
    kept, _ = ema_of_length(checkpoints, template, rate=RATE, length=20, step=10)
    assert equal(kept, checkpoints.restore_weights(template, weights="ema", step=10)[0])


@pytest.mark.parametrize("length", [0.5, 0, -3, math.inf, math.nan])
def test_lengths_that_are_none_are_refused(run, length):
    directory, template, *_ = run
    with pytest.raises(UserError, match=r"length is .*, expected a number of steps from 1 on"):
        ema_of_length(Checkpoints(directory, read_only=True), template, rate=RATE, length=length)


def test_a_step_without_checkpoint_names_those_there_are(run, tmp_path):
    directory, template, *_ = run
    with pytest.raises(UserError, match="holds no step 15, expected one of 0, 10, 20,"):
        ema_of_length(
            Checkpoints(directory, read_only=True), template, rate=RATE, length=40, step=15
        )
    with pytest.raises(UserError, match="holds no checkpoint"):
        ema_of_length(
            Checkpoints(tmp_path / "nowhere", read_only=True), template, rate=RATE, length=40
        )
