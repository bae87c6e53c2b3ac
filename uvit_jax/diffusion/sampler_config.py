"""Settings of a sampler, with plain values only."""

import dataclasses
import math

from jaxtyping import Array, Key

from uvit_jax.diffusion import guidance
from uvit_jax.diffusion.ddim import check_eta
from uvit_jax.diffusion.options import SolverOptions, Tolerances
from uvit_jax.diffusion.registry import SOLVERS, THRESHOLDING_SOLVERS
from uvit_jax.diffusion.schedules import Schedule
from uvit_jax.diffusion.spacing import SPACINGS, check_ends
from uvit_jax.diffusion.tableau import NoiseFn, Samples, Threshold, Trajectory
from uvit_jax.errors import UserError

# Largest step of the adaptive method in lambda. At the default tolerances every order then errs by
# less than 2 % in the deviation of N(0.7, 0.4^2), in 42 to 69 evaluations
# (`benchmarks/solver_bias.py exact`).
MAX_STEP = 0.5


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """Settings of a sampler; every field is a plain value that a command line can set.

    Attributes:
      solver: "dpmsolver++", "dpmsolver", "sde-dpmsolver++", "ddim", "ddpm", "heun", "euler_ode" or
        "euler_maruyama" (`registry.SOLVERS`).
      method: of the DPM-Solvers: "multistep", "singlestep", "singlestep_fixed", "singlestep_fast"
        or "adaptive", which gives every sample its own steps (`dpm_solver.sample`).
      order: of the DPM-Solvers, 1 to 3; "singlestep_fast" and "adaptive" have 2 and 3.
      steps: network evaluations; "adaptive" makes as many as its tolerances need.
      spacing: of the times: "time_uniform", "logsnr" (uniform in log(alpha / sigma)) or
        "time_quadratic" (uniform in the root of the time).
      t_start: time that sampling begins at, or a little earlier where alpha vanishes there
        (`start.first_time`).
      t_end: time that sampling ends at, above 0.
      lower_order_final: True for lower orders at the end of "multistep" with fewer than 10 steps.
      solver_type: second-order term of the DPM-Solvers: "dpmsolver" or "taylor".
      denoise_to_zero: True to return the x_0 predicted at t_end, one evaluation more.
      thresholding: True to bound the predicted x_0, each sample by its own quantile; for models of
        pixels and solvers that work on x_0.
      thresholding_ratio: quantile of |x_0| that is the bound.
      thresholding_max: least bound, which the samples are scaled to.
      eta: noise of "ddim", from 0 (none) to 1 (the posterior variance of DDPM).
      atol: absolute tolerance of the method "adaptive".
      rtol: relative tolerance of the method "adaptive".
      max_evaluations: most network evaluations of the method "adaptive"; more is an error.
      guidance: "classifier_free", or "autoguidance", away from a weaker network.
      guidance_low: earliest time, from 0, at which guidance acts.
      guidance_high: latest time, to 1, at which guidance acts.
      guidance_rescale: how far the guided prediction's standard deviation is pulled back to the
        unguided one's, from 0 (not) to 1.

    Raises:
      UserError: for a value that is not one of these.
    """

    solver: str = "dpmsolver++"
    method: str = "multistep"
    order: int = 2
    steps: int = 50
    spacing: str = "time_uniform"
    t_start: float = 1.0
    t_end: float = 1e-3
    lower_order_final: bool = True
    solver_type: str = "dpmsolver"
    denoise_to_zero: bool = False
    thresholding: bool = False
    thresholding_ratio: float = 0.995
    thresholding_max: float = 1.0
    eta: float = 0.0
    atol: float = 0.0078
    rtol: float = 0.05
    max_evaluations: int = 3000
    guidance: str = "classifier_free"
    guidance_low: float = 0.0
    guidance_high: float = 1.0
    guidance_rescale: float = 0.0

    def __post_init__(self) -> None:
        for field, known in (
            ("solver", SOLVERS),
            ("spacing", SPACINGS),
            ("guidance", guidance.KINDS),
        ):
            if getattr(self, field) not in known:
                raise UserError(
                    f"{field} is {getattr(self, field)!r}, expected one of {', '.join(known)}"
                )
        check_ends(self.t_start, self.t_end)
        if not 0 <= self.guidance_low < self.guidance_high <= 1:
            raise UserError(
                f"guidance_low is {self.guidance_low} and guidance_high {self.guidance_high}, "
                "expected 0 <= guidance_low < guidance_high <= 1"
            )
        guidance.check_rescale(self.guidance_rescale)
        solver = SOLVERS[self.solver]
        solver.check(self.options)
        if self.thresholding and not solver.thresholds:
            raise UserError(
                f"thresholding needs a solver among {', '.join(THRESHOLDING_SOLVERS)}, found "
                f"{self.solver!r}"
            )
        check_eta(self.eta)
        for field in ("atol", "rtol"):
            if not 0 <= getattr(self, field) < math.inf:
                raise UserError(
                    f"{field} is {getattr(self, field)}, expected 0 or more, and finite"
                )
        if not self.atol and not self.rtol:
            raise UserError("atol and rtol are both 0, expected one of them above 0")
        if self.max_evaluations < 1:
            raise UserError(f"max_evaluations is {self.max_evaluations}, expected at least 1")

    @property
    def options(self) -> SolverOptions:
        """The solver's settings.

        The adaptive method has steps of each example's own, so that no sample depends on its batch,
        and no step above MAX_STEP.
        """
        threshold = Threshold(self.thresholding_ratio, self.thresholding_max)
        return SolverOptions(
            steps=self.steps,
            spacing=self.spacing,
            t_start=self.t_start,
            t_end=self.t_end,
            denoise_to_zero=self.denoise_to_zero,
            threshold=threshold if self.thresholding else None,
            method=self.method,
            order=self.order,
            lower_order_final=self.lower_order_final,
            solver_type=self.solver_type,
            eta=self.eta,
            tolerances=Tolerances(
                atol=self.atol,
                rtol=self.rtol,
                max_evaluations=self.max_evaluations,
                per_example=True,
                max_step=MAX_STEP,
            ),
        )

    @property
    def evaluations(self) -> int | None:
        """Network evaluations to a sample (NFE), a guided one counted once.

        None where the solver chooses its steps.
        """
        return SOLVERS[self.solver].evaluations(self.options)

    @property
    def adaptive(self) -> bool:
        """True if the solver chooses its own steps."""
        return self.evaluations is None

    @property
    def guidance_interval(self) -> tuple[float, float] | None:
        """The interval in t, None where guidance acts everywhere."""
        interval = (self.guidance_low, self.guidance_high)
        return None if interval == (0.0, 1.0) else interval

    def solve(
        self,
        predict: NoiseFn,
        x_T: Samples,
        schedule: Schedule,
        *,
        prediction: str,
        key: Key[Array, ""] | Key[Array, " b"] | None,
        return_trajectory: bool,
    ) -> Samples | tuple[Samples, Trajectory]:
        """Runs the solver.

        Args:
          predict: `predict(x, t)`, which returns a `prediction` of x's shape.
          x_T: the start `[b, ...]` at t_start.
          schedule: alpha and sigma.
          prediction: "noise", "x0", "v" or "flow".
          key: of the noise that stochastic solvers draw, one for all or one a row.
          return_trajectory: True to return all states beside the samples.

        Raises:
          UserError: for what this solver does not do.
        """
        return SOLVERS[self.solver].solve(
            predict,
            x_T,
            schedule,
            self.options,
            prediction=prediction,
            key=key,
            return_trajectory=return_trajectory,
        )
