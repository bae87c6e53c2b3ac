"""Euler-Maruyama, DDIM, DDPM, SDE-DPM-Solver++ and Heun: their textbook steps, and the distribution
they draw from.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvit_jax.diffusion.ddim import Ddim, Ddpm
from uvit_jax.diffusion.dpm_solver import sample
from uvit_jax.diffusion.heun import Heun
from uvit_jax.diffusion.options import SolverOptions
from uvit_jax.diffusion.schedules import RectifiedFlow, VPDiscrete, VPLinear
from uvit_jax.diffusion.sde import euler_maruyama
from uvit_jax.errors import UserError

X = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
wavy = jax.jit(lambda x, t: jnp.sin(2 * x) * t[:, None, None, None])


def test_ddpm_takes_the_textbooks_steps(x64):
    betas = np.linspace(1e-3, 0.3, 10)
    schedule, x = VPDiscrete(tuple(betas.tolist())), X.astype(jnp.float64)
    noises = jax.random.normal(jax.random.key(1), (10, *x.shape), jnp.float64)
    for variance in ("small", "large"):
        options = SolverOptions(steps=10, t_end=0.1)
        found = Ddpm(variance).solve(wavy, x, schedule, options, noises=noises)
        cumulative = np.cumprod(1 - betas)
        expected = x
        for i, n in enumerate(range(9, -1, -1)):
            noise = wavy(expected, jnp.full((2,), (n + 1) / 10))
            mean = (expected - betas[n] / np.sqrt(1 - cumulative[n]) * noise) / np.sqrt(
                1 - betas[n]
            )
            before = cumulative[n - 1] if n else 1.0
            posterior = betas[n] * (1 - before) / (1 - cumulative[n])
            std = np.sqrt(posterior if variance == "small" else betas[n]) if n else 0.0
            expected = mean + std * noises[i]
        np.testing.assert_allclose(found, expected, atol=1e-11)


def test_ddim_with_eta_one_is_the_first_order_sde_solver(x64):
    x, schedule = X.astype(jnp.float64), VPLinear()
    noises = jax.random.normal(jax.random.key(1), (6, *x.shape), jnp.float64)
    found = Ddim().solve(wavy, x, schedule, SolverOptions(steps=6, eta=1.0), noises=noises)
    expected = sample(
        wavy, x, schedule, steps=6, algorithm="sde-dpmsolver++", order=1, noises=noises
    )
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_heun_averages_the_noise_at_both_ends_of_a_step(x64):
    x, schedule = X.astype(jnp.float64), VPLinear()
    times = np.asarray([1.0, 0.5005, 0.001])
    expected = x
    for k, (t, s) in enumerate(itertools.pairwise(times)):
        alpha, sigma = schedule.alpha(np.asarray([t, s])), schedule.sigma(np.asarray([t, s]))
        step = sigma[1] / alpha[1] - sigma[0] / alpha[0]
        here = wavy(expected, jnp.full((2,), t))
        euler = alpha[1] * (expected / alpha[0] + step * here)
        there = wavy(euler, jnp.full((2,), s))
        expected = euler if k else alpha[1] * (expected / alpha[0] + step * 0.5 * (here + there))
    found = Heun().solve(wavy, x, schedule, SolverOptions(steps=3))
    np.testing.assert_allclose(found, expected, atol=1e-11)


MEAN, STD = 0.7, 0.4
FIVE = SolverOptions(steps=5)
SOLVERS = {
    "euler_maruyama": lambda f, x, s, key: euler_maruyama(f, x, s, steps=300, key=key),
    "euler_ode": lambda f, x, s, key: euler_maruyama(f, x, s, steps=300, ode=True),
    "ddim": lambda f, x, s, key: Ddim().solve(f, x, s, SolverOptions(steps=300, eta=0.5), key=key),
    "ddpm": lambda f, x, s, key: Ddpm().solve(f, x, s, SolverOptions(steps=300), key=key),
    "sde 1": lambda f, x, s, key: sample(
        f, x, s, steps=300, algorithm="sde-dpmsolver++", order=1, key=key
    ),
    "sde 2": lambda f, x, s, key: sample(
        f, x, s, steps=60, spacing="logsnr", algorithm="sde-dpmsolver++", key=key
    ),
    "sde 2 taylor": lambda f, x, s, key: sample(
        f,
        x,
        s,
        steps=60,
        spacing="logsnr",
        algorithm="sde-dpmsolver++",
        solver_type="taylor",
        key=key,
    ),
    "heun": lambda f, x, s, key: Heun().solve(f, x, s, SolverOptions(steps=200, spacing="logsnr")),
}


@pytest.mark.parametrize(
    "schedule",
    [VPLinear(), pytest.param(RectifiedFlow(), marks=pytest.mark.slow)],
    ids=["vp", "flow"],
)
def test_every_solver_draws_from_the_datas_distribution(schedule):
    """For data N(MEAN, STD^2) the noise is known exactly, so samples must have its moments."""

    @jax.jit
    def exact(x, t):
        alpha, sigma = (value[:, None] for value in (schedule.alpha(t), schedule.sigma(t)))
        return sigma * (x - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)

    x_T = jax.random.normal(jax.random.key(5), (4, 20_000))
    together = jax.jit(
        lambda x, key: {name: solve(exact, x, schedule, key) for name, solve in SOLVERS.items()}
    )
    for name, found in together(x_T, jax.random.key(7)).items():
        assert float(found.mean()) == pytest.approx(MEAN, abs=0.01), name
        assert float(found.std()) == pytest.approx(STD, rel=0.03), name


def test_noise_from_one_key_per_example_is_that_examples_alone():
    schedule, keys = VPLinear(), jax.random.split(jax.random.key(2), 3)
    x = jnp.concatenate([X, X[:1]])
    draw = lambda x, keys: Ddpm().solve(wavy, x, schedule, FIVE, key=keys)  # noqa: E731
    together = draw(x, keys)
    np.testing.assert_allclose(together[1:], draw(x[1:], keys[1:]), rtol=1e-6)
    assert not np.allclose(together[0], together[2])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: Ddim().solve(wavy, X, VPLinear(), SolverOptions(steps=5, eta=1.5)),
            "eta is 1.5, expected a number from 0 to 1",
        ),
        (
            lambda: Ddim().solve(wavy, X, VPLinear(), SolverOptions(steps=0)),
            "steps is 0, expected at least 1",
        ),
        (
            lambda: Ddpm(variance="learned"),
            "variance is 'learned', expected one of small",
        ),
        (
            lambda: Ddpm().solve(wavy, X, VPLinear(), FIVE),
            "draws noise: give it a key, or the noises themselves",
        ),
        (
            lambda: euler_maruyama(wavy, X, VPLinear(), steps=1, ode=True),
            "steps is 1, expected at least 2",
        ),
        (
            lambda: euler_maruyama(wavy, X, VPLinear(), steps=5, noises=jnp.zeros((4, *X.shape))),
            r"noises have the shape \(4, 2, 4, 4, 3\), expected \(5, 2, 4, 4, 3\)",
        ),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(UserError, match=words):
        call()
