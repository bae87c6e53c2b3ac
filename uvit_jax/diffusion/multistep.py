"""Multistep DPM-Solvers of order 1, 2 and 3.

They make one evaluation a step, and take derivatives from the evaluations before.
"""

import numpy as np

from uvit_jax.diffusion.exponential import weights
from uvit_jax.diffusion.options import SolverOptions
from uvit_jax.diffusion.schedules import Schedule
from uvit_jax.diffusion.tableau import Row


def multistep_rows(
    solver: str, schedule: Schedule, times: np.ndarray, options: SolverOptions
) -> list[Row]:
    """The rows for `times` [steps + 1], with the solver of that name.

    Orders are 1, 2, ... at the start and, with `lower_order_final` and fewer than 10 steps, fall
    again at the end (the reference code's rule).
    """
    steps = len(times) - 1
    lambdas = np.asarray(schedule.lambda_(times))
    step = weights(solver, schedule, times[:-1], times[1:])
    rows = []
    for i in range(steps):
        here = min(options.order, i + 1)
        if options.lower_order_final and steps < 10:
            here = min(here, steps - i)
        base, w1, w2, w3, noise = (float(column[i]) for column in step)
        history = _history(here, lambdas[max(0, i - 2) : i + 2], (w1, w2, w3), options.solver_type)
        rows.append(Row(float(times[i]), base, history, noise))
    return rows


def _history(
    order: int, lambdas: np.ndarray, w: tuple[float, float, float], solver_type: str
) -> tuple[float, ...]:
    """The weights of m_i, m_{i-1}, m_{i-2}; `lambdas` ends with those of steps i-1, i and i+1."""
    w1, w2, w3 = w
    if order == 1:
        return (w1,)
    h = lambdas[-1] - lambdas[-2]
    r0 = (lambdas[-2] - lambdas[-3]) / h
    first = np.asarray([1.0, -1.0, 0.0]) / r0  # (m_i - m_{i-1}) / r0, the slope over the last step
    if order == 2:
        # "dpmsolver" puts phi_1 / 2 for phi_2, equal to the order that counts (algorithm 2 of
        # arXiv:2211.01095).
        slope = 0.5 * w1 if solver_type == "dpmsolver" else w2
        total = np.asarray([w1, 0.0, 0.0]) + slope * first
        return tuple(total[:2].tolist())
    r1 = (lambdas[-3] - lambdas[-4]) / h
    second = np.asarray([0.0, 1.0, -1.0]) / r1
    curvature = (first - second) / (r0 + r1)  # half the second derivative, as in the reference code
    slope_here = first + r0 * curvature
    total = np.asarray([w1, 0.0, 0.0]) + w2 * slope_here + w3 * curvature
    return tuple(total.tolist())
