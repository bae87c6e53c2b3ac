"""Singlestep DPM-Solvers: an outer step makes 1, 2 or 3 evaluations, which no later one reads."""

from typing import NamedTuple

import numpy as np

from uvit_jax.diffusion.exponential import weights
from uvit_jax.diffusion.options import SolverOptions
from uvit_jax.diffusion.schedules import Schedule
from uvit_jax.diffusion.spacing import time_grid
from uvit_jax.diffusion.tableau import Row

Nodes = tuple[float, ...]
# Places of the inner evaluations in lambda, by order, as shares of the outer step.
THIRDS: dict[int, Nodes] = {1: (), 2: (1 / 2,), 3: (1 / 3, 2 / 3)}


def outer_orders(steps: int, order: int) -> list[int]:
    """Orders of outer steps that make exactly `steps` evaluations (DPM-Solver-fast, 2206.00927)."""
    if order == 3 and steps % 3 == 0:
        return [3] * (steps // 3 - 1) + [2, 1]
    rest = [steps % order] if steps % order else []
    return [order] * (steps // order) + rest


def singlestep_rows(
    solver: str, schedule: Schedule, start: float, options: SolverOptions
) -> tuple[list[Row], float]:
    """The rows of `singlestep`, `singlestep_fixed` or `singlestep_fast`, and the last time.

    Each outer step ends in a committed row; the first begins at `start`.
    """
    orders, outer, nodes = _outer_grid(schedule, start, options)
    rows_of: dict[int, list[Row]] = {}
    for each in set(orders):
        chosen = np.flatnonzero(np.asarray(orders) == each)
        positions = np.asarray([nodes[i] for i in chosen])
        columns = _outer_steps(
            solver,
            schedule,
            (outer[chosen], outer[chosen + 1]),
            each,
            positions,
            options.solver_type,
        )
        for place, i in enumerate(chosen.tolist()):
            rows_of[i] = [column.row(place) for column in columns]
    return [row for i in range(len(orders)) for row in rows_of[i]], float(outer[-1])


def _outer_grid(
    schedule: Schedule, start: float, options: SolverOptions
) -> tuple[list[int], np.ndarray, list[Nodes]]:
    """The outer steps' orders, their times (one more than steps), and their inner nodes."""
    method, steps, order, spacing = (
        options.method,
        options.steps,
        options.order,
        options.spacing,
    )
    ends = (start, options.t_end)
    if method == "singlestep_fixed":
        orders = [order] * (steps // order)
        outer = time_grid(schedule, spacing, steps // order, *ends, tabulated=True)
        return orders, outer, [THIRDS[order]] * len(orders)
    orders = outer_orders(steps, order)
    if method == "singlestep" and isinstance(spacing, str) and spacing == "logsnr":
        outer = time_grid(schedule, spacing, len(orders), *ends)
        return orders, outer, [THIRDS[each] for each in orders]
    grid = time_grid(schedule, spacing, steps, *ends, tabulated=method == "singlestep_fast")
    last = np.cumsum([0, *orders])
    lambdas = np.asarray(schedule.lambda_(grid))
    inner = [lambdas[end - each : end + 1] for each, end in zip(orders, last[1:], strict=True)]
    nodes = [tuple(((each[1:-1] - each[0]) / (each[-1] - each[0])).tolist()) for each in inner]
    return orders, grid[last], nodes


class _Column(NamedTuple):
    """One stage of many outer steps of one order: the fields of `Row`, an entry per outer step."""

    times: np.ndarray
    base: np.ndarray
    history: tuple[np.ndarray, ...]
    commit: bool = False

    def row(self, i: int) -> Row:
        history = tuple(float(weight[i]) for weight in self.history)
        return Row(float(self.times[i]), float(self.base[i]), history, commit=self.commit)


def _outer_steps(
    solver: str,
    schedule: Schedule,
    ends: tuple[np.ndarray, np.ndarray],
    order: int,
    nodes: np.ndarray,
    solver_type: str,
) -> list[_Column]:
    """The stages of steps from times s to times t, the two `ends`, with these inner nodes.

    Algorithms 1 and 2 of arXiv:2206.00927, and their x_0 form.
    """
    s, t = ends
    lambda_s = np.asarray(schedule.lambda_(s))
    h = np.asarray(schedule.lambda_(t)) - lambda_s
    base, w1, w2, w3, _ = weights(solver, schedule, s, t)
    if order == 1:
        return [_Column(s, base, (w1,), commit=True)]
    r1 = nodes[:, 0]
    first = np.asarray(schedule.inverse_lambda(lambda_s + r1 * h))
    to_first = weights(solver, schedule, s, first)
    columns = [_Column(s, to_first.base, (to_first.w1,))]
    if order == 2:
        slope = (0.5 * w1 if solver_type == "dpmsolver" else w2) / r1
        return [*columns, _Column(first, base, (slope, w1 - slope), commit=True)]
    r2 = nodes[:, 1]
    second = np.asarray(schedule.inverse_lambda(lambda_s + r2 * h))
    to_second = weights(solver, schedule, s, second)
    bend = to_second.w2 * r2 / r1
    columns.append(_Column(first, to_second.base, (bend, to_second.w1 - bend)))
    if solver_type == "dpmsolver":
        slope = w2 / r2
        return [*columns, _Column(second, base, (slope, 0.0 * slope, w1 - slope), commit=True)]
    # The parabola through three evaluations: D1, D2 as weights of (m_1 - m_0) and (m_2 - m_0).
    from_first = (w2 * r2 - 2.0 * w3) / (r1 * (r2 - r1))
    from_second = (2.0 * w3 - w2 * r1) / (r2 * (r2 - r1))
    return [
        *columns,
        _Column(
            second, base, (from_second, from_first, w1 - from_first - from_second), commit=True
        ),
    ]
