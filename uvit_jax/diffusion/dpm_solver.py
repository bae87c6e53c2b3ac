"""DPM-Solver and DPM-Solver++: every method and order, and `sample`, their front of one call."""

import dataclasses

from jaxtyping import Array, Float, Key

from uvit_jax.diffusion import adaptive
from uvit_jax.diffusion.exponential import FORMS
from uvit_jax.diffusion.multistep import multistep_rows
from uvit_jax.diffusion.options import SolverOptions, Tolerances
from uvit_jax.diffusion.predictions import check_prediction
from uvit_jax.diffusion.schedules import Schedule
from uvit_jax.diffusion.singlestep import singlestep_rows
from uvit_jax.diffusion.solver import Solver
from uvit_jax.diffusion.spacing import Spacing, time_grid
from uvit_jax.diffusion.start import first_time
from uvit_jax.diffusion.tableau import NoiseFn, Samples, Tableau, Threshold, Trajectory
from uvit_jax.errors import UserError

ORDERS = {
    "multistep": (1, 2, 3),
    "singlestep": (1, 2, 3),
    "singlestep_fixed": (1, 2, 3),
    "singlestep_fast": (2, 3),
    "adaptive": (2, 3),
}
METHODS = tuple(ORDERS)
# The weight of the second-order term: phi_1 / 2, or phi_2 as in the Taylor series.
SOLVER_TYPES = ("dpmsolver", "taylor")


@dataclasses.dataclass(frozen=True)
class DpmSolver(Solver):
    """A DPM-Solver; its method, order and the rest are options, as in `sample`.

    Attributes:
      name: "dpmsolver" (arXiv:2206.00927), "dpmsolver++" (arXiv:2211.01095) or "sde-dpmsolver++".
    """

    name: str

    def __post_init__(self) -> None:
        _check_known("algorithm", self.name, tuple(FORMS))

    @property
    def thresholds(self) -> bool:
        return FORMS[self.name] == "x0"

    def check(self, options: SolverOptions) -> None:
        """Raises UserError for an option that no DPM-Solver has, or this one with this method."""
        method, order = options.method, options.order
        _check_known("method", method, METHODS)
        _check_known("solver_type", options.solver_type, SOLVER_TYPES)
        if order not in ORDERS[method]:
            raise UserError(
                f"order is {order}, but method {method!r} has the orders "
                f"{', '.join(map(str, ORDERS[method]))}"
            )
        if self.name == "sde-dpmsolver++" and (method != "multistep" or order == 3):
            raise UserError(
                f"method is {method!r} and order {order}, expected 'multistep' of order 1 or 2 for "
                f"'sde-dpmsolver++'"
            )
        if method != "adaptive" and options.steps < order:
            raise UserError(f"steps is {options.steps}, expected at least the order, {order}")
        if options.threshold is not None and not self.thresholds:
            raise UserError(
                f"thresholding bounds x_0, but algorithm {self.name!r} works on the noise: use "
                f"'dpmsolver++'"
            )

    def evaluations(self, options: SolverOptions) -> int | None:
        """Network evaluations of a solve; None for the method "adaptive"."""
        if options.method == "adaptive":
            return None
        steps, fixed = options.steps, options.method == "singlestep_fixed"
        return (steps // options.order * options.order if fixed else steps) + (
            options.denoise_to_zero
        )

    def tableau(self, schedule: Schedule, options: SolverOptions, prediction: str) -> Tableau:
        """Rows of x_0 or the noise, one an evaluation."""
        form = FORMS[self.name]
        start = first_time(schedule, options.t_start, prediction, form)
        if options.method == "multistep":
            times = time_grid(schedule, options.spacing, options.steps, start, options.t_end)
            rows, last = multistep_rows(self.name, schedule, times, options), float(times[-1])
        else:
            rows, last = singlestep_rows(self.name, schedule, start, options)
        return Tableau(form, tuple(rows), start, last)

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
        """Samples [b, ...] as of `Solver.solve`; the method "adaptive" runs without a table."""
        if options.method != "adaptive":
            return super().solve(
                noise_fn,
                x_T,
                schedule,
                options,
                prediction=prediction,
                key=key,
                noises=noises,
                return_trajectory=return_trajectory,
            )
        check_prediction(prediction)
        self.check(options)
        if options.denoise_to_zero or return_trajectory:
            raise UserError(
                "method 'adaptive' has neither denoise_to_zero nor return_trajectory, expected "
                "both False"
            )
        solution = adaptive.solve(
            noise_fn, x_T, schedule, options, solver=self.name, prediction=prediction
        )
        return adaptive.converged_samples(solution, options.tolerances)


