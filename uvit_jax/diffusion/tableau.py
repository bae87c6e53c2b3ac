"""Tables of numbers for fixed-step solvers, and the one scan that runs them all.

A solver asks the network at times t_0, t_1, ... and each time forms its next state from numbers
known beforehand:

    x_next = base_i * x_base + sum_k history_ik * m_{i-k} + noise_i * z_i

m_i is the network's output at t_i (as noise, x_0, v or flow), x_base the last state that counts
(singlestep and Heun methods also pass through states in between), z_i fresh noise. Multistep and
singlestep DPM-Solvers, DDIM, DDPM, Heun and Euler-Maruyama differ only in these numbers, so the
network is called at one place of the program, whatever the method and however many the steps.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from uvit_jax.diffusion.predictions import check_prediction, coefficients
from uvit_jax.diffusion.schedules import Schedule
from uvit_jax.errors import UserError

Form = Literal["noise", "x0", "v", "flow"]
NoiseFn = Callable[[Float[Array, " b *rest"], Float[Array, " b"]], Float[Array, " b *rest"]]
Samples = Float[Array, "b *rest"]


class Trajectory(NamedTuple):
    """The states of a solve, from x_T to the sample, and their times."""

    states: Float[Array, "k b *rest"]
    times: Float[Array, " k"]


@dataclasses.dataclass(frozen=True)
class Row:
    """One evaluation of the network and the state after it.

    `history` weighs the evaluations, this one first; a row that does not `commit` makes a state in
    between, from which the next row does not start.
    """

    time: float
    base: float
    history: tuple[float, ...]
    noise: float = 0.0
    commit: bool = True


@dataclasses.dataclass(frozen=True)
class Tableau:
    """A fixed-step solve as data.

    Attributes:
      form: the form of the network's output that the rows weigh.
      rows: one for each evaluation.
      starts_at: time of x_T.
      ends_at: time of the state after the last row.
    """

    form: Form
    rows: tuple[Row, ...]
    starts_at: float
    ends_at: float


@dataclasses.dataclass(frozen=True)
class Threshold:
    """Dynamic thresholding of x_0 (arXiv:2205.11487, section 2.3), each example by its own bound.

    The bound is the `ratio` quantile of |x_0|, but not below `max_value`; x_0 is clipped there and
    the bound scaled to `max_value`. Raises UserError for a ratio outside (0, 1] or a maximum that
    is not positive.
    """

    ratio: float = 0.995
    max_value: float = 1.0

    def __post_init__(self) -> None:
        if not (0.0 < self.ratio <= 1.0 and self.max_value > 0.0):
            raise UserError(
                f"thresholding needs a ratio in (0, 1] and a maximum above 0, found {self.ratio}, "
                f"{self.max_value}"
            )

    def __call__(self, x0: Samples) -> Samples:
        """The thresholded x_0."""
        size = jnp.abs(x0).reshape(x0.shape[0], -1)
        bound = jnp.maximum(jnp.quantile(size, self.ratio, axis=1), self.max_value)
        bound = bound.reshape(-1, *(1,) * (x0.ndim - 1))
        return jnp.clip(x0, -bound, bound) * (self.max_value / bound)


def denoising_row(schedule: Schedule, t: float, form: Form) -> Row:
    """The row after which the state is the x_0 predicted at time t."""
    base, weight = coefficients(
        form, "x0", schedule.alpha(np.float64(t)), schedule.sigma(np.float64(t))
    )
    return Row(t, float(base), (float(weight),))


def denoised(tableau: Tableau, schedule: Schedule) -> Tableau:
    """The tableau with one row more, which ends with the x_0 predicted at its last time."""
    row = denoising_row(schedule, tableau.ends_at, tableau.form)
    return dataclasses.replace(tableau, rows=(*tableau.rows, row), ends_at=0.0)


def check_steps(steps: int, at_least: int = 1) -> None:
    """Raises UserError for fewer steps than the solver can make."""
    if steps < at_least:
        raise UserError(f"steps is {steps}, expected at least {at_least}")


def check_noise_fn(noise_fn: NoiseFn, x: Samples) -> None:
    """Raises UserError unless noise_fn(x, t) has the shape and dtype of x; computes nothing."""
    time = jax.ShapeDtypeStruct(x.shape[:1], x.dtype)
    out = jax.eval_shape(noise_fn, jax.ShapeDtypeStruct(x.shape, x.dtype), time)
    shape, dtype = getattr(out, "shape", None), getattr(out, "dtype", None)
    if shape != x.shape or dtype != x.dtype:
        found = f"{dtype}{list(shape)}" if shape is not None else type(out).__name__
        raise UserError(
            f"noise_fn returned {found} for x of {x.dtype}{list(x.shape)}, expected the same "
            f"shape and dtype"
        )


def run(
    noise_fn: NoiseFn,
    x_T: Samples,
    schedule: Schedule,
    tableau: Tableau,
    *,
    prediction: str = "noise",
    threshold: Threshold | None = None,
    key: Key[Array, ""] | Key[Array, " b"] | None = None,
    noises: Float[Array, "n b *rest"] | None = None,
    return_trajectory: bool = False,
) -> Samples | tuple[Samples, Trajectory]:
    """The state after the last row, [b, ...] in x_T's dtype.

    With `return_trajectory` also x_T and every committed state with their times, the last of which
    is `ends_at`. noise_fn(x, t) returns a `prediction` and the rows' coefficients apply to it as
    `form`; t is [b], in (0, 1]. Noise comes from `noises` (a draw a row) or from `key`: row i uses
    fold_in(key, i), and with one key per example each example's noise is its own key's. Raises
    UserError when a row needs noise and there is neither, or for a noise_fn of another shape or
    dtype.
    """
    check_prediction(prediction)
    check_noise_fn(noise_fn, x_T)
    table = _columns(tableau, schedule, prediction)
    stochastic, staged = bool(table["noise"].any()), not table["commit"].all()
    _check_noises(stochastic, key, noises, len(tableau.rows), x_T)
    depth = table["history"].shape[1]

    def body(carry: Any, row: Any) -> Any:
        x, x_base, past = carry
        out = noise_fn(x, jnp.broadcast_to(row["time"], x.shape[:1]))
        out = row["read"][0] * x + row["read"][1] * out if table["convert"] else out
        if threshold is not None:
            out = threshold(out)
        past = (out, *past[: depth - 1])
        x_next = row["base"] * (x_base if staged else x)
        for weight, value in zip(row["history"], past, strict=True):
            x_next = x_next + weight * value
        if stochastic:
            z = row["z"] if noises is not None else row_noise(key, row["index"], x)
            x_next = x_next + row["noise"] * z
        x_base = jnp.where(row["commit"], x_next, x_base) if staged else None
        return (x_next, x_base, past), (x_next if return_trajectory else None)

    xs: dict[str, Any] = {
        name: jnp.asarray(table[name], x_T.dtype)
        for name in ("time", "read", "base", "history", "noise")
    }
    xs |= {"commit": jnp.asarray(table["commit"]), "index": jnp.arange(len(tableau.rows))}
    if stochastic and noises is not None:
        xs["z"] = noises.astype(x_T.dtype)
    carry = (x_T, x_T if staged else None, (jnp.zeros_like(x_T),) * depth)
    (x, _, _), states = jax.lax.scan(body, carry, xs)
    if not return_trajectory:
        return x
    committed = np.flatnonzero(table["commit"])
    # The time of a committed state is that at which the next row asks the network.
    times = np.append(table["time"], tableau.ends_at)[[0, *(committed + 1)]]
    return x, Trajectory(
        jnp.concatenate([x_T[None], states[committed]]), jnp.asarray(times, x_T.dtype)
    )


def row_noise(key: Any, index: Any, x: Samples) -> Samples:
    """Standard normal noise like x for row `index`, from one key or from one key per example."""
    if key.ndim == 0:
        return jax.random.normal(jax.random.fold_in(key, index), x.shape, x.dtype)
    return jax.vmap(
        lambda own: jax.random.normal(jax.random.fold_in(own, index), x.shape[1:], x.dtype)
    )(key)


def _check_noises(stochastic: bool, key: Any, noises: Array | None, rows: int, x_T: Array) -> None:
    if stochastic and key is None and noises is None:
        raise UserError("this solver draws noise: give it a key, or the noises themselves")
    expected = (rows, *x_T.shape)
    if noises is not None and noises.shape != expected:
        raise UserError(
            f"noises have the shape {noises.shape}, expected {expected}: one draw per evaluation"
        )


def _columns(tableau: Tableau, schedule: Schedule, prediction: str) -> dict[str, Any]:
    """The rows as float64 arrays, and the map of the network's output at each time to `form`."""
    rows, form = tableau.rows, tableau.form
    times = np.asarray([row.time for row in rows])
    alpha, sigma = np.asarray(schedule.alpha(times)), np.asarray(schedule.sigma(times))
    depth = max(len(row.history) for row in rows)
    history = np.asarray([row.history + (0.0,) * (depth - len(row.history)) for row in rows])
    table: dict[str, Any] = {
        "time": times,
        "convert": form != prediction,
        "read": np.stack(coefficients(prediction, form, alpha, sigma), axis=1),
        "base": np.asarray([row.base for row in rows]),
        "history": history,
        "noise": np.asarray([row.noise for row in rows]),
        "commit": np.asarray([row.commit for row in rows]),
    }
    wrong = [
        name for name in ("read", "base", "history", "noise") if not np.isfinite(table[name]).all()
    ]
    if wrong:
        raise UserError(
            "the time grid has neighbours with the same log-SNR in float64, expected fewer or "
            "wider steps"
        )
    return table
