"""Where sampling begins: schedules whose alpha vanishes at t = 1, and what a prediction is worth
there.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from uvit_jax.diffusion.heun import Heun
from uvit_jax.diffusion.options import SolverOptions
from uvit_jax.diffusion.sampler import Sampler
from uvit_jax.diffusion.sampler_config import SamplerConfig
from uvit_jax.diffusion.schedules import RectifiedFlow, VPCosine, VPDiscrete, VPLinear
from uvit_jax.diffusion.sde import euler_maruyama
from uvit_jax.diffusion.start import first_time
from uvit_jax.errors import UserError

MEAN, STD = 0.7, 0.4
VANISHING = pytest.mark.parametrize(
    "schedule", [VPCosine(), RectifiedFlow()], ids=["cosine", "flow"]
)


def exact(schedule, prediction):
    """A perfect network's output for data N(MEAN, STD^2)."""

    def predict(x, t):
        alpha, sigma = (value[:, None] for value in (schedule.alpha(t), schedule.sigma(t)))
        variance = alpha**2 * STD**2 + sigma**2
        noise = sigma * (x - alpha * MEAN) / variance
        x0 = MEAN + alpha * STD**2 / variance * (x - alpha * MEAN)
        return {"noise": noise, "x0": x0, "v": alpha * noise - sigma * x0, "flow": noise - x0}[
            prediction
        ]

    return predict


@VANISHING
def test_rates_are_the_derivatives_of_the_slow_stretch_too(schedule, x64):
    t = 1 - jnp.asarray([2e-6, 3e-5, 4e-4, 0.002, 0.01])
    log_alpha = jax.vmap(jax.grad(schedule.log_alpha))(t)
    half_lambda = jax.vmap(jax.grad(schedule.lambda_))(t)
    np.testing.assert_allclose(schedule.drift(t), log_alpha, rtol=1e-7)
    squared = -2 * schedule.sigma(t) ** 2 * half_lambda
    np.testing.assert_allclose(schedule.squared_diffusion(t), squared, rtol=1e-7)


# At these evaluations the first three were off by up to 90, 2,300 and 90 % (from t = 1, over sigma
# / alpha).
SOLVERS = {
    "heun": SamplerConfig(solver="heun", steps=26),
    "dpmsolver 3": SamplerConfig(solver="dpmsolver", method="singlestep", order=3, steps=50),
    "dpmsolver++ adaptive 2": SamplerConfig(method="adaptive", order=2),
    "dpmsolver adaptive 3": SamplerConfig(
        solver="dpmsolver", method="adaptive", order=3, solver_type="taylor"
    ),
    "dpmsolver++": SamplerConfig(steps=100),
    "euler_ode": SamplerConfig(solver="euler_ode", steps=100),
    "euler_maruyama": SamplerConfig(solver="euler_maruyama", steps=100),
}


@VANISHING
@pytest.mark.parametrize("prediction", ["noise", "flow"])
def test_solvers_draw_the_data_of_schedules_that_vanish(schedule, prediction):
    quantiles = norm.ppf((np.arange(4096) + 0.5) / 4096).astype(np.float32)
    x_T = jnp.asarray(np.random.default_rng(0).permutation(quantiles).reshape(16, 256))
    options = {"prediction": prediction, "key": jax.random.key(0), "return_trajectory": False}
    predict = jax.jit(exact(schedule, prediction))
    draw = jax.jit(
        lambda x: {name: c.solve(predict, x, schedule, **options) for name, c in SOLVERS.items()}
    )
    for name, found in draw(x_T).items():
        tolerance = 0.04 if name.startswith("euler") else 0.02
        assert float(found.mean()) == pytest.approx(MEAN, rel=tolerance), name
        assert float(found.std()) == pytest.approx(STD, rel=tolerance), name


def test_the_adaptive_method_sees_where_the_image_is_made():
    """Without a bound on its steps dpmsolver++ of order 2 lost 45 % of the deviation."""
    schedule, config = VPLinear(), SamplerConfig(method="adaptive", order=2)
    x_T = jnp.asarray(norm.ppf((np.arange(1024) + 0.5) / 1024), jnp.float32).reshape(4, 256)
    found = config.solve(
        exact(schedule, "noise"),
        x_T,
        schedule,
        prediction="noise",
        key=None,
        return_trajectory=False,
    )
    assert float(found.std()) == pytest.approx(STD, rel=0.02)


@VANISHING
def test_euler_maruyama_stays_within_the_noise_that_the_network_knows(schedule):
    """Its first state had a deviation of 80 at 250 steps."""
    x_T = jax.random.normal(jax.random.key(0), (8, 500))
    for steps in (50, 250):
        _, (states, times) = euler_maruyama(
            exact(schedule, "v"),
            x_T,
            schedule,
            steps=steps,
            prediction="v",
            key=jax.random.key(1),
            return_trajectory=True,
        )
        assert float(jnp.max(jnp.std(states, axis=(1, 2)))) < 1.5
        assert float(times[0]) > 0.9


def test_flow_is_integrated_along_its_straight_lines(x64):
    """With all data at one point the lines are straight, and one step of Heun is exact."""
    schedule = RectifiedFlow()
    x_T = jax.random.normal(jax.random.key(0), (2, 5), jnp.float64)
    found = Heun().solve(
        lambda x, t: (x - MEAN) / schedule.sigma(t)[:, None],
        x_T,
        schedule,
        SolverOptions(steps=2),
        prediction="flow",
    )
    sigma = schedule.sigma(np.asarray([1.0, 1e-3]))
    np.testing.assert_allclose(found, MEAN + (x_T - MEAN) * sigma[1] / sigma[0], atol=1e-12)


@pytest.mark.parametrize(
    "schedule", [VPLinear(), VPCosine(), RectifiedFlow()], ids=["linear", "cosine", "flow"]
)
def test_heuns_last_step_does_not_multiply_the_error_of_a_predicted_x0(schedule):
    """An error of 0.1 that changes with x became one of 2 at 26 evaluations on the flow."""
    x_T = jax.random.normal(jax.random.key(0), (2, 500))
    wrong = lambda x, t: MEAN + 0.1 * jnp.sin(300 * x)  # noqa: E731
    found = Heun().solve(wrong, x_T, schedule, SolverOptions(steps=26), prediction="x0")
    assert float(jnp.abs(found - MEAN).max()) < 0.25


def test_only_what_needs_it_begins_before_t_start():
    linear, discrete, cosine = VPLinear(), VPDiscrete.stable_diffusion(), VPCosine()
    assert {first_time(s, 1.0, "noise", "noise") for s in (linear, discrete)} == {1.0}
    assert first_time(cosine, 1.0, "v", "x0") == 1.0
    assert (
        0.98
        < first_time(cosine, 1.0, "noise", "x0")
        < first_time(cosine, 1.0, "v", "noise")
        < 0.997
    )
    assert first_time(cosine, 0.9, "noise", "noise") == 0.9


@VANISHING
def test_the_sampler_refuses_noise_predicted_where_there_is_nothing_else(schedule):
    network = lambda params, x, t, c: x  # noqa: E731
    with pytest.raises(
        UserError,
        match=r"expected a network that predicts v, x0 or flow, or a t_start of at most 0.9",
    ):
        Sampler(network, schedule, (4, 4, 1), config=SamplerConfig())
    Sampler(network, schedule, (4, 4, 1), config=SamplerConfig(t_start=0.98))
    Sampler(network, schedule, (4, 4, 1), config=SamplerConfig(), prediction="v")
