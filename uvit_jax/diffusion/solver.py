"""The interface of a solver: a table of numbers for its options, and the one `solve` that runs it.

A new solver is a file with a subclass of `Solver`, a line in `registry.SOLVERS`, its test and a row
of docs/solvers.md.
"""

from jaxtyping import Array, Float, Key

from uvit_jax.diffusion.options import SolverOptions
from uvit_jax.diffusion.predictions import check_prediction
from uvit_jax.diffusion.schedules import Schedule
from uvit_jax.diffusion.start import renoised
from uvit_jax.diffusion.tableau import (
    NoiseFn,
    Samples,
    Tableau,
    Trajectory,
    check_steps,
    denoised,
    run,
)
from uvit_jax.errors import UserError


class Solver:
    """A solver; its `tableau` is all that a fixed-step solver has to define.

    Every solver takes every schedule and prediction: `start.first_time` says where each begins, and
    `start.check_carries` what a network may not be asked.

    Attributes:
      fewest_steps: the least number of steps it can make.
      ends_at_zero: True if its last row ends at time 0 whether `denoise_to_zero` is set or not.
      thresholds: True if its rows weigh x_0, which a threshold can bound.
    """

    fewest_steps: int = 1
    ends_at_zero: bool = False

    @property
    def thresholds(self) -> bool:
        return False

    def check(self, options: SolverOptions) -> None:
        """Raises UserError for options that this solver does not have."""
        check_steps(options.steps, self.fewest_steps)

    def evaluations(self, options: SolverOptions) -> int | None:
        """Network evaluations of a solve; None where the solver chooses its steps."""
        return options.steps + (options.denoise_to_zero and not self.ends_at_zero)

    def tableau(self, schedule: Schedule, options: SolverOptions, prediction: str) -> Tableau:
        """The rows for a network that returns a `prediction`, in float64.

        `denoise_to_zero` is not its concern: `solve` appends that row.
        """
        raise NotImplementedError

    def solve(
        self,
        noise_fn: NoiseFn,
        x_T: Samples,
        schedule: Schedule,
        options: SolverOptions,
        *,
        prediction: str = "noise",
        key: Key[Array, ""] | Key[Array, " b"] | None = None,
        noises: Float[Array, "n b *rest"] | None = None,
        return_trajectory: bool = False,
    ) -> Samples | tuple[Samples, Trajectory]:
        """Samples [b, ...] from x_T [b, ...] at t_start, by evaluations of noise_fn(x, t).

        noise_fn returns a `prediction` in the shape and dtype of x. Noise, trajectory and errors as
        in `tableau.run`; UserError also for options that this solver does not have.
        """
        check_prediction(prediction)
        self.check(options)
        if options.threshold is not None and not self.thresholds:
            raise UserError(f"thresholding bounds x_0, which {self!r} does not compute")
        table = self.tableau(schedule, options, prediction)
        x_T = renoised(schedule, x_T, options.t_start, table.starts_at)
        if options.denoise_to_zero and not self.ends_at_zero:
            table = denoised(table, schedule)
        return run(
            noise_fn,
            x_T,
            schedule,
            table,
            prediction=prediction,
            threshold=options.threshold,
            key=key,
            noises=noises,
            return_trajectory=return_trajectory,
        )
