"""The time that sampling begins at, by schedule, prediction and solver, and what is refused there.

Alpha all but vanishes at t = 1 on some schedules: a solver that works on the noise, or a network
that predicts it, is of no use there.
"""

import math

import numpy as np
from jaxtyping import Array, Float

from uvit_jax.diffusion.schedules import Schedule
from uvit_jax.errors import UserError

# Largest sigma / alpha that is of use to a solver that works on the noise: the linear schedule, all
# of whose times are used, reaches 152 at t = 1. Cosine and flow go on to 1,270 and 20,000, nearly
# all of it in one step of an even grid in t; reference code begins at T = 0.9946, at 119
# (arXiv:2206.00927).
LARGEST_NOISE = 160.0
# The same where the network predicts the noise: sigma / alpha multiplies the error of its x_0.
LARGEST_NOISE_OF_NOISE = 50.0


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


def renoised(
    schedule: Schedule, x_T: Float[Array, " b *rest"], t_start: float, first: float
) -> Float[Array, " b *rest"]:
    """x_T, noise of the deviation at t_start, scaled to that at `first` where it is earlier."""
    if first >= t_start:
        return x_T
    std, std_first = (float(schedule.prior_std(np.float64(t))) for t in (t_start, first))
    return x_T * (std_first / std)


def check_carries(schedule: Schedule, t_start: float, prediction: str) -> None:
    """Raises UserError where a network that predicts noise is asked where it says nothing of x_0.

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
