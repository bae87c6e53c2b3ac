import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvit_jax.diffusion.ddim import Ddim
from uvit_jax.diffusion.dpm_solver import sample
from uvit_jax.diffusion.options import SolverOptions
from uvit_jax.diffusion.predictions import PREDICTIONS, convert
from uvit_jax.diffusion.schedules import RectifiedFlow, VPCosine, VPLinear
from uvit_jax.diffusion.singlestep import outer_orders
from uvit_jax.errors import UserError

SCHEDULE = VPLinear()
X = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))


@jax.jit
def noise_fn(x, t):
    alpha, sigma = (value[:, None, None, None] for value in (SCHEDULE.alpha(t), SCHEDULE.sigma(t)))
    return sigma * x / (0.25 * alpha**2 + sigma**2) + 0.05 * jnp.sin(x)


def primitives(jaxpr, found=None) -> list[str]:
    """The names of all primitives of a jaxpr and of those inside it, in order."""
    found = [] if found is None else found
    for equation in jaxpr.eqns:
        found.append(equation.primitive.name)
        for value in jax.tree.leaves(equation.params, is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                primitives(inner, found)
    return found


@pytest.mark.parametrize(
    "options",
    [
        {"order": 3},
        {"order": 2, "algorithm": "sde-dpmsolver++", "key": jax.random.key(0)},
        {"order": 3, "method": "singlestep", "spacing": "logsnr", "algorithm": "dpmsolver"},
        {"order": 3, "method": "singlestep_fast", "denoise_to_zero": True, "thresholding": True},
    ],
    ids=["multistep", "sde", "singlestep", "with_everything"],
)
def test_one_scan_calls_the_network_at_one_place_whatever_the_steps(options):
    def program(steps):
        return primitives(
            jax.make_jaxpr(lambda x: sample(noise_fn, x, SCHEDULE, steps=steps, **options))(X).jaxpr
        )

    few, many = program(5), program(50)
    assert (many.count("scan"), many.count("while"), many.count("sin")) == (1, 0, 1)
    assert not [
        name for name in many if "callback" in name or "infeed" in name or "outfeed" in name
    ]
    assert len(few) == len(many)


def test_fifty_steps_compile_as_fast_as_five():
    def seconds(steps):
        start = time.process_time()  # not the clock's, in which other processes take part
        jax.jit(lambda x: sample(noise_fn, x, SCHEDULE, steps=steps)).lower(X).compile()
        return time.process_time() - start

    few, many = zip(*((seconds(5), seconds(50)) for _ in range(5)), strict=True)
    assert min(many) <= 1.5 * min(few)


def test_first_order_is_ddim_in_both_forms(x64):
    x = X.astype(jnp.float64)
    found = [
        sample(noise_fn, x, SCHEDULE, steps=7, order=1, algorithm=name)
        for name in ("dpmsolver++", "dpmsolver")
    ]
    for each in found:
        expected = Ddim().solve(noise_fn, x, SCHEDULE, SolverOptions(steps=7))
        np.testing.assert_allclose(each, expected, atol=1e-12)


def test_the_two_singlestep_methods_agree_where_their_nodes_do(x64):
    x = X.astype(jnp.float64)
    one, fast = (
        sample(noise_fn, x, SCHEDULE, steps=8, order=3, method=m)
        for m in ("singlestep", "singlestep_fast")
    )
    np.testing.assert_allclose(one, fast, atol=1e-13)


@pytest.mark.parametrize(
    ("steps", "order", "expected"),
    [
        (9, 3, [3, 3, 2, 1]),
        (10, 3, [3, 3, 3, 1]),
        (11, 3, [3, 3, 3, 2]),
        (3, 3, [2, 1]),
        (7, 2, [2, 2, 2, 1]),
    ],
)
def test_singlestep_orders_use_every_evaluation(steps, order, expected):
    assert outer_orders(steps, order) == expected


@pytest.mark.parametrize(
    ("method", "nodes"), [("multistep", 9), ("singlestep", 9), ("singlestep_fixed", 5)]
)
def test_given_times_serve_as_a_spacing(method, nodes):
    by_name = sample(noise_fn, X, SCHEDULE, steps=8, method=method)
    given = sample(
        noise_fn,
        X,
        SCHEDULE,
        steps=8,
        method=method,
        spacing=np.linspace(1.0, 1e-3, nodes).tolist(),
    )
    np.testing.assert_allclose(by_name, given, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "times"),
    [
        ({"steps": 4, "t_end": 0.2}, [1.0, 0.8, 0.6, 0.4, 0.2]),
        # Outer steps of orders 3, 3 and 1 on the grid of seven steps.
        ({"steps": 7, "t_end": 0.3, "method": "singlestep", "order": 3}, [1.0, 0.7, 0.4, 0.3]),
        (
            {"steps": 6, "t_end": 0.1, "method": "singlestep_fixed", "denoise_to_zero": True},
            [1.0, 0.7, 0.4, 0.1, 0.0],
        ),
    ],
)
def test_the_trajectory_goes_from_the_noise_to_the_sample(options, times):
    end, (trajectory, at) = sample(noise_fn, X, SCHEDULE, return_trajectory=True, **options)
    states = len(times)
    np.testing.assert_allclose(at, times, atol=1e-6)
    assert trajectory.shape == (states, *X.shape)
    np.testing.assert_array_equal(trajectory[0], X)
    np.testing.assert_array_equal(trajectory[-1], end)
    np.testing.assert_allclose(end, sample(noise_fn, X, SCHEDULE, **options), rtol=1e-5, atol=1e-6)
    changes = np.abs(np.diff(trajectory, axis=0)).reshape(states - 1, -1).max(-1)
    assert (changes > 0).all()


