"""Fixtures of the solvers' tests: double precision, golden samples, their analytic noise model."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from uvit_jax.diffusion.schedules import VPDiscrete

GOLDEN = load_file(pathlib.Path(__file__).parents[1] / "golden" / "solvers.safetensors")


@pytest.fixture
def x64():
    """Double precision for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def golden():
    return GOLDEN


@pytest.fixture(scope="session")
def stable_diffusion():
    return VPDiscrete.stable_diffusion()


@pytest.fixture(scope="session")
def analytic_noise():
    """analytic_noise(schedule) -> noise_fn of one Gaussian, bent a little; images are NCHW."""

    def make(schedule):
        def noise_fn(x, t):
            alpha, sigma = (
                value[:, None, None, None] for value in (schedule.alpha(t), schedule.sigma(t))
            )
            mu, s = (jnp.asarray(GOLDEN[name], x.dtype) for name in ("mu", "s"))
            return sigma * (x - alpha * mu) / (alpha**2 * s**2 + sigma**2) + 0.05 * alpha * jnp.sin(
                3 * x
            )

        return jax.jit(noise_fn)  # traced once, however many solvers call it

    return make


@pytest.fixture(scope="session")
def compilations():
    """compilations() -> how many programs XLA has compiled so far."""
    seen = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration, **_: (
            seen.append(duration) if event.endswith("backend_compile_duration") else None
        )
    )
    np.testing.assert_equal(len(seen), 0)
    return lambda: len(seen)
