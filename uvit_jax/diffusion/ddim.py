"""DDIM with any eta, and the ancestral sampler of DDPM.

Both draw x_s given x_t and the x_0 predicted there.
"""

import dataclasses

import numpy as np

from uvit_jax.diffusion.options import SolverOptions
from uvit_jax.diffusion.schedules import Schedule
from uvit_jax.diffusion.solver import Solver
from uvit_jax.diffusion.spacing import time_grid
from uvit_jax.diffusion.start import first_time
from uvit_jax.diffusion.tableau import Row, Tableau, denoising_row
from uvit_jax.errors import UserError

VARIANCES = ("small", "large")


class Ddim(Solver):
    """DDIM: samples at t_end by `steps` evaluations (arXiv:2010.02502, eq. 12 and 16).

    `eta` = 0 draws nothing and is DPM-Solver of order 1; 1 draws with DDPM's posterior variance.
    """

    thresholds = True

    def check(self, options: SolverOptions) -> None:
        """Raises UserError for too few steps or eta outside [0, 1]."""
        super().check(options)
        check_eta(options.eta)

    def tableau(self, schedule: Schedule, options: SolverOptions, prediction: str) -> Tableau:
        """Rows of x_0, one a step of the time grid."""
        start = first_time(schedule, options.t_start, prediction, "x0")
        times = time_grid(schedule, options.spacing, options.steps, start, options.t_end)
        rows = _posterior_rows(schedule, times, options.eta, "small")
        return Tableau("x0", tuple(rows), start, float(times[-1]))


def check_eta(eta: float) -> None:
    """Raises UserError unless 0 <= eta <= 1."""
    if not 0.0 <= eta <= 1.0:
        raise UserError(f"eta is {eta}, expected a number from 0 to 1")


@dataclasses.dataclass(frozen=True)
class Ddpm(Solver):
    """Ancestral sampling (arXiv:2006.11239, algorithm 2) on any subset of the times, to time 0.

    The network is asked at `steps` times from t_start to t_end; the last row is the x_0 predicted
    at t_end. With a discrete schedule, steps=1000 and the default ends these are n = 1000, ..., 1.

    Attributes:
      variance: "small", that of the posterior, or "large", 1 - alpha_t^2 / alpha_s^2.
    """

    variance: str = "small"
    fewest_steps = 2
    ends_at_zero = True
    thresholds = True

    def __post_init__(self) -> None:
        if self.variance not in VARIANCES:
            raise UserError(
                f"variance is {self.variance!r}, expected one of {', '.join(VARIANCES)}"
            )

    def tableau(self, schedule: Schedule, options: SolverOptions, prediction: str) -> Tableau:
        """Rows of x_0, the last of which gives x_0 itself."""
        start = first_time(schedule, options.t_start, prediction, "x0")
        times = time_grid(schedule, options.spacing, options.steps - 1, start, options.t_end)
        rows = _posterior_rows(schedule, times, 1.0, self.variance)
        last = denoising_row(schedule, float(times[-1]), "x0")
        return Tableau("x0", (*rows, last), start, 0.0)


def _posterior_rows(schedule: Schedule, times: np.ndarray, eta: float, variance: str) -> list[Row]:
    """Rows of x_s = alpha_s x_0 + sqrt(sigma_s^2 - c^2) noise + c z.

    The noise is that of the prediction, (x_t - alpha_t x_0) / sigma_t.
    """
    alpha, sigma = np.asarray(schedule.alpha(times)), np.asarray(schedule.sigma(times))
    lambdas = np.asarray(schedule.lambda_(times))
    # Share of sigma_t^2 that is noise new in x_t, given x_s.
    share = -np.expm1(2.0 * (lambdas[:-1] - lambdas[1:]))
    kept = sigma[1:] * np.sqrt(1.0 - eta**2 * share) / sigma[:-1]
    weight = alpha[1:] - kept * alpha[:-1]
    # The posterior's variance is sigma_s^2 share, for a variance-preserving schedule sigma_s^2 /
    # sigma_t^2 (1 - alpha_t^2 / alpha_s^2).
    noise = eta * (sigma[1:] if variance == "small" else sigma[:-1]) * np.sqrt(share)
    columns = (times[:-1].tolist(), kept.tolist(), weight.tolist(), noise.tolist())
    return [Row(t, a, (w,), z) for t, a, w, z in zip(*columns, strict=True)]
