"""The predictions of a network (noise, x0, v, flow velocity) and the linear maps between them."""

from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Array, Float

from uvit_jax.diffusion.elementwise import Times
from uvit_jax.diffusion.schedules import Schedule
from uvit_jax.errors import UserError

Prediction = Literal["noise", "x0", "v", "flow"]
PREDICTIONS: tuple[str, ...] = get_args(Prediction)


def check_prediction(name: str, field: str = "prediction") -> None:
    """Raises UserError unless `name` is a known prediction."""
    if name not in PREDICTIONS:
        raise UserError(f"{field} is {name!r}, expected one of {', '.join(PREDICTIONS)}")


def noise_and_signal(
    prediction: str, alpha: Times, sigma: Times
) -> tuple[tuple[Times, Times], tuple[Times, Times]]:
    """((a, b), (c, d)) with noise = a x_t + b prediction and x_0 = c x_t + d prediction.

    From x_t = alpha x_0 + sigma noise and v = alpha noise - sigma x_0 (arXiv:2202.00512) or flow =
    noise - x_0 (arXiv:2209.03003).
    """
    check_prediction(prediction)
    zero, one = 0.0 * alpha, 0.0 * alpha + 1.0
    if prediction == "noise":
        return (zero, one), (1.0 / alpha, -sigma / alpha)
    if prediction == "x0":
        return (1.0 / sigma, -alpha / sigma), (zero, one)
    if prediction == "v":
        norm = alpha * alpha + sigma * sigma
        return (sigma / norm, alpha / norm), (alpha / norm, -sigma / norm)
    total = alpha + sigma
    return (1.0 / total, alpha / total), (1.0 / total, -sigma / total)


def coefficients(source: str, target: str, alpha: Times, sigma: Times) -> tuple[Times, Times]:
    """(p, q) with target = p x_t + q source, elementwise in alpha and sigma."""
    check_prediction(target, "target")
    if source == target:
        return 0.0 * alpha, 0.0 * alpha + 1.0
    (a, b), (c, d) = noise_and_signal(source, alpha, sigma)
    if target == "noise":
        return a, b
    if target == "x0":
        return c, d
    if target == "v":
        return alpha * a - sigma * c, alpha * b - sigma * d
    return a - c, b - d


def convert(
    pred: Float[Array, " b *rest"],
    x_t: Float[Array, " b *rest"],
    t: Float[Array, " b"] | Float[Array, ""],
    schedule: Schedule,
    *,
    source: str,
    target: str,
) -> Float[Array, " b *rest"]:
    """`pred`, a prediction `source` at x_t and t in (0, 1], as the equal prediction `target`.

    Raises UserError for a name outside noise, x0, v, flow.
    """
    check_prediction(source, "source")
    p, q = coefficients(source, target, schedule.alpha(t), schedule.sigma(t))
    p, q = (expand_like(value, x_t) for value in (p, q))
    converted: Array = (p * x_t + q * pred).astype(pred.dtype)
    return converted


def expand_like(value: Any, like: Float[Array, " b *rest"]) -> Any:
    """`value` ([b] or a scalar), axes of length 1 appended to broadcast with `like`; its dtype."""
    if np.ndim(value) == 0:
        return value
    return value.reshape(value.shape + (1,) * (like.ndim - 1)).astype(like.dtype)
