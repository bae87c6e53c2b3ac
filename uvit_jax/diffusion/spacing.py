"""The time grids of the solvers, in float64 NumPy: they are fixed before anything is traced."""

from collections.abc import Sequence

import numpy as np

from uvit_jax.diffusion.schedules import Schedule
from uvit_jax.errors import UserError

SPACINGS = ("time_uniform", "logsnr", "time_quadratic")
Spacing = str | Sequence[float] | np.ndarray

# U-ViT's official code looks its quadratic nodes up in a table of this many times; only the same
# rounding reproduces its samples.
QUADRATIC_TABLE = 10_000_000


def time_grid(
    schedule: Schedule,
    spacing: Spacing,
    intervals: int,
    t_start: float,
    t_end: float,
    *,
    tabulated: bool = False,
) -> np.ndarray:
    """The intervals + 1 falling times from t_start to t_end.

    `spacing`: "time_uniform"; "logsnr", uniform in lambda; "time_quadratic", uniform in sqrt(t)
    (`tabulated`: rounded up to the nodes of QUADRATIC_TABLE); or the times themselves. Raises
    UserError for an unknown name, for t_end outside (0, t_start), t_start above 1, and for times
    that don't fall or are too few.
    """
    if not isinstance(spacing, str):
        return _given_times(spacing, intervals)
    if spacing not in SPACINGS:
        raise UserError(
            f"spacing is {spacing!r}, expected one of {', '.join(SPACINGS)}, or the times "
            f"themselves"
        )
    check_ends(t_start, t_end)
    if spacing == "time_uniform":
        return np.linspace(t_start, t_end, intervals + 1)
    if spacing == "logsnr":
        first, last = (float(schedule.lambda_(np.float64(t))) for t in (t_start, t_end))
        inner = np.asarray(schedule.inverse_lambda(np.linspace(first, last, intervals + 1)))[1:-1]
        return np.concatenate([[t_start], inner, [t_end]])
    roots = np.linspace(np.sqrt(t_start), np.sqrt(t_end), intervals + 1)
    inner = roots[1:-1] ** 2
    if tabulated:
        pitch = (t_start - t_end) / (QUADRATIC_TABLE - 1)
        inner = t_end + pitch * np.ceil((inner - t_end) / pitch)
    return np.concatenate([[t_start], inner, [t_end]])


def check_ends(t_start: float, t_end: float) -> None:
    """Raises UserError unless 0 < t_end < t_start <= 1."""
    if not 0.0 < t_start <= 1.0:
        raise UserError(f"t_start is {t_start}, expected a time in (0, 1]")
    if not 0.0 < t_end < t_start:
        raise UserError(
            f"t_end is {t_end}, expected a time between 0 and t_start = {t_start}, ends excluded"
        )


def _given_times(times: Sequence[float] | np.ndarray, intervals: int) -> np.ndarray:
    grid = np.asarray(times, np.float64)
    if grid.shape != (intervals + 1,):
        raise UserError(
            f"spacing holds times of shape {grid.shape}, expected {intervals + 1} times for "
            f"{intervals} intervals"
        )
    if not (np.all(np.diff(grid) < 0.0) and grid[0] <= 1.0 and grid[-1] > 0.0):
        raise UserError(
            f"spacing holds the times {grid.tolist()}, expected times that fall, all in (0, 1]"
        )
    return grid
