"""Guidance: wrappers that strengthen a conditional prediction, a function of (x, t)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from uvit_jax.diffusion.predictions import expand_like
from uvit_jax.errors import UserError

Predict = Callable[[Float[Array, " b *rest"], Float[Array, " b"]], Float[Array, " b *rest"]]
ConditionalPredict = Callable[
    [Float[Array, " b *rest"], Float[Array, " b"], Any], Float[Array, " b *rest"]
]
Scale = Float[Array, ""] | float | int

KINDS = ("classifier_free", "autoguidance")


def classifier_free(
    predict: ConditionalPredict,
    condition: Any,
    null_condition: Any,
    scale: Scale,
    *,
    interval: tuple[float, float] | None = None,
    rescale: float = 0.0,
) -> Predict:
    """Returns a function of (x, t), cond + scale (cond - uncond) (arXiv:2207.12598).

    `predict` is called once, on 2b rows: each example is followed by its unconditional twin, so a
    sharded batch doubles on its own devices.

    Args:
      predict: `predict(x, t, condition)`, which returns a prediction of x's shape `[b, ...]`.
      condition: array (or pytree) with leading axis b.
      null_condition: the empty condition, of the same shapes.
      scale: the U-ViT paper's s, one less than the usual w; may be traced.
      interval: (low, high) in t where guidance acts, None for everywhere; outside only the b
        conditional rows are computed (`guided`).
      rescale: how far the standard deviation is pulled back to the unguided one, 0 to 1.

    Raises:
      UserError: for an interval that is not 0 <= low < high <= 1, or a rescale outside [0, 1].
    """

    def pair(x: Any, t: Any) -> tuple[Any, Any]:
        both = jax.tree.map(_interleave, condition, null_condition)
        out = predict(_interleave(x, x), _interleave(t, t), both)
        out = out.reshape(x.shape[0], 2, *out.shape[1:])
        return out[:, 0], out[:, 1]

    return guided(
        pair, lambda x, t: predict(x, t, condition), scale, interval=interval, rescale=rescale
    )


def autoguidance(
    predict: Predict,
    weak_predict: Predict,
    scale: Scale,
    *,
    interval: tuple[float, float] | None = None,
    rescale: float = 0.0,
) -> Predict:
    """good + scale (good - weak): away from a weaker model of the same condition (2406.02507)."""
    return guided(
        lambda x, t: (predict(x, t), weak_predict(x, t)),
        predict,
        scale,
        interval=interval,
        rescale=rescale,
    )


def guided(
    pair: Callable[[Any, Any], tuple[Any, Any]],
    plain: Predict,
    scale: Scale,
    *,
    interval: tuple[float, float] | None = None,
    rescale: float = 0.0,
) -> Predict:
    """good + scale (good - bad) with (good, bad) = pair(x, t); `plain(x, t)` is good alone.

    `interval` = (low, high): guidance acts where low <= t <= high (arXiv:2404.07724, there in
    sigma); when no example of the batch is inside, `lax.cond` runs `plain`, so the other half's
    work is really skipped (under vmap both run). `rescale` in [0, 1] pulls the standard deviation
    of each guided prediction back to that of the unguided one (arXiv:2305.08891, eq. 15-16). Raises
    UserError for an interval that is not 0 <= low < high <= 1 or a rescale outside [0, 1].
    """
    check_interval(interval)
    check_rescale(rescale)

    def combine(x: Any, t: Any, strength: Any) -> Any:
        good, bad = pair(x, t)
        out = good + expand_like(strength, good) * (good - bad)
        if rescale:
            ratio = _std(good) / _std(out)
            out = out * (rescale * ratio + (1.0 - rescale))
        return out.astype(good.dtype)

    if interval is None:
        return lambda x, t: combine(x, t, jnp.asarray(scale, x.dtype))
    low, high = interval

    def within(x: Any, t: Any) -> Any:
        inside = (t >= low) & (t <= high)
        strength = jnp.where(inside, jnp.asarray(scale, x.dtype), 0.0)
        return jax.lax.cond(jnp.any(inside), lambda: combine(x, t, strength), lambda: plain(x, t))

    return within


def check_interval(interval: tuple[float, float] | None) -> None:
    """Raises UserError unless the interval is None or 0 <= low < high <= 1."""
    if interval is not None and not 0.0 <= interval[0] < interval[1] <= 1.0:
        raise UserError(f"interval is {tuple(interval)}, expected 0 <= low < high <= 1")


def check_rescale(rescale: float) -> None:
    """Raises UserError unless 0 <= rescale <= 1."""
    if not 0.0 <= rescale <= 1.0:
        raise UserError(f"guidance_rescale is {rescale}, expected a number from 0 to 1")


def _interleave(first: Array, second: Array) -> Array:
    """[2b, ...] with rows first_0, second_0, first_1, second_1, ..."""
    return jnp.stack([first, second], axis=1).reshape(2 * first.shape[0], *first.shape[1:])


def _std(x: Array) -> Array:
    return jnp.std(x, axis=tuple(range(1, x.ndim)), keepdims=True)
