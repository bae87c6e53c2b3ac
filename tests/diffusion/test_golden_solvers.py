"""Every sample the reference implementations drew, in double and in single precision."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from uvit_jax.diffusion.adaptive import solve
from uvit_jax.diffusion.dpm_solver import sample
from uvit_jax.diffusion.options import SolverOptions
from uvit_jax.diffusion.schedules import VPLinear
from uvit_jax.diffusion.sde import euler_maruyama

GOLDEN = load_file(pathlib.Path(__file__).parents[1] / "golden" / "solvers.safetensors")

SPACING = {"logSNR": "logsnr"}
METHOD = {"singlestep": "singlestep_fixed", "fast": "singlestep_fast"}
ALGORITHM = {"x0": "dpmsolver++", "eps": "dpmsolver"}


def arguments(name: str) -> dict:
    """The arguments of `sample` for one golden sample's name."""
    first, *rest = name.split(".")
    if first == "v1":
        return {
            "algorithm": "dpmsolver",
            "method": "singlestep",
            "order": 3,
            "spacing": "logsnr",
            "steps": int(rest[1]),
        }
    if first == "pp":
        form, method, order, spacing, steps = rest
        algorithm, method, variant = ALGORITHM[form], METHOD[method], []
    else:
        method, order, spacing, steps, *variant = rest
        algorithm = first
    chosen = {
        "algorithm": algorithm,
        "method": method,
        "order": int(order.removeprefix("order")),
        "spacing": SPACING.get(spacing, spacing),
        "steps": int(steps),
    }
    if variant == ["denoise_to_zero"]:
        return chosen | {"denoise_to_zero": True}
    if variant == ["dynamic_thresholding"]:
        return chosen | {"thresholding": True, "thresholding_ratio": 0.995, "thresholding_max": 1.0}
    if variant:
        return chosen | {
            "lower_order_final": variant[0] == "lower_order_final",
            "solver_type": variant[1],
        }
    return chosen


FIXED = [
    n
    for n in GOLDEN
    if n.split(".")[0] in ("pp", "v1", "dpmsolver", "dpmsolver++") and "adaptive" not in n
]
FIXED.remove("pp.truth")
FAMILIES = sorted({".".join(name.split(".")[:2]) for name in FIXED})
ROUNDED = "dpmsolver++.singlestep"


def test_no_golden_sample_is_left_out():
    others = [n for n in GOLDEN if GOLDEN[n].shape == GOLDEN["x_T"].shape and n not in FIXED]
    assert sorted(others) == sorted(
        ["x_T", "pp.truth", "em.ode.50", "em.sde.50"]
        + [f"pp.{form}.adaptive.order{order}" for form in ALGORITHM for order in (2, 3)]
    )
    assert len(FIXED) == 333


def check_family(family: str, dtype, tolerance: float, schedule, analytic_noise) -> None:
    names = [name for name in FIXED if name.startswith(family + ".")]
    if family.startswith("v1"):
        schedule, ends = VPLinear(), {"t_end": 1e-4}
    else:
        ends = {}
    noise_fn = analytic_noise(schedule)
    together = jax.jit(
        lambda x: [sample(noise_fn, x, schedule, **ends, **arguments(name)) for name in names]
    )
    x_T = jnp.asarray(GOLDEN["x_T"], dtype)
    program = together.lower(x_T).compile(
        {"xla_backend_optimization_level": 0}
    )  # compiling is all the time it takes
    for name, found in zip(names, program(x_T), strict=True):
        assert found.dtype == dtype
        np.testing.assert_allclose(found, GOLDEN[name], rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_fixed_step_sample_to_1e_9_in_double_precision(
    family, x64, stable_diffusion, analytic_noise
):
    check_family(family, jnp.float64, 1e-9, stable_diffusion, analytic_noise)


# The rows are the same numbers as in double precision: one family shows the rounding of the loop.
@pytest.mark.parametrize(
    "family",
    [
        ROUNDED,
        *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES if name != ROUNDED),
    ],
)
def test_every_fixed_step_sample_to_3e_4_in_single_precision(
    family, stable_diffusion, analytic_noise
):
    check_family(family, jnp.float32, 3e-4, stable_diffusion, analytic_noise)


def check_adaptive(dtype, tolerance: float, schedule, analytic_noise) -> None:
    cases = [(form, order) for form in ALGORITHM for order in (2, 3)]
    noise_fn = analytic_noise(schedule)
    together = jax.jit(
        lambda x: [
            solve(noise_fn, x, schedule, SolverOptions(order=order), solver=ALGORITHM[form])
            for form, order in cases
        ]
    )
    for (form, order), found in zip(
        cases, together(jnp.asarray(GOLDEN["x_T"], dtype)), strict=True
    ):
        assert found.converged
        expected = GOLDEN[f"pp.{form}.adaptive.order{order}"]
        np.testing.assert_allclose(
            found.x, expected, rtol=0, atol=tolerance, err_msg=f"{form} {order}"
        )


def test_adaptive_samples_to_1e_9_in_double_precision(x64, stable_diffusion, analytic_noise):
    check_adaptive(jnp.float64, 1e-9, stable_diffusion, analytic_noise)


def test_adaptive_samples_to_5e_3_in_single_precision(stable_diffusion, analytic_noise):
    check_adaptive(jnp.float32, 5e-3, stable_diffusion, analytic_noise)


def check_euler(dtype, tolerance: float, analytic_noise) -> None:
    schedule, x_T = VPLinear(), jnp.asarray(GOLDEN["x_T"], dtype)
    noise_fn, noises = analytic_noise(schedule), jnp.asarray(GOLDEN["em.sde.50.noises"], dtype)
    sde = euler_maruyama(noise_fn, x_T, schedule, steps=50, noises=noises)
    ode = euler_maruyama(noise_fn, x_T, schedule, steps=50, ode=True)
    np.testing.assert_allclose(sde, GOLDEN["em.sde.50"], rtol=0, atol=tolerance)
    np.testing.assert_allclose(ode, GOLDEN["em.ode.50"], rtol=0, atol=tolerance)


def test_euler_maruyama_to_1e_9_in_double_precision(x64, analytic_noise):
    check_euler(jnp.float64, 1e-9, analytic_noise)


def test_euler_maruyama_to_3e_4_in_single_precision(analytic_noise):
    check_euler(jnp.float32, 3e-4, analytic_noise)


def test_fine_steps_reach_the_reference_solution(x64, stable_diffusion, analytic_noise):
    x_T = jnp.asarray(GOLDEN["x_T"])
    found = sample(
        analytic_noise(stable_diffusion), x_T, stable_diffusion, steps=1000, spacing="logsnr"
    )
    np.testing.assert_allclose(found, GOLDEN["pp.truth"], rtol=0, atol=1e-4)
