"""Heun's second-order method on the probability-flow ODE (arXiv:2206.00364, algorithm 1)."""

import numpy as np

from uvit_jax.diffusion.exponential import weights
from uvit_jax.diffusion.schedules import Schedule
from uvit_jax.diffusion.spacing import Spacing, begin, time_grid, vanishes
from uvit_jax.diffusion.tableau import (
    Form,
    NoiseFn,
    Row,
    Samples,
    Trajectory,
    check_steps,
    denoising_row,
    run,
)


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
    """Samples at t_end from x_T [b, ...] at t_start by `steps` evaluations of noise_fn(x, t): two a
    step, the last step of an odd number one.

    In EDM's variables d(x / alpha) / d(sigma / alpha) = noise: a step's Euler part is DDIM, and its
    correction averages the noise at both ends. Where sigma / alpha has no bound (cosine, flow) the
    steps are those of `Schedule.path` instead, dx / d tau = v or flow. Given times are ceil(steps /
    2) + 1. Raises UserError for bad input, before anything is traced.
    """
    check_steps(steps)
    form: Form = schedule.path_form if vanishes(schedule) else "noise"
    x_T, t_start = begin(schedule, x_T, t_start, prediction, form)
    times = time_grid(schedule, spacing, (steps + 1) // 2, t_start, t_end)
    base, weight, correction = _steps(schedule, times, prediction)
    rows: list[Row] = []
    columns = (base.tolist(), weight.tolist(), correction.tolist())
    for i, (a, w, c) in enumerate(zip(*columns, strict=True)):
        here, there = float(times[i]), float(times[i + 1])
        if len(rows) + 1 == steps:
            rows.append(Row(here, a, (w,)))
        else:
            rows.append(Row(here, a, (w,), commit=False))
            rows.append(Row(there, a, (c, w - c)))
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


def _steps(
    schedule: Schedule, times: np.ndarray, prediction: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(base, weight, correction): x_next = base x + weight m, and corrected base x + (weight -
    correction) m + correction m_next, with m the network's output in that form.

    Half of the weight is the trapezoidal rule. Where noise, v or flow is made of a predicted x_0 it
    holds the error of that over sigma, so that the last step would multiply it by half the step
    over the last sigma: there the correction is less by sigma_next / sigma, of second order too.
    """
    share = np.full(len(times) - 1, 0.5)
    if prediction == "x0":
        share[-1] *= schedule.sigma(times[-1]) / schedule.sigma(times[-2])
    if vanishes(schedule):
        weight = np.diff(schedule.path(times))
        return np.ones_like(weight), weight, share * weight
    step = weights("dpmsolver", schedule, times[:-1], times[1:])
    return np.asarray(step.base), np.asarray(step.w1), share * np.asarray(step.w1)
