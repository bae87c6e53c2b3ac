"""The time grids of the solvers, in float64 NumPy: they are fixed before anything is traced."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Float

from uvit_jax.diffusion.schedules import Schedule
from uvit_jax.errors import UserError

SPACINGS = ("time_uniform", "logsnr", "time_quadratic")
Spacing = str | Sequence[float] | np.ndarray

# Largest sigma / alpha that is of use to a solver that works on the noise: the linear schedule, all
# of whose times are used, reaches 152 at t = 1. Cosine and flow go on to 1,270 and 20,000, nearly
# all of it in one step of an even grid in t; reference code begins at T = 0.9946, at 119
# (arXiv:2206.00927).
LARGEST_NOISE = 160.0
# The same where the network predicts the noise: sigma / alpha multiplies the error of its x_0.
LARGEST_NOISE_OF_NOISE = 50.0

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


def vanishes(schedule: Schedule) -> bool:
    """True where sigma / alpha at t = 1 is above LARGEST_NOISE."""
    return math.exp(-float(schedule.lambda_(np.float64(1.0)))) > LARGEST_NOISE


def first_time(schedule: Schedule, t_start: float, prediction: str, form: str) -> float:
    """Time that sampling begins at: t_start, or an earlier one where alpha all but vanishes.

    Where a schedule `vanishes` (cosine, flow), a network that predicts "noise" is first asked where
    sigma / alpha is LARGEST_NOISE_OF_NOISE, and a solver whose `form` is "noise" begins at
    LARGEST_NOISE. Other predictions carry at t = 1. A time outside (0, 1] is for `check_ends` to
    refuse.
    """
    if not (0.0 < t_start <= 1.0 and vanishes(schedule) and "noise" in (prediction, form)):
        return t_start
    largest = LARGEST_NOISE_OF_NOISE if prediction == "noise" else LARGEST_NOISE
    return min(t_start, float(schedule.inverse_lambda(np.float64(-math.log(largest)))))


def begin(
    schedule: Schedule,
    x_T: Float[Array, " b *rest"],
    t_start: float,
    prediction: str,
    form: str,
    latest: float = math.inf,
) -> tuple[Float[Array, " b *rest"], float]:
    """State and time that sampling begins with: x_T, noise of t_start, as noise of `first_time`, or
    of `latest` where that is earlier.
    """
    first = min(first_time(schedule, t_start, prediction, form), latest)
    if first >= t_start:
        return x_T, t_start
    std, std_first = (float(schedule.prior_std(np.float64(t))) for t in (t_start, first))
    return x_T * (std_first / std), first


def check_carries(schedule: Schedule, t_start: float, prediction: str) -> None:
    """Raises UserError where a network that predicts noise would be asked where it says nothing of
    x_0.

    For a network's use, whose error sigma / alpha multiplies; the solvers themselves take exact
    functions.
    """
    first = first_time(schedule, 1.0, prediction, form="x0")
    if t_start > first:
        times = math.exp(-float(schedule.lambda_(np.float64(t_start))))
        raise UserError(
            f"t_start is {t_start}, where {type(schedule).__name__} multiplies the error of a "
            f"predicted noise by {times:,.0f}: expected a network that predicts v, x0 or flow, or "
            f"a t_start of at most {math.floor(1e4 * first) / 1e4}"
        )


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
