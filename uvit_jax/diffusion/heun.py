"""Heun's second-order method on the probability-flow ODE in the variables of EDM (arXiv:2206.00364, algorithm 1)."""

import numpy as np

from uvit_jax.diffusion.exponential import weights
from uvit_jax.diffusion.schedules import Schedule
from uvit_jax.diffusion.spacing import Spacing, time_grid
from uvit_jax.diffusion.tableau import NoiseFn, Row, Samples, Trajectory, check_steps, denoising_row, run


def heun(
    noise_fn: NoiseFn,
    x_T: Samples,
    schedule: Schedule,
    *,
    steps: int = 50,
    spacing: Spacing = "time_uniform",
    t_start: float = 1.0,
    t_end: float = 1e-3,
    denoise_to_zero: bool = False,
    prediction: str = "noise",
    return_trajectory: bool = False,
) -> Samples | tuple[Samples, Trajectory]:
    """Samples at t_end from x_T [b, ...] at t_start by `steps` evaluations of noise_fn(x, t): two a step, the last step
    of an odd number one.

    d(x / alpha) / d(sigma / alpha) = noise, so a step's Euler part is DDIM, and its correction averages the noise at
    both ends. Given times are ceil(steps / 2) + 1. Raises UserError for bad input, before anything is traced.
    """
    check_steps(steps)
    times = time_grid(schedule, spacing, (steps + 1) // 2, t_start, t_end)
    step = weights("dpmsolver", schedule, times[:-1], times[1:])
    rows: list[Row] = []
    for i, (base, weight) in enumerate(zip(np.asarray(step.base).tolist(), np.asarray(step.w1).tolist(), strict=True)):
        here, there = float(times[i]), float(times[i + 1])
        if len(rows) + 1 == steps:
            rows.append(Row(here, base, (weight,)))
        else:
            rows.append(Row(here, base, (weight,), commit=False))
            rows.append(Row(there, base, (0.5 * weight, 0.5 * weight)))
    if denoise_to_zero:
        rows.append(denoising_row(schedule, float(times[-1]), "noise"))
    return run(
        noise_fn,
        x_T,
        schedule,
        rows,
        ends_at=0.0 if denoise_to_zero else float(times[-1]),
        form="noise",
        prediction=prediction,
        return_trajectory=return_trajectory,
    )