@pytest.mark.parametrize("algorithm", ["dpmsolver", "dpmsolver++"])
def test_any_prediction_gives_the_same_sample(algorithm, x64):
    x = X.astype(jnp.float64)
    expected = sample(noise_fn, x, SCHEDULE, steps=6, algorithm=algorithm)
    for name in PREDICTIONS[1:]:
        out = lambda x, t: convert(noise_fn(x, t), x, t, SCHEDULE, source="noise", target=name)  # noqa: B023, E731
        found = sample(out, x, SCHEDULE, steps=6, algorithm=algorithm, prediction=name)
        np.testing.assert_allclose(found, expected, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("schedule", [VPCosine(), RectifiedFlow()], ids=["cosine", "flow"])
def test_schedules_without_signal_at_their_start_are_sampled_from_there(schedule):
    mean = jnp.asarray([0.5, -1.0, 0.2])
    perfect = lambda x, t: jnp.broadcast_to(mean, x.shape)  # noqa: E731  (all data at one point, so the ODE is solved)
    ends = np.asarray([1.0, 1e-3])
    alpha, sigma = schedule.alpha(ends), schedule.sigma(ends)
    expected = alpha[1] * mean + sigma[1] * (X - alpha[0] * mean) / sigma[0]
    for steps in (20, 1500):
        found = sample(perfect, X, schedule, steps=steps, prediction="x0")
        np.testing.assert_allclose(found, expected, atol=2e-5)


def test_it_runs_under_jit_and_vmap():
    groups = jnp.stack([X, 2 * X, -X])
    found = jax.jit(jax.vmap(lambda x: sample(noise_fn, x, SCHEDULE, steps=5)))(groups)
    for each, x in zip(found, groups, strict=True):
        np.testing.assert_allclose(
            each, sample(noise_fn, x, SCHEDULE, steps=5), rtol=1e-5, atol=1e-5
        )


def test_thresholding_bounds_what_a_wild_network_says():
    wild = lambda x, t: 50 * x  # noqa: E731
    found = sample(
        wild, X, SCHEDULE, steps=10, prediction="x0", thresholding=True, denoise_to_zero=True
    )
    assert float(jnp.abs(found).max()) == pytest.approx(1.0, abs=1e-6)


BAD = [
    ({"steps": 2, "order": 3}, "steps is 2, expected at least the order, 3"),
    ({"t_end": 0.0}, "t_end is 0.0, expected a time between 0 and t_start = 1.0"),
    ({"t_end": 0.5, "t_start": 0.4}, "t_end is 0.5, expected a time between 0 and t_start = 0.4"),
    ({"t_start": 1.5}, r"t_start is 1.5, expected a time in \(0, 1\]"),
    (
        {"algorithm": "ddim"},
        r"algorithm is 'ddim', expected one of dpmsolver\+\+, dpmsolver, sde-dpmsolver\+\+",
    ),
    (
        {"method": "multi"},
        "method is 'multi', expected one of multistep, singlestep, singlestep_fixed",
    ),
    (
        {"spacing": "karras"},
        "spacing is 'karras', expected one of time_uniform, logsnr, time_quadratic",
    ),
    ({"solver_type": "heun"}, "solver_type is 'heun', expected one of dpmsolver, taylor"),
    ({"prediction": "eps"}, "prediction is 'eps', expected one of noise, x0, v, flow"),
    ({"order": 4}, "order is 4, but method 'multistep' has the orders 1, 2, 3"),
    (
        {"order": 1, "method": "singlestep_fast"},
        "order is 1, but method 'singlestep_fast' has the orders 2, 3",
    ),
    (
        {"order": 3, "algorithm": "sde-dpmsolver++"},
        "method is 'multistep' and order 3, expected 'multistep' of order 1 or 2",
    ),
    (
        {"algorithm": "sde-dpmsolver++"},
        "this solver draws noise: give it a key, or the noises themselves",
    ),
    (
        {"algorithm": "dpmsolver", "thresholding": True},
        "thresholding bounds x_0, but algorithm 'dpmsolver' works on",
    ),
    ({"thresholding": True, "thresholding_ratio": 1.5}, r"thresholding needs a ratio in \(0, 1\]"),
    (
        {"spacing": [1.0, 0.5, 0.1]},
        r"spacing holds times of shape \(3,\), expected 6 times for 5 intervals",
    ),
    ({"steps": 2, "spacing": [0.1, 0.5, 1.0]}, "expected times that fall"),
    (
        {"method": "adaptive", "return_trajectory": True},
        "neither denoise_to_zero nor return_trajectory",
    ),
]


@pytest.mark.parametrize(("options", "words"), BAD, ids=[words[:30] for _, words in BAD])
def test_bad_input_is_named_before_the_network_is_traced(options, words):
    def untouched(x, t):
        if "draws noise" not in words:
            raise AssertionError("traced")
        return x

    with pytest.raises(UserError, match=words):
        sample(untouched, X, SCHEDULE, **({"steps": 5} | options))


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        (lambda x, t: x[:, :2], r"float32\[2, 2, 4, 3\]"),
        (lambda x, t: x.astype(jnp.bfloat16), "bfloat16"),
    ],
)
@pytest.mark.parametrize("method", ["multistep", "adaptive"])
def test_a_noise_fn_of_another_shape_or_dtype_is_named(wrong, found, method):
    with pytest.raises(UserError, match=f"noise_fn returned {found}.* for x of float32"):
        sample(wrong, X, SCHEDULE, steps=5, method=method)
