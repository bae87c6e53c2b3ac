"""DPM-Solver-12 and -23: step sizes chosen on the device, in one bounded `lax.while_loop`."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from uvit_jax.diffusion.exponential import FORMS, weights
from uvit_jax.diffusion.options import SolverOptions, Tolerances
from uvit_jax.diffusion.predictions import convert, expand_like
from uvit_jax.diffusion.schedules import Schedule
from uvit_jax.diffusion.spacing import check_ends
from uvit_jax.diffusion.start import first_time, renoised
from uvit_jax.diffusion.tableau import NoiseFn, Samples, check_noise_fn
from uvit_jax.errors import UserError


class Solution(NamedTuple):
    """The samples, the network evaluations made, and True if every example reached t_end."""

    x: Float[Array, " b *rest"]
    evaluations: Int[Array, ""]
    converged: Bool[Array, ""]


def solve(
    noise_fn: NoiseFn,
    x_T: Samples,
    schedule: Schedule,
    options: SolverOptions,
    *,
    solver: str = "dpmsolver++",
    prediction: str = "noise",
) -> Solution:
    """Samples from x_T [b, ...], by steps of order `options.order` (2 or 3) from t_start to t_end.

    Each step is compared with one of order - 1 that shares its evaluations (arXiv:2206.00927,
    appendix C). solver: a name in `exponential.FORMS`. noise_fn as in `dpm_solver.sample`. Raises
    UserError for bad input.
    """
    t_start = first_time(schedule, options.t_start, prediction, FORMS[solver])
    x_T = renoised(schedule, x_T, options.t_start, t_start)
    check_ends(t_start, options.t_end)
    check_noise_fn(noise_fn, x_T)
    b, dtype = x_T.shape[0], x_T.dtype
    t_first, t_last = jnp.full((b,), t_start, dtype), jnp.full((b,), options.t_end, dtype)
    stepper = _Stepper(
        noise_fn=noise_fn,
        schedule=schedule,
        options=options,
        solver=solver,
        prediction=prediction,
        lambda_end=schedule.lambda_(t_last),
    )
    start = _State(
        x=x_T,
        x_lower=x_T,
        t=t_first,
        lambda_=schedule.lambda_(t_first),
        h=jnp.full((b,), options.tolerances.first_step, dtype),
        evaluations=jnp.zeros((), jnp.int32),
    )
    end = jax.lax.while_loop(stepper.goes_on, stepper.attempt, start)
    return Solution(end.x, end.evaluations, ~jnp.any(stepper.is_open(end.t)))


class _State(NamedTuple):
    x: Any
    x_lower: Any  # the last accepted lower-order state: the relative tolerance is relative to it
    t: Any
    lambda_: Any
    h: Any
    evaluations: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Stepper:
    """The step of one solve and its end; fields are `solve`'s arguments and lambda at t_end."""

    noise_fn: NoiseFn
    schedule: Schedule
    options: SolverOptions
    solver: str
    prediction: str
    lambda_end: Any  # [b]

    def is_open(self, t: Any) -> Any:
        """True for the examples [b] that have not reached t_end."""
        return jnp.abs(t - self.options.t_end) > self.options.tolerances.time_error

    def goes_on(self, state: _State) -> Any:
        """True while an example is open and another attempt is within the bound."""
        return jnp.any(self.is_open(state.t)) & (
            state.evaluations + self.options.order <= self.options.tolerances.max_evaluations
        )

    def attempt(self, state: _State) -> _State:
        """The state after a step of the examples whose error allows it, with the next step size."""
        tolerances, order = self.options.tolerances, self.options.order
        lower, gain = self._lower_and_gain(state)
        atol, rtol = tolerances.atol, tolerances.rtol
        scale = jnp.maximum(atol, rtol * jnp.maximum(jnp.abs(lower), jnp.abs(state.x_lower)))
        error = jnp.sqrt(jnp.mean(jnp.square(gain / scale), axis=tuple(range(1, gain.ndim))))
        if not tolerances.per_example:
            error = jnp.broadcast_to(jnp.max(error), error.shape)
        accept = (error <= 1.0) & self.is_open(state.t)
        chosen = expand_like(accept, state.x).astype(bool)
        lambda_ = jnp.where(accept, state.lambda_ + state.h, state.lambda_)
        # A step size needs no more than float32, and the reference rounds here: its samples are
        # reproduced only so.
        growth = (error ** (-1.0 / order)).astype(jnp.float32).astype(state.x.dtype)
        return _State(
            x=jnp.where(chosen, lower + gain, state.x),
            x_lower=jnp.where(chosen, lower, state.x_lower),
            t=jnp.where(accept, self.schedule.inverse_lambda(lambda_), state.t),
            lambda_=lambda_,
            h=jnp.minimum(
                jnp.minimum(tolerances.safety * state.h * growth, tolerances.max_step),
                self.lambda_end - lambda_,
            ),
            evaluations=state.evaluations + order,
        )

    def _lower_and_gain(self, state: _State) -> tuple[Samples, Samples]:
        """The lower-order state after the step, and the higher-order one less it.

        The difference is formed without cancellation.
        """
        x, solver_type = state.x, self.options.solver_type
        r1, r2 = (0.5, None) if self.options.order == 2 else (1.0 / 3.0, 2.0 / 3.0)
        _, base, w1, w2, w3 = self._part(state, 1.0)
        first, base_1, w1_1, _, _ = self._part(state, r1)
        m_0 = self._read(x, state.t)
        m_1 = self._read(base_1 * x + w1_1 * m_0, first)
        euler = base * x + w1 * m_0
        slope_1 = (m_1 - m_0) / r1
        bend = (0.5 * w1 if solver_type == "dpmsolver" else w2) * slope_1
        if r2 is None:
            return euler, bend
        second, base_2, w1_2, w2_2, _ = self._part(state, r2)
        m_2 = self._read(base_2 * x + w1_2 * m_0 + w2_2 * r2 * slope_1, second)
        slope_2 = (m_2 - m_0) / r2
        if solver_type == "dpmsolver":
            return euler + bend, w2 * slope_2 - bend
        d_1, d_2 = (r2 * slope_1 - r1 * slope_2) / (r2 - r1), 2.0 * (slope_2 - slope_1) / (r2 - r1)
        return euler + bend, w2 * d_1 + w3 * d_2 - bend

    def _read(self, x: Samples, t: Any) -> Samples:
        """The network's output at x, in the solver's form."""
        source, target = self.prediction, FORMS[self.solver]
        out = convert(self.noise_fn(x, t), x, t, self.schedule, source=source, target=target)
        return self.options.threshold(out) if self.options.threshold is not None else out

    def _part(self, state: _State, share: float) -> tuple[Any, Any, Any, Any, Any]:
        """The time at this share of the step, and base, w1, w2, w3 to it, with the axes of x."""
        h = share * state.h
        t = self.schedule.inverse_lambda(state.lambda_ + h)
        found = weights(self.solver, self.schedule, state.t, t, h)
        return t, *(expand_like(weight, state.x) for weight in found[:4])


def converged_samples(solution: Solution, tolerances: Tolerances) -> Samples:
    """Samples of a solve that converged; else raises UserError, or gives NaN inside a jit."""
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
