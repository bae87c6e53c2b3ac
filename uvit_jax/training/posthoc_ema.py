"""EMAs of other lengths after training, as combinations of the stored ones.

Section 3.2 of arXiv:2312.02696, for the average that training keeps, with one rate for the whole
run. An average's profile is the weight of each step's parameters in it: at step t and rate r,
(1 - r) r^(t - s) for s = 1..t, and r^t for step 0, of which the average starts as a copy
(`step.apply_gradients` averages the parameters that it has just updated). The raw parameters are
the average of rate 0.

At lengths near that of the training, step 0 alone has much of an average's weight: a run that
keeps checkpoints keeps that of step 0, too. Without it this weight falls on the steps up to the
first checkpoint; `misplaced` measures it.
"""

import dataclasses
import functools
import logging
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from uvit_jax.errors import UserError
from uvit_jax.training.checkpoint import Checkpoints
from uvit_jax.training.state import Params

LOG = logging.getLogger("uvit_jax")

# From this relative error of the profile on, `ema_of_length` warns: checkpoints as far apart as the
# shorter of the two lengths give 0.14 to 0.28, half as far about half of it.
LARGE_ERROR = 0.3
# And from this share of the weight that falls after step 0 in place of on it.
LARGE_MISPLACED = 0.01
# Checkpoints are combined back to where the target weighs what is older still with less than this,
# and one more. Those further back lower the error by little: with them, what is missing from a sum
# of 1 spreads to parameters of long ago.
REACH = 1e-3
# Coefficients below float32's resolution are rounding errors: not worth reading a checkpoint.
NEGLIGIBLE = 1e-9


@dataclasses.dataclass(frozen=True)
class Combination:
    """A weighted mean of the EMAs and raw parameters of checkpoints.

    Attributes:
      steps: those of the checkpoints, ascending.
      ema: the coefficient of each one's EMA.
      params: the coefficient of each one's raw parameters; all coefficients together sum to 1.
      error: ||target - combination|| / ||target||, the norms over the profiles from step 1 on: step
        0, a single point of r^t, would outweigh all the others. It is the relative error of the
        result for parameters that are independent from step to step; those of a training change
        slowly, and err less.
      misplaced: the share of the weight that belongs on step 0 and falls on the steps up to the
        first checkpoint, or the other way round; 0 where step 0 was kept. Between the other
        checkpoints the weight is the target's.
    """

    steps: tuple[int, ...]
    ema: tuple[float, ...]
    params: tuple[float, ...]
    error: float
    misplaced: float


@dataclasses.dataclass(frozen=True)
class Profile:
    """The weights of steps 0..step in the average of a rate at a step; they sum to 1."""

    step: int
    rate: float | int

    @property
    def last(self) -> float:
        """The weight of the parameters of the step itself."""
        return 1.0 if self.step == 0 else 1.0 - self.rate

    def inner(self, other: "Profile", *, after: int = -1, until: int | None = None) -> float:
        """The inner product of two profiles over steps s, after < s <= until (default: all)."""
        r, q = self.rate, other.rate
        top = min(self.step, other.step) if until is None else min(self.step, other.step, until)
        value = r**self.step * q**other.step if after < 0 <= top else 0.0
        terms = top - max(after, 0)
        if terms > 0:
            newest = (1 - r) * r ** (self.step - top) * (1 - q) * q ** (other.step - top)
            value += newest * _geometric_sum(r, q, terms)
        return float(value)


