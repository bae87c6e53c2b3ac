"""Euler-Maruyama for the reverse SDE and Euler for the probability-flow ODE.

arXiv:2011.13456, eq. 6 and 13.
"""

import dataclasses

import numpy as np
from jaxtyping import Array, Float, Key

from uvit_jax.diffusion.options import SolverOptions
from uvit_jax.diffusion.schedules import Schedule
from uvit_jax.diffusion.solver import Solver
from uvit_jax.diffusion.spacing import Spacing, time_grid
from uvit_jax.diffusion.start import first_time, vanishes
from uvit_jax.diffusion.tableau import NoiseFn, Row, Samples, Tableau, Trajectory


@dataclasses.dataclass(frozen=True)
class Euler(Solver):
    """Euler-Maruyama, or with `ode` Euler: to time 0 by `steps` evaluations.

    A step from t to s, with score = -noise / sigma, is x + (f x - g^2 score) (s - t) + g sqrt(t -
    s) z; with `ode` the score counts half and nothing is drawn. The last step goes from t_end to 0
    without noise. Where alpha vanishes at t = 1 the SDE begins at a time that its first step, g^2
    (t - s) <= 1, can follow.
    """

    ode: bool = False
    fewest_steps = 2
    ends_at_zero = True

    def tableau(self, schedule: Schedule, options: SolverOptions, prediction: str) -> Tableau:
        """Rows of the noise, one at each time of the grid."""
        intervals, spacing = options.steps - 1, options.spacing
        # The steps are in t, bounded on every schedule: only the prediction moves the start.
        start = first_time(schedule, options.t_start, prediction, "flow")
        if vanishes(schedule) and isinstance(spacing, str) and not self.ode:
            latest = _stable_start(schedule, spacing, intervals, options.t_start, options.t_end)
            start = min(start, latest)
        times = time_grid(schedule, spacing, intervals, start, options.t_end)
        dt = np.append(times[1:], 0.0) - times
        g_squared = np.asarray(schedule.squared_diffusion(times))
        base = 1.0 + np.asarray(schedule.drift(times)) * dt
        weight = (0.5 if self.ode else 1.0) * g_squared / np.asarray(schedule.sigma(times)) * dt
        noise = np.append(np.sqrt(-g_squared * dt)[:-1], 0.0)
        noise = np.zeros(options.steps) if self.ode else noise
        columns = (times.tolist(), base.tolist(), weight.tolist(), noise.tolist())
        rows = [Row(t, a, (w,), z) for t, a, w, z in zip(*columns, strict=True)]
        return Tableau("noise", tuple(rows), start, 0.0)


def euler_maruyama(
    noise_fn: NoiseFn,
    x_T: Samples,
    schedule: Schedule,
    *,
    steps: int = 1000,
    key: Key[Array, ""] | Key[Array, " b"] | None = None,
    noises: Float[Array, "n b *rest"] | None = None,
    ode: bool = False,
    spacing: Spacing = "time_uniform",
    t_start: float = 1.0,
    t_end: float = 1e-3,
    prediction: str = "noise",
    return_trajectory: bool = False,
) -> Samples | tuple[Samples, Trajectory]:
    """Samples at time 0 from x_T [b, ...] at t_start, by `steps` evaluations of noise_fn(x, t).

    The evaluations are at times from t_start to t_end; the step is that of `Euler`. `noises`
    [steps, b, ...] are in sampling order (the last is not used); else `key`, as in `tableau.run`.
    Raises UserError for bad input, or without key and noises where noise is needed.
    """
    return Euler(ode=ode).solve(
        noise_fn,
        x_T,
        schedule,
        SolverOptions(steps=steps, spacing=spacing, t_start=t_start, t_end=t_end),
        prediction=prediction,
        key=key,
        noises=noises,
        return_trajectory=return_trajectory,
    )


def _stable_start(
    schedule: Schedule, spacing: str, intervals: int, latest: float, t_end: float
) -> float:
    """The latest time whose first step adds noise of variance g^2 (t - s) <= 1, by bisection.

    A larger step leaves x far outside the noise that the network knows, however exact its
    prediction is.
    """

    def is_stable(t: float) -> bool:
        step = t - float(time_grid(schedule, spacing, intervals, t, t_end)[1])
        return bool(schedule.squared_diffusion(np.float64(t)) * step <= 1.0)

    stable, unstable = t_end + 0.5 * (latest - t_end), latest
    if is_stable(latest) or not is_stable(stable):
        return latest
    while unstable - stable > 1e-6:
        middle = 0.5 * (stable + unstable)
        stable, unstable = (middle, unstable) if is_stable(middle) else (stable, middle)
    return stable
