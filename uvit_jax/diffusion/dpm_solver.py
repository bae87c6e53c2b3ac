"""The front door of DPM-Solver and DPM-Solver++: every method, order and spacing behind one pure
function.
"""

from jaxtyping import Array, Float, Key

from uvit_jax.diffusion import adaptive
from uvit_jax.diffusion.exponential import ALGORITHMS, FORMS, SOLVER_TYPES
from uvit_jax.diffusion.multistep import multistep_rows
from uvit_jax.diffusion.predictions import check_prediction
from uvit_jax.diffusion.schedules import Schedule
from uvit_jax.diffusion.singlestep import singlestep_rows
from uvit_jax.diffusion.spacing import Spacing, begin, time_grid
from uvit_jax.diffusion.tableau import (
    NoiseFn,
    Row,
    Samples,
    Threshold,
    Trajectory,
    denoising_row,
    run,
)
from uvit_jax.errors import UserError

ORDERS = {
    "multistep": (1, 2, 3),
    "singlestep": (1, 2, 3),
    "singlestep_fixed": (1, 2, 3),
    "singlestep_fast": (2, 3),
    "adaptive": (2, 3),
}
METHODS = tuple(ORDERS)


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
    tolerances: adaptive.Tolerances | None = None,
) -> Samples | tuple[Samples, Trajectory]:
    """Samples at t_end from x_T [b, ...] at t_start (later, where alpha vanishes there:
    `spacing.first_time`).

    algorithm: "dpmsolver" (arXiv:2206.00927), "dpmsolver++" (arXiv:2211.01095) or "sde-dpmsolver++"
    (its multistep SDE solver, order 1 or 2). noise_fn(x, t) gets t [b] in (0, 1] and returns the
    noise (or `prediction`) in the shape and dtype of x. The compiled program calls it at one place.
    `steps` counts its evaluations, except that `singlestep_fixed` makes floor(steps / order) *
    order, `denoise_to_zero` one more (the x_0 predicted at t_end), and `adaptive` as many as its
    `tolerances` need: it uses neither `steps` nor `spacing` nor `lower_order_final`.

    method: "multistep"; "singlestep": orders 3, ..., 3, then 2, 1 / 1 / 2, with uniform logSNR on
    nodes of its own (the paper's L models: "dpmsolver", order 3, "logsnr", t_end=1e-4);
    "singlestep_fixed": every outer step of one order; "singlestep_fast": the same orders on the
    nodes of the `steps` grid (the H models and COCO: "dpmsolver++", order 3, "time_uniform");
    "adaptive": DPM-Solver-12 or -23 by `order`. spacing: "time_uniform", "logsnr",
    "time_quadratic", or the times themselves, falling: steps + 1 of them (`singlestep_fixed`:
    floor(steps / order) + 1).

    With `return_trajectory` also the Trajectory: x_T and the state after each (outer) step, and
    their times. Noise, where the algorithm draws any: see `tableau.run`. Raises UserError, before
    anything is traced, for an unknown name, an order the method has not, steps < order, t_end
    outside (0, t_start), or a noise_fn of another shape or dtype; and for an adaptive solve that
    does not converge (under an outer jit, which can raise nothing, samples are NaN).
    """
    check_arguments(
        steps=steps,
        algorithm=algorithm,
        method=method,
        order=order,
        solver_type=solver_type,
        prediction=prediction,
        thresholding=thresholding,
    )
    form = FORMS[algorithm]
    x_T, t_start = begin(schedule, x_T, t_start, prediction, form)
    threshold = Threshold(thresholding_ratio, thresholding_max) if thresholding else None
    if method == "adaptive":
        if denoise_to_zero or return_trajectory:
            raise UserError(
                "method 'adaptive' has neither denoise_to_zero nor return_trajectory, expected "
                "both False"
            )
        tolerances = tolerances or adaptive.Tolerances()
        solution = adaptive.solve(
            noise_fn,
            x_T,
            schedule,
            algorithm=algorithm,
            order=order,
            t_start=t_start,
            t_end=t_end,
            solver_type=solver_type,
            prediction=prediction,
            threshold=threshold,
            tolerances=tolerances,
        )
        return adaptive.converged_samples(solution, tolerances)
    rows, last = _rows(
        schedule,
        steps=steps,
        algorithm=algorithm,
        method=method,
        order=order,
        spacing=spacing,
        t_start=t_start,
        t_end=t_end,
        lower_order_final=lower_order_final,
        solver_type=solver_type,
    )
    if denoise_to_zero:
        rows = [*rows, denoising_row(schedule, last, form)]
    return run(
        noise_fn,
        x_T,
        schedule,
        rows,
        ends_at=0.0 if denoise_to_zero else last,
        form=form,
        prediction=prediction,
        threshold=threshold,
        key=key,
        noises=noises,
        return_trajectory=return_trajectory,
    )


def _rows(
    schedule: Schedule,
    *,
    steps: int,
    algorithm: str,
    method: str,
    order: int,
    spacing: Spacing,
    t_start: float,
    t_end: float,
    lower_order_final: bool,
    solver_type: str,
) -> tuple[list[Row], float]:
    """The solver's rows, one an evaluation, and the last time."""
    if method == "multistep":
        times = time_grid(schedule, spacing, steps, t_start, t_end)
        rows = multistep_rows(
            schedule,
            times,
            algorithm=algorithm,
            order=order,
            solver_type=solver_type,
            lower_order_final=lower_order_final,
        )
        return rows, float(times[-1])
    return singlestep_rows(
        schedule,
        method=method,
        steps=steps,
        order=order,
        spacing=spacing,
        t_start=t_start,
        t_end=t_end,
        algorithm=algorithm,
        solver_type=solver_type,
    )


def check_arguments(
    *,
    steps: int,
    algorithm: str,
    method: str,
    order: int,
    solver_type: str,
    prediction: str,
    thresholding: bool,
) -> None:
    """Raises UserError for the first argument that no solver has, or that this method and algorithm
    don't have.
    """
    for field, value, known in (
        ("algorithm", algorithm, ALGORITHMS),
        ("method", method, METHODS),
        ("solver_type", solver_type, SOLVER_TYPES),
    ):
        if value not in known:
            raise UserError(f"{field} is {value!r}, expected one of {', '.join(known)}")
    check_prediction(prediction)
    if order not in ORDERS[method]:
        raise UserError(
            f"order is {order}, but method {method!r} has the orders "
            f"{', '.join(map(str, ORDERS[method]))}"
        )
    if algorithm == "sde-dpmsolver++" and (method != "multistep" or order == 3):
        raise UserError(
            f"method is {method!r} and order {order}, expected 'multistep' of order 1 or 2 for "
            f"'sde-dpmsolver++'"
        )
    if method != "adaptive" and steps < order:
        raise UserError(f"steps is {steps}, expected at least the order, {order}")
    if thresholding and FORMS[algorithm] != "x0":
        raise UserError(
            f"thresholding bounds x_0, but algorithm {algorithm!r} works on the noise: use "
            f"'dpmsolver++'"
        )