def nearest_combination(
    steps: Sequence[int], rate: float | int, target_rate: float | int, target_step: int
) -> Combination:
    """The combination of checkpoints whose profile is nearest, in least squares, to another EMA's.

    Between one checkpoint and the next it has the same weight as that EMA.

    The profiles of neighbouring checkpoints are almost multiples of each other: their Gram matrix
    is near-singular. But an average less the decayed one of the checkpoint before is its profile
    cut to the steps since that checkpoint. So what checkpoints span has an orthogonal basis, two
    vectors for each interval between them: the single step at its end (the raw parameters) and the
    cut average without that step. In this basis least squares is a division for each vector, and
    the condition on the sum of weights one Lagrange multiplier for each interval. That condition
    matters more than the squares: parameters change slowly, so weight may move to a neighbouring
    step, but not to another part of the training. The first interval begins with step 0. Inner
    products are geometric series: no array is as long as the training.

    Args:
      steps: of the checkpoints, at least one; those beyond the first one from `target_step` on
        aren't used.
      rate: of the EMA in them, in [0, 1).
      target_rate: of the EMA wanted, in [0, 1).
      target_step: where its profile ends.
    """
    steps = sorted(set(steps))
    target = Profile(target_step, target_rate)
    used = _within_reach(steps, target)
    averages, before = [Profile(step, rate) for step in used], [-1, *used[:-1]]
    cuts = list(zip(averages, before, strict=True))

    # --- The basis, an interval each: norms, sums of weights and inner products with the target of
    # its cut average, the target's weight on its last step, on all of it, and the target's norm.
    # Between neighbouring steps nothing is left to cut. Step 0 is in no norm.
    square = np.array([a.inner(a, after=max(b, 0), until=a.step - 1) for a, b in cuts])
    mass = np.array([_mass_of_cut(a, b) for a, b in cuts])
    product = np.array([a.inner(target, after=max(b, 0), until=a.step - 1) for a, b in cuts])
    last = np.array([Profile(step, 0).inner(target, after=0) for step in used])
    wanted = np.diff([0.0, *(target.rate ** max(target.step - step, 0) for step in used[:-1]), 1.0])
    inverse = np.divide(1.0, square, out=np.zeros_like(square), where=square > 0)

    # --- Least squares in each interval, under the condition that its weights sum to the target's.
    shift = (wanted - last - mass * product * inverse) / (mass**2 * inverse + 1)
    cut, single = (product + shift * mass) * inverse, last + shift
    squares = cut * (cut * square - 2 * product) + np.where(
        np.array(used) > 0, single * (single - 2 * last), 0.0
    )
    norm2 = target.inner(target, after=0)
    residual2 = max(norm2 + float(squares.sum()), 0.0)
    on_step_0 = cut[0] * rate ** used[0] if used[0] else single[0]

    # --- Back to what is stored: a cut average is this one, less what is left of the one before and
    # less its last step.
    decay = np.array([rate ** (a.step - b) for a, b in cuts[1:]])
    ema = cut - np.append(cut[1:] * decay, 0.0)
    params = single - cut * [average.last for average in averages]
    if not used[0]:  # Both are the same there.
        ema[0], params[0] = ema[0] + params[0], 0.0
    return Combination(
        tuple(steps),
        _for_all_steps(ema, used, steps),
        _for_all_steps(params, used, steps),
        error=math.sqrt(residual2 / norm2) if norm2 else 0.0,
        misplaced=abs(float(target.rate**target.step - on_step_0)),
    )


