"""DPM-Solver-12 and -23: step sizes chosen on the device, in one bounded `lax.while_loop`."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from uvit_jax.diffusion.exponential import FORMS, weights
from uvit_jax.diffusion.predictions import convert, spread
from uvit_jax.diffusion.schedules import Schedule
from uvit_jax.diffusion.spacing import begin, check_ends
from uvit_jax.diffusion.tableau import NoiseFn, Samples, Threshold, check_noise_fn
from uvit_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Tolerances:
    """How an adaptive solver chooses its steps; the numbers are those of arXiv:2206.00927, appendix
    C.

    `first_step` is in lambda, `time_error` in t. With `per_example` every example has steps of its
    own, so its sample does not depend on the batch it is in; without, the batch shares the steps
    its worst example needs (the reference code). `max_step`, in lambda, bounds a step: where the
    image is still noise the two orders agree over any step, and the reference code, which has no
    bound, then passes over where the image is made (45 % of N(0.7, 0.4^2)'s deviation lost by
    "dpmsolver++" of order 2 on the linear schedule).
    """

    atol: float = 0.0078
    rtol: float = 0.05
    first_step: float = 0.05
    safety: float = 0.9
    time_error: float = 1e-5
    max_evaluations: int = 3000
    per_example: bool = False
    max_step: float = math.inf


class Solution(NamedTuple):
    """The samples, the network evaluations they took, and whether every example reached t_end
    within the bound.
    """

    x: Float[Array, " b *rest"]
    evaluations: Int[Array, ""]
    converged: Bool[Array, ""]


def solve(
    noise_fn: NoiseFn,
    x_T: Samples,
    schedule: Schedule,
    *,
    algorithm: str = "dpmsolver++",
    order: int = 3,
    t_start: float = 1.0,
    t_end: float = 1e-3,
    solver_type: str = "dpmsolver",
    prediction: str = "noise",
    threshold: Threshold | None = None,
    tolerances: Tolerances = Tolerances(),
) -> Solution:
    """The samples: x_T [b, ...] carried from t_start to t_end by steps of order `order` (2 or 3),
    each compared with one of order - 1 that shares its evaluations (arXiv:2206.00927, appendix C).
    noise_fn as in `dpm_solver.sample`. Raises UserError for bad input.
    """
    x_T, t_start = begin(schedule, x_T, t_start, prediction, FORMS[algorithm])
    check_ends(t_start, t_end)
    check_noise_fn(noise_fn, x_T)
    b, dtype = x_T.shape[0], x_T.dtype
    t_first, t_last = jnp.full((b,), t_start, dtype), jnp.full((b,), t_end, dtype)
    solver = _Solver(
        noise_fn=noise_fn,
        schedule=schedule,
        algorithm=algorithm,
        order=order,
        solver_type=solver_type,
        prediction=prediction,
        threshold=threshold,
        tolerances=tolerances,
        t_end=t_end,
        lambda_end=schedule.lambda_(t_last),
    )
    start = _State(
        x=x_T,
        x_lower=x_T,
        t=t_first,
        lambda_=schedule.lambda_(t_first),
        h=jnp.full((b,), tolerances.first_step, dtype),
        evaluations=jnp.zeros((), jnp.int32),
    )
    end = jax.lax.while_loop(solver.goes_on, solver.attempt, start)
    return Solution(end.x, end.evaluations, ~jnp.any(solver.is_open(end.t)))


class _State(NamedTuple):
    x: Any
    x_lower: (
        Any  # the last accepted lower-order state, against which the relative tolerance is measured
    )
    t: Any
    lambda_: Any
    h: Any
    evaluations: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Solver:
    """One solve's step and its end; the fields are `solve`'s arguments, and lambda at t_end."""

    noise_fn: NoiseFn
    schedule: Schedule
    algorithm: str
    order: int
    solver_type: str
    prediction: str
    threshold: Threshold | None
    tolerances: Tolerances
    t_end: float
    lambda_end: Any  # [b]

    def is_open(self, t: Any) -> Any:
        """Which examples are still on their way."""
        return jnp.abs(t - self.t_end) > self.tolerances.time_error

    def goes_on(self, state: _State) -> Any:
        """Whether any example is, and another attempt is within the bound."""
        return jnp.any(self.is_open(state.t)) & (
            state.evaluations + self.order <= self.tolerances.max_evaluations
        )

    def attempt(self, state: _State) -> _State:
        """The state after a step, of those examples whose error allows it, and the size of the next
        step.
        """
        lower, gain = self._lower_and_gain(state)
        atol, rtol = self.tolerances.atol, self.tolerances.rtol
        scale = jnp.maximum(atol, rtol * jnp.maximum(jnp.abs(lower), jnp.abs(state.x_lower)))
        error = jnp.sqrt(jnp.mean(jnp.square(gain / scale), axis=tuple(range(1, gain.ndim))))
        if not self.tolerances.per_example:
            error = jnp.broadcast_to(jnp.max(error), error.shape)
        accept = (error <= 1.0) & self.is_open(state.t)
        chosen = spread(accept, state.x).astype(bool)
        lambda_ = jnp.where(accept, state.lambda_ + state.h, state.lambda_)
        # A step size needs no more than float32, and the reference rounds here: its samples are
        # reproduced only so.
        growth = (error ** (-1.0 / self.order)).astype(jnp.float32).astype(state.x.dtype)
        return _State(
            x=jnp.where(chosen, lower + gain, state.x),
            x_lower=jnp.where(chosen, lower, state.x_lower),
            t=jnp.where(accept, self.schedule.inverse_lambda(lambda_), state.t),
            lambda_=lambda_,
            h=jnp.minimum(
                jnp.minimum(self.tolerances.safety * state.h * growth, self.tolerances.max_step),
                self.lambda_end - lambda_,
            ),
            evaluations=state.evaluations + self.order,
        )

    def _lower_and_gain(self, state: _State) -> tuple[Samples, Samples]:
        """The lower-order state after the step, and the higher-order one less it, formed without
        cancellation.
        """
        x = state.x
        r1, r2 = (0.5, None) if self.order == 2 else (1.0 / 3.0, 2.0 / 3.0)
        _, base, w1, w2, w3 = self._part(state, 1.0)
        first, base_1, w1_1, _, _ = self._part(state, r1)
        m_0 = self._read(x, state.t)
        m_1 = self._read(base_1 * x + w1_1 * m_0, first)
        euler = base * x + w1 * m_0
        slope_1 = (m_1 - m_0) / r1
        bend = (0.5 * w1 if self.solver_type == "dpmsolver" else w2) * slope_1
        if r2 is None:
            return euler, bend
        second, base_2, w1_2, w2_2, _ = self._part(state, r2)
        m_2 = self._read(base_2 * x + w1_2 * m_0 + w2_2 * r2 * slope_1, second)
        slope_2 = (m_2 - m_0) / r2
        if self.solver_type == "dpmsolver":
            return euler + bend, w2 * slope_2 - bend
        d_1, d_2 = (r2 * slope_1 - r1 * slope_2) / (r2 - r1), 2.0 * (slope_2 - slope_1) / (r2 - r1)
        return euler + bend, w2 * d_1 + w3 * d_2 - bend

    def _read(self, x: Samples, t: Any) -> Samples:
        """What the network says of x, in the algorithm's form."""
        said = convert(
            self.noise_fn(x, t),
            x,
            t,
            self.schedule,
            source=self.prediction,
            target=FORMS[self.algorithm],
        )
        return self.threshold(said) if self.threshold is not None else said

    def _part(self, state: _State, share: float) -> tuple[Any, Any, Any, Any, Any]:
        """The time at this share of the step, and base, w1, w2 and w3 to it, spread over the axes
        of x.
        """
        h = share * state.h
        t = self.schedule.inverse_lambda(state.lambda_ + h)
        found = weights(self.algorithm, self.schedule, state.t, t, h)
        return t, *(spread(weight, state.x) for weight in found[:4])


def converged_samples(solution: Solution, tolerances: Tolerances) -> Samples:
    """The samples of a solve that converged; else UserError, or NaN samples inside an outer jit."""
    if isinstance(solution.converged, jax.core.Tracer):
        return jnp.where(solution.converged, solution.x, jnp.nan)
    if not bool(solution.converged):
        raise did_not_converge(tolerances)
    return solution.x


def did_not_converge(tolerances: Tolerances) -> UserError:
    """The error of an adaptive solve that used up its evaluations."""
    return UserError(
        f"the adaptive solver did not reach t_end within {tolerances.max_evaluations} network "
        f"evaluations at atol {tolerances.atol}, rtol {tolerances.rtol}: loosen the tolerances, or "
        "check the network's output for NaN"
    )
