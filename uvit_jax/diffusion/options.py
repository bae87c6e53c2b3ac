"""Settings of a solve, shared by all solvers; each reads those that concern it."""

import dataclasses
import math

from uvit_jax.diffusion.spacing import Spacing
from uvit_jax.diffusion.tableau import Threshold


@dataclasses.dataclass(frozen=True)
class Tolerances:
    """Step control of an adaptive solver; the numbers are from arXiv:2206.00927, appendix C.

    `first_step` is in lambda, `time_error` in t. With `per_example` every example has its own
    steps, so its sample does not depend on the rest of the batch; without, the batch shares the
    steps that its worst example needs (the reference code). `max_step`, in lambda, bounds a step:
    where x is still noise the two orders agree over any step, and the reference code, which has
    no bound, then skips the times at which the image forms ("dpmsolver++" of order 2 on the linear
    schedule loses 45 % of the deviation of N(0.7, 0.4^2)).
    """

    atol: float = 0.0078
    rtol: float = 0.05
    first_step: float = 0.05
    safety: float = 0.9
    time_error: float = 1e-5
    max_evaluations: int = 3000
    per_example: bool = False
    max_step: float = math.inf


@dataclasses.dataclass(frozen=True, kw_only=True)
class SolverOptions:
    """Settings of a solve, from x_T at t_start to samples at t_end (or at 0).

    Attributes:
      steps: network evaluations; `Solver.evaluations` says where a solver makes more or fewer.
      spacing: "time_uniform", "logsnr", "time_quadratic", or the times themselves.
      t_start, t_end: ends of the time grid, 0 < t_end < t_start <= 1.
      denoise_to_zero: the last row is the x_0 predicted at t_end, one evaluation more.
      threshold: bound of the predicted x_0.
      method, order, lower_order_final, solver_type: of the DPM-Solvers (`dpm_solver.sample`).
      eta: of DDIM, from 0 (no noise) to 1 (the posterior variance of DDPM).
      tolerances: of the method "adaptive".
    """

    steps: int = 50
    spacing: Spacing = "time_uniform"
    t_start: float = 1.0
    t_end: float = 1e-3
    denoise_to_zero: bool = False
    threshold: Threshold | None = None
    method: str = "multistep"
    order: int = 2
    lower_order_final: bool = True
    solver_type: str = "dpmsolver"
    eta: float = 0.0
    tolerances: Tolerances = Tolerances()
