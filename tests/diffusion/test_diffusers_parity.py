"""The multistep solvers step by step against diffusers' DPMSolverMultistepScheduler."""

import jax.numpy as jnp
import numpy as np
import pytest

from uvit_jax.diffusion.dpm_solver import sample

STEPS = 20
SOLVER_TYPE = {"dpmsolver": "midpoint", "taylor": "heun"}  # ours, and what diffusers calls it


@pytest.fixture
def scheduler():
    """scheduler(...) -> diffusers' scheduler on its 20 even integer times, down to its first."""
    pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")

    def make(**options):
        made = diffusers.DPMSolverMultistepScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            timestep_spacing="linspace",
            final_sigmas_type="sigma_min",
            lower_order_final=False,
            euler_at_final=False,
            **options,
        )
        made.set_timesteps(STEPS)
        return made

    return make


def network(x):
    """The network of either side, the same at all times."""
    return 0.4 * x + 0.2 * np.sin(3 * x)


def both(scheduler, schedule, *, algorithm, order, solver_type, prediction="noise"):
    import torch

    kind = {"noise": "epsilon", "x0": "sample", "v": "v_prediction"}[prediction]
    theirs = scheduler(
        algorithm_type=algorithm,
        solver_order=order,
        solver_type=SOLVER_TYPE[solver_type],
        prediction_type=kind,
    )
    rng = np.random.default_rng(0)
    x_T = rng.standard_normal((2, 4, 4, 3)).astype(np.float32)
    noises = rng.standard_normal((STEPS, *x_T.shape)).astype(np.float32)
    x = torch.from_numpy(x_T)
    for time, noise in zip(theirs.timesteps, noises, strict=True):
        out = torch.from_numpy(network(x.numpy()))
        stochastic = (
            {"variance_noise": torch.from_numpy(noise)} if algorithm.startswith("sde") else {}
        )
        x = theirs.step(out, time, x, **stochastic).prev_sample
    times = (
        np.append(theirs.timesteps.numpy(), 0) + 1
    ) / 1000  # diffusers counts from 0, the paper from 1
    ours = sample(
        lambda x, t: 0.4 * x + 0.2 * jnp.sin(3 * x),
        jnp.asarray(x_T),
        schedule,
        steps=STEPS,
        algorithm=algorithm,
        order=order,
        solver_type=solver_type,
        spacing=times,
        lower_order_final=False,
        prediction=prediction,
        noises=jnp.asarray(noises),
    )
    return np.asarray(ours), x.numpy()


@pytest.mark.torch
@pytest.mark.parametrize("solver_type", ["dpmsolver", "taylor"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("algorithm", ["dpmsolver++", "dpmsolver"])
def test_multistep_samples_are_diffusers(
    scheduler, stable_diffusion, algorithm, order, solver_type
):
    ours, theirs = both(
        scheduler, stable_diffusion, algorithm=algorithm, order=order, solver_type=solver_type
    )
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.torch
@pytest.mark.parametrize("prediction", ["x0", "v"])
def test_other_predictions_are_diffusers(scheduler, stable_diffusion, prediction):
    options = {
        "algorithm": "dpmsolver++",
        "order": 2,
        "solver_type": "dpmsolver",
        "prediction": prediction,
    }
    ours, theirs = both(scheduler, stable_diffusion, **options)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.torch
@pytest.mark.parametrize("solver_type", ["dpmsolver", "taylor"])
@pytest.mark.parametrize("order", [1, 2])
def test_sde_samples_are_diffusers(scheduler, stable_diffusion, order, solver_type):
    options = {"algorithm": "sde-dpmsolver++", "order": order, "solver_type": solver_type}
    ours, theirs = both(scheduler, stable_diffusion, **options)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
