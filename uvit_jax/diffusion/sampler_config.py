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

    solver: a name in `registry.SOLVERS`. method, order, solver_type and lower_order_final are the
    DPM-Solvers' (`dpm_solver.sample`), `eta` DDIM's, `atol`, `rtol` and `max_evaluations` the
    adaptive method's, which gives every sample its own steps. guidance: "classifier_free" or
    "autoguidance", active where guidance_low <= t <= guidance_high, with guidance_rescale. Sampling
    begins at t_start, or a little earlier where alpha vanishes there (`start.first_time`). Raises
    UserError for a value that is not one of these.
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
        """Runs the solver on predict(x, t), which returns a `prediction`."""
        return SOLVERS[self.solver].solve(
            predict,
            x_T,
            schedule,
            self.options,
            prediction=prediction,
            key=key,
            return_trajectory=return_trajectory,
        )
