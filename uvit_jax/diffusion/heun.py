"""Heun's second-order method on the probability-flow ODE (arXiv:2206.00364, algorithm 1)."""

import numpy as np

from uvit_jax.diffusion.exponential import weights
from uvit_jax.diffusion.schedules import Schedule
from uvit_jax.diffusion.spacing import Spacing, begin, time_grid, vanishes
from uvit_jax.diffusion.tableau import Form, NoiseFn, Row, Samples, Trajectory, check_steps, denoising_row, run


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

    In EDM's variables d(x / alpha) / d(sigma / alpha) = noise: a step's Euler part is DDIM, and its
    correction averages the noise at both ends. Where sigma / alpha has no bound (cosine, flow) the
    steps are those of `Schedule.path` instead, dx / d tau = v or flow. Given times are ceil(steps / 2)
    + 1. Raises UserError for bad input, before anything is traced.
    """
    check_steps(steps)
    form: Form = schedule.path_form if vanishes(schedule) else "noise"
    x_T, t_start = begin(schedule, x_T, t_start, prediction, form)
    times = time_grid(schedule, spacing, (steps + 1) // 2, t_start, t_end)
    base, weight = _euler_steps(schedule, times)
    rows: list[Row] = []
    for i, (a, w) in enumerate(zip(base.tolist(), weight.tolist(), strict=True)):
        here, there = float(times[i]), float(times[i + 1])
        if len(rows) + 1 == steps:
            rows.append(Row(here, a, (w,)))
        else:
            rows.append(Row(here, a, (w,), commit=False))
            rows.append(Row(there, a, (0.5 * w, 0.5 * w)))
    if denoise_to_zero:
        rows.append(denoising_row(schedule, float(times[-1]), form))
    return run(
        noise_fn,
        x_T,
        schedule,
        rows,
        ends_at=0.0 if denoise_to_zero else float(times[-1]),
        form=form,
        prediction=prediction,
        return_trajectory=return_trajectory,
    )


def _euler_steps(schedule: Schedule, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(base, weight) of the Euler parts: x_next = base x + weight (the network's output in that form)."""
    if vanishes(schedule):
        return np.ones(len(times) - 1), np.diff(schedule.path(times))
    step = weights("dpmsolver", schedule, times[:-1], times[1:])
    return np.asarray(step.base), np.asarray(step.w1)
