"""Heun's second-order method on the probability-flow ODE (arXiv:2206.00364, algorithm 1)."""

import numpy as np

from uvit_jax.diffusion.exponential import weights
from uvit_jax.diffusion.options import SolverOptions
from uvit_jax.diffusion.schedules import Schedule
from uvit_jax.diffusion.solver import Solver
from uvit_jax.diffusion.spacing import time_grid
from uvit_jax.diffusion.start import first_time, vanishes
from uvit_jax.diffusion.tableau import Form, Row, Tableau


class Heun(Solver):
    """Heun's method: samples at t_end by `steps` evaluations, two a step of the method.

    In EDM's variables d(x / alpha) / d(sigma / alpha) = noise: a step's Euler part is DDIM, and its
    correction averages the noise at both ends. Where sigma / alpha has no bound (cosine, flow) the
    steps are those of `Schedule.path` instead, dx / d tau = v or flow. The last step of an odd
    number is an Euler step. Given times are ceil(steps / 2) + 1.
    """

    def tableau(self, schedule: Schedule, options: SolverOptions, prediction: str) -> Tableau:
        """Rows of the noise, v or flow, two a step: the Euler part and the correction."""
        form: Form = schedule.path_form if vanishes(schedule) else "noise"
        start = first_time(schedule, options.t_start, prediction, form)
        intervals = (options.steps + 1) // 2
        times = time_grid(schedule, options.spacing, intervals, start, options.t_end)
        base, weight, correction = _steps(schedule, times, prediction)
        rows: list[Row] = []
        columns = (base.tolist(), weight.tolist(), correction.tolist())
        for i, (a, w, c) in enumerate(zip(*columns, strict=True)):
            here, there = float(times[i]), float(times[i + 1])
            if len(rows) + 1 == options.steps:
                rows.append(Row(here, a, (w,)))
            else:
                rows.append(Row(here, a, (w,), commit=False))
                rows.append(Row(there, a, (c, w - c)))
        return Tableau(form, tuple(rows), start, float(times[-1]))


def _steps(
    schedule: Schedule, times: np.ndarray, prediction: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The weights (base, weight, correction) of every step.

    x_next = base x + weight m, and corrected base x + (weight - correction) m + correction m_next,
    with m the network's output in that form.

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