def average(checkpoints: Checkpoints, template: Params, combination: Combination) -> Params:
    """The combination's weights, float32, with the shapes and the shardings of `template`.

    Memory holds the sum and one set of weights at a time; those of coefficient 0 are not read.

    Raises:
      UserError: if a checkpoint is missing or damaged, or its arrays are not those of `template`.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, template)

    @functools.partial(jax.jit, out_shardings=shardings)
    def zeros() -> Params:
        empty: Params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), template)
        return empty

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=shardings)
    def add(total: Params, weights: Params, coefficient: jax.Array) -> Params:
        added: Params = jax.tree.map(
            lambda t, w: t + coefficient * w.astype(jnp.float32), total, weights
        )
        return added

    total: Params = zeros()
    for step, *coefficients in zip(
        combination.steps, combination.ema, combination.params, strict=True
    ):
        for weights, coefficient in zip(("ema", "params"), coefficients, strict=True):
            if coefficient:
                # Without a name, which would keep them while the next ones are read.
                total = add(
                    total,
                    checkpoints.restore_weights(template, weights=weights, step=step)[0],
                    np.float32(coefficient),
                )
    return total


def combination_for(
    checkpoints: Checkpoints, *, rate: float | int, length: float | int, step: int | None = None
) -> Combination:
    """The combination that `ema_of_length` averages, of the same arguments; reads no weights.

    Raises:
      UserError: if `length` is below 1, if there is no such step, or if there is no earlier
        checkpoint to combine it with.
    """
    if not 1 <= length < math.inf:
        raise UserError(f"the EMA's length is {length}, expected a number of steps from 1 on")
    step = checkpoints.find_step(step)
    stored, target_rate = 1 / (1 - rate), 1 - 1 / length
    if math.isclose(length, stored, rel_tol=1e-9):
        target_rate = rate
    steps = [other for other in checkpoints.steps if other <= step]
    if len(steps) < 2 and step and target_rate not in (rate, 0):
        raise UserError(
            f"{checkpoints.directory} holds 1 checkpoint up to step {step}, expected 2 or more for "
            f"an EMA of another length ({length:g}) than the stored one ({stored:g}): "
            "config.train.keep_every keeps more of them"
        )
    return nearest_combination(steps, rate, target_rate, step)


def ema_of_length(
    checkpoints: Checkpoints,
    template: Params,
    *,
    rate: float | int,
    length: float | int,
    step: int | None = None,
) -> tuple[Params, Combination]:
    """The EMA of a length at a stored step (default: the newest), and the combination it is.

    Logs a warning where the combination is rough.

    Args:
      checkpoints: of one run; all its processes call this together.
      template: shapes, dtypes and shardings of the parameters.
      rate: of the EMA that the run kept, the same from its first step on (`Checkpoints.ema_rates`
        knows).
      length: of the EMA wanted, in steps: its rate is 1 - 1 / length. 1 gives the raw parameters.
      step: of a checkpoint.

    Raises:
      UserError: as `combination_for`, and for a checkpoint that can't be read.
    """
    combination = combination_for(checkpoints, rate=rate, length=length, step=step)
    which = f"the EMA of length {length:g} at step {combination.steps[-1]}"
    if combination.error > LARGE_ERROR:
        LOG.warning(
            "warning: %s is rough: the nearest combination of %d checkpoints is off by %.0f%%; "
            "more of them come closer, kept with a config.train.keep_every of at most %d",
            which,
            len(combination.steps),
            100 * combination.error,
            max(round(min(length, 1 / (1 - rate))), 1),
        )
    if combination.misplaced > LARGE_MISPLACED:
        LOG.warning(
            "warning: %s is not what training would have kept: %.0f%% of its weight belongs on "
            "step 0, of which there is no checkpoint, and lies on the steps up to %d; a run begun "
            "with config.train.keep_every keeps it",
            which,
            100 * combination.misplaced,
            combination.steps[0],
        )
    return average(checkpoints, template, combination), combination


def _geometric_sum(r: float | int, q: float | int, terms: int) -> float:
    """1 + rq + (rq)^2 + ..., of rates in [0, 1): no digit is lost where both are near 1."""
    if r * q == 0:
        return 1.0
    return -math.expm1(terms * (math.log(r) + math.log(q))) / ((1 - r) + r * (1 - q))


def _mass_of_cut(average: Profile, before: int) -> float:
    """The sum of the weights of the steps after `before` (-1: of all) without the last."""
    return (
        1.0 - average.last if before < 0 else average.rate - average.rate ** (average.step - before)
    )


def _within_reach(steps: Sequence[int], target: Profile) -> list[int]:
    """The steps that `nearest_combination` uses.

    They go up to the first from the target's on, and back to where it weighs next to nothing.
    """
    last = next((i for i, step in enumerate(steps) if step >= target.step), len(steps) - 1)
    first = next(
        i
        for i, step in enumerate(steps)
        if i == last or target.rate ** (target.step - step) >= REACH
    )
    return list(steps[max(first - 1, 0) : last + 1])


def _for_all_steps(
    coefficients: np.ndarray, used: Sequence[int], steps: Sequence[int]
) -> tuple[float, ...]:
    """One coefficient for each of all steps."""
    of = {
        step: float(value)
        for step, value in zip(used, coefficients, strict=True)
        if abs(value) > NEGLIGIBLE
    }
    return tuple(of.get(step, 0.0) for step in steps)
