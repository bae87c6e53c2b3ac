import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvit_jax.diffusion.adaptive import solve
from uvit_jax.diffusion.dpm_solver import sample
from uvit_jax.diffusion.options import SolverOptions, Tolerances
from uvit_jax.diffusion.schedules import VPLinear
from uvit_jax.errors import UserError

SCHEDULE = VPLinear()
X = (
    jax.random.normal(jax.random.key(0), (3, 4, 4, 2))
    * jnp.asarray([0.2, 1.0, 3.0])[:, None, None, None]
)


@jax.jit
def noise_fn(x, t):
    alpha, sigma = (value[:, None, None, None] for value in (SCHEDULE.alpha(t), SCHEDULE.sigma(t)))
    return sigma * x / (0.25 * alpha**2 + sigma**2) + 0.05 * jnp.sin(3 * x)


def test_tighter_tolerances_cost_evaluations_and_gain_accuracy():
    truth = sample(
        noise_fn, X, SCHEDULE, steps=600, method="singlestep_fixed", order=3, spacing="logsnr"
    )
    loose, tight = (
        solve(noise_fn, X, SCHEDULE, SolverOptions(order=3, tolerances=Tolerances(atol=a, rtol=a)))
        for a in (0.05, 0.0005)
    )
    assert int(loose.evaluations) < int(tight.evaluations)
    error = lambda solution: float(jnp.abs(solution.x - truth).max())  # noqa: E731
    assert error(tight) < 2e-3 < error(loose)


def test_with_steps_of_its_own_an_example_does_not_depend_on_its_batch():
    own = SolverOptions(order=3, tolerances=Tolerances(per_example=True))
    together = solve(noise_fn, X, SCHEDULE, own)
    assert bool(together.converged)
    alone = solve(noise_fn, X[1:2], SCHEDULE, own)
    np.testing.assert_allclose(together.x[1:2], alone.x, rtol=1e-5, atol=1e-6)
    shared = solve(noise_fn, X, SCHEDULE, SolverOptions(order=3))
    assert float(jnp.abs(shared.x[1:2] - alone.x).max()) > 1e-5


def test_what_does_not_converge_is_bounded_and_says_so():
    few = Tolerances(atol=1e-9, rtol=1e-9, max_evaluations=30)
    words = (
        "did not reach t_end within 30 network evaluations at atol 1e-09, rtol 1e-09: loosen "
        "the tolerances"
    )
    with pytest.raises(UserError, match=words):
        sample(noise_fn, X, SCHEDULE, method="adaptive", order=3, tolerances=few)
    broken = lambda x, t: x * jnp.nan  # noqa: E731
    with pytest.raises(UserError, match="check the network's output for NaN"):
        sample(broken, X, SCHEDULE, method="adaptive", order=2)


def test_inside_a_jit_samples_that_did_not_converge_are_nan():
    few = Tolerances(atol=1e-9, rtol=1e-9, max_evaluations=30)
    program = jax.jit(
        lambda x: sample(noise_fn, x, SCHEDULE, method="adaptive", order=2, tolerances=few)
    )
    assert np.isnan(program(X)).all()
