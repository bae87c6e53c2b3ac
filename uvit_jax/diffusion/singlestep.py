"""Singlestep DPM-Solvers: each outer step spends 1, 2 or 3 evaluations inside itself and forgets
them.
"""

from typing import NamedTuple

import numpy as np

from uvit_jax.diffusion.exponential import weights
from uvit_jax.diffusion.schedules import Schedule
from uvit_jax.diffusion.spacing import Spacing, time_grid
from uvit_jax.diffusion.tableau import Row

Nodes = tuple[float, ...]
THIRDS: dict[int, Nodes] = {
    1: (),
    2: (1 / 2,),
    3: (1 / 3, 2 / 3),
}  # where in lambda the inner evaluations stand


def outer_orders(steps: int, order: int) -> list[int]:
    """Orders of the outer steps that use exactly `steps` evaluations (DPM-Solver-fast of
    arXiv:2206.00927).
    """
    if order == 3 and steps % 3 == 0:
        return [3] * (steps // 3 - 1) + [2, 1]
    rest = [steps % order] if steps % order else []
    return [order] * (steps // order) + rest


def singlestep_rows(
    schedule: Schedule,
    *,
    method: str,
    steps: int,
    order: int,
    spacing: Spacing,
    t_start: float,
    t_end: float,
    algorithm: str,
    solver_type: str,
) -> tuple[list[Row], float]:
    """The rows of `singlestep`, `singlestep_fixed` or `singlestep_fast`, each outer step ending in
    a committed row, and the last time.
    """
    if method == "singlestep_fixed":
        orders = [order] * (steps // order)
        outer = time_grid(schedule, spacing, steps // order, t_start, t_end, tabulated=True)
        nodes = [THIRDS[order]] * len(orders)
    else:
        orders = outer_orders(steps, order)
        if method == "singlestep" and isinstance(spacing, str) and spacing == "logsnr":
            outer = time_grid(schedule, spacing, len(orders), t_start, t_end)
            nodes = [THIRDS[each] for each in orders]
        else:
            grid = time_grid(
                schedule, spacing, steps, t_start, t_end, tabulated=method == "singlestep_fast"
            )
            ends = np.cumsum([0, *orders])
            outer = grid[ends]
            lambdas = np.asarray(schedule.lambda_(grid))
            inner = [
                lambdas[end - each : end + 1] for each, end in zip(orders, ends[1:], strict=True)
            ]
            nodes = [
                tuple(((each[1:-1] - each[0]) / (each[-1] - each[0])).tolist()) for each in inner
            ]
    rows_of: dict[int, list[Row]] = {}
    for each in set(orders):
        chosen = np.flatnonzero(np.asarray(orders) == each)
        positions = np.asarray([nodes[i] for i in chosen])
        columns = _outer_steps(
            schedule, outer[chosen], outer[chosen + 1], each, positions, algorithm, solver_type
        )
        for place, i in enumerate(chosen.tolist()):
            rows_of[i] = [column.row(place) for column in columns]
    return [row for i in range(len(orders)) for row in rows_of[i]], float(outer[-1])


class _Column(NamedTuple):
    """One stage of many outer steps of the same order: the fields of `Row`, one entry per outer
    step.
    """

    times: np.ndarray
    base: np.ndarray
    history: tuple[np.ndarray, ...]
    commit: bool = False

    def row(self, i: int) -> Row:
        history = tuple(float(weight[i]) for weight in self.history)
        return Row(float(self.times[i]), float(self.base[i]), history, commit=self.commit)


def _outer_steps(
    schedule: Schedule,
    s: np.ndarray,
    t: np.ndarray,
    order: int,
    nodes: np.ndarray,
    algorithm: str,
    solver_type: str,
) -> list[_Column]:
    """From times s to times t: algorithms 1 and 2 of arXiv:2206.00927 and their x_0 form, with
    these inner nodes.
    """
    lambda_s = np.asarray(schedule.lambda_(s))
    h = np.asarray(schedule.lambda_(t)) - lambda_s
    base, w1, w2, w3, _ = weights(algorithm, schedule, s, t)
    if order == 1:
        return [_Column(s, base, (w1,), commit=True)]
    r1 = nodes[:, 0]
    first = np.asarray(schedule.inverse_lambda(lambda_s + r1 * h))
    to_first = weights(algorithm, schedule, s, first)
    columns = [_Column(s, to_first.base, (to_first.w1,))]
    if order == 2:
        slope = (0.5 * w1 if solver_type == "dpmsolver" else w2) / r1
        return [*columns, _Column(first, base, (slope, w1 - slope), commit=True)]
    r2 = nodes[:, 1]
    second = np.asarray(schedule.inverse_lambda(lambda_s + r2 * h))
    to_second = weights(algorithm, schedule, s, second)
    bend = to_second.w2 * r2 / r1
    columns.append(_Column(first, to_second.base, (bend, to_second.w1 - bend)))
    if solver_type == "dpmsolver":
        slope = w2 / r2
        return [*columns, _Column(second, base, (slope, 0.0 * slope, w1 - slope), commit=True)]
    # The parabola through the three evaluations: D1 and D2 as weights of (m_1 - m_0) and (m_2 -
    # m_0).
    from_first = (w2 * r2 - 2.0 * w3) / (r1 * (r2 - r1))
    from_second = (2.0 * w3 - w2 * r1) / (r2 * (r2 - r1))
    return [
        *columns,
        _Column(
            second, base, (from_second, from_first, w1 - from_first - from_second), commit=True
        ),
    ]