def sample(
    noise_fn: NoiseFn,
    x_T: Samples,
    schedule: Schedule,
    *,
    steps: int = 50,
    algorithm: str = "dpmsolver++",
    method: str = "multistep",
    order: int = 2,
    spacing: Spacing = "time_uniform",
    t_start: float = 1.0,
    t_end: float = 1e-3,
    lower_order_final: bool = True,
    solver_type: str = "dpmsolver",
    denoise_to_zero: bool = False,
    thresholding: bool = False,
    thresholding_ratio: float = 0.995,
    thresholding_max: float = 1.0,
    prediction: str = "noise",
    key: Key[Array, ""] | Key[Array, " b"] | None = None,
    noises: Float[Array, "n b *rest"] | None = None,
    return_trajectory: bool = False,
    tolerances: Tolerances | None = None,
) -> Samples | tuple[Samples, Trajectory]:
    """Samples at t_end `[b, ...]` from x_T at t_start.

    The compiled program calls `noise_fn` at one place. The paper's L models are sampled with
    "dpmsolver", "singlestep", order 3, "logsnr", t_end=1e-4; the H models and COCO with
    "dpmsolver++", "singlestep_fast", order 3, "time_uniform".

    Args:
      noise_fn: `noise_fn(x, t)` gets t `[b]` in (0, 1] and returns the noise (or `prediction`) in
        the shape and dtype of x.
      x_T: the start, `[b, ...]`.
      schedule: alpha and sigma.
      steps: network evaluations, except that "singlestep_fixed" makes floor(steps / order) * order,
        `denoise_to_zero` one more, and "adaptive" as many as its `tolerances` need.
      algorithm: "dpmsolver" (arXiv:2206.00927), "dpmsolver++" (arXiv:2211.01095), or
        "sde-dpmsolver++" (its multistep SDE solver, order 1 or 2).
      method: "multistep"; "singlestep": orders 3, ..., 3, then 2, 1 / 1 / 2, with uniform logSNR on
        nodes of its own; "singlestep_fixed": every outer step of one order; "singlestep_fast": the
        orders of "singlestep" on the nodes of the `steps` grid; "adaptive": DPM-Solver-12 or -23 by
        `order`, which uses neither `steps` nor `spacing` nor `lower_order_final`.
      order: 1 to 3; of "singlestep_fast" and "adaptive" 2 or 3.
      spacing: "time_uniform", "logsnr", "time_quadratic", or the times themselves, falling:
        steps + 1 of them ("singlestep_fixed": floor(steps / order) + 1).
      t_start: first time; sampling begins earlier where alpha vanishes there (`start.first_time`).
      t_end: last time, above 0.
      lower_order_final: True for lower orders at the end of fewer than 10 multistep steps.
      solver_type: second-order term, "dpmsolver" or "taylor".
      denoise_to_zero: True to return the x_0 predicted at t_end.
      thresholding: True to bound the predicted x_0, each sample by its own quantile.
      thresholding_ratio: quantile of |x_0| that is the bound.
      thresholding_max: least bound, which samples are scaled to.
      prediction: of `noise_fn`: "noise", "x0", "v" or "flow".
      key: of the noise that "sde-dpmsolver++" draws, one for all or one a row (`tableau.run`).
      noises: that noise itself, a row an evaluation, in place of a key.
      return_trajectory: True for the Trajectory too: x_T and the state after each (outer) step, and
        their times.
      tolerances: of "adaptive".

    Raises:
      UserError: before anything is traced, for an unknown name, an order the method has not,
        steps < order, t_end outside (0, t_start), or a noise_fn of another shape or dtype; and for
        an adaptive solve that does not converge (under an outer jit, which can raise nothing,
        samples are NaN).
    """
    options = SolverOptions(
        steps=steps,
        spacing=spacing,
        t_start=t_start,
        t_end=t_end,
        denoise_to_zero=denoise_to_zero,
        threshold=Threshold(thresholding_ratio, thresholding_max) if thresholding else None,
        method=method,
        order=order,
        lower_order_final=lower_order_final,
        solver_type=solver_type,
        tolerances=tolerances or Tolerances(),
    )
    return DpmSolver(algorithm).solve(
        noise_fn,
        x_T,
        schedule,
        options,
        prediction=prediction,
        key=key,
        noises=noises,
        return_trajectory=return_trajectory,
    )


def _check_known(field: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UserError(f"{field} is {value!r}, expected one of {', '.join(known)}")
