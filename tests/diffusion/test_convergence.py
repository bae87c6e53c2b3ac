"""The order of convergence each solver really has, on the analytic model in double precision with
uniform logSNR.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from uvit_jax.diffusion.dpm_solver import sample
from uvit_jax.diffusion.heun import Heun
from uvit_jax.diffusion.options import SolverOptions


@pytest.fixture(scope="module")
def errors_at(golden, stable_diffusion, analytic_noise):
    noise_fn = analytic_noise(stable_diffusion)

    def draw(steps, method, **options):
        x_T = jnp.asarray(golden["x_T"])
        if method == "heun":
            return Heun().solve(
                noise_fn, x_T, stable_diffusion, SolverOptions(steps=steps, spacing="logsnr")
            )
        return sample(
            noise_fn, x_T, stable_diffusion, steps=steps, method=method, spacing="logsnr", **options
        )

    def errors(outer_steps, evaluations_per_step, truth=[], **options):  # noqa: B006
        if not truth:
            truth.append(draw(4500, "singlestep_fixed", order=3))
        found = [draw(n * evaluations_per_step, **options) for n in outer_steps]
        return [float(jnp.sqrt(jnp.mean(jnp.square(x - truth[0])))) for x in found]

    return errors


@pytest.mark.parametrize("algorithm", ["dpmsolver++", "dpmsolver"])
@pytest.mark.parametrize(
    ("method", "order", "solver_type"),
    [
        ("multistep", 1, "dpmsolver"),
        ("multistep", 2, "dpmsolver"),
        ("multistep", 2, "taylor"),
        ("singlestep_fixed", 1, "dpmsolver"),
        ("singlestep_fixed", 2, "dpmsolver"),
        ("singlestep_fixed", 2, "taylor"),
        ("singlestep_fixed", 3, "dpmsolver"),
        ("singlestep_fixed", 3, "taylor"),
    ],
)
def test_halving_the_step_divides_the_error_by_two_to_the_order(
    x64, errors_at, algorithm, method, order, solver_type
):
    options = {"method": method, "order": order, "algorithm": algorithm, "solver_type": solver_type}
    coarse, fine = errors_at([200, 400], 1 if method == "multistep" else order, **options)
    assert coarse / fine == pytest.approx(2**order, rel=0.15)


def test_multistep_of_order_three_starts_with_a_first_order_step_and_tends_to_four(x64, errors_at):
    second = errors_at([400], 1, method="multistep", order=2)[0]
    errors = errors_at([200, 400, 800], 1, method="multistep", order=3)
    np.testing.assert_allclose(np.divide(errors[:-1], errors[1:]), 4.0, rtol=0.05)
    assert errors[1] < 0.5 * second


def test_heun_is_of_second_order(x64, errors_at):
    coarse, fine = errors_at([200, 400], 2, method="heun")
    assert coarse / fine == pytest.approx(4.0, rel=0.15)
