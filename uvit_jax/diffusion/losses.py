"""The training loss: the squared error of the network's prediction."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from uvit_jax.diffusion.predictions import check_prediction, expand_like, noise_and_signal
from uvit_jax.diffusion.schedules import Schedule
from uvit_jax.errors import UserError

WEIGHTINGS = ("none", "min_snr")


def denoising_loss(
    predict: Callable[[Float[Array, " b *rest"], Float[Array, " b"]], Float[Array, " b *rest"]],
    x0: Float[Array, " b *rest"],
    t: Float[Array, " b"],
    noise: Float[Array, " b *rest"],
    schedule: Schedule,
    *,
    prediction: str = "noise",
    weighting: str = "none",
    min_snr_gamma: float = 5.0,
) -> Float[Array, " b"]:
    """The squared error of each example `[b]`, averaged over pixels, in float32 (float64 as x0).

    With prediction="noise" and no weighting this is L_simple (arXiv:2006.11239, eq. 14).

    Args:
      predict: `predict(x_t, model_time)` sees x_t = alpha x0 + sigma noise and the network's own
        time, and returns a `prediction` of x_t's shape.
      x0: clean images or latents `[b, ...]`.
      t: times `[b]` in (0, 1], as of `Schedule.sample_time`.
      noise: standard normal, of x0's shape.
      schedule: alpha and sigma.
      prediction: target of `predict`: "noise", "x0", "v" or "flow".
      weighting: "none"; or "min_snr", which weighs the error of the implied x_0 by min(snr, gamma)
        (arXiv:2303.09556), for noise min(snr, gamma) / snr.
      min_snr_gamma: that gamma.

    Raises:
      UserError: for an unknown prediction or weighting.
    """
    check_prediction(prediction)
    if weighting not in WEIGHTINGS:
        raise UserError(f"weighting is {weighting!r}, expected one of {', '.join(WEIGHTINGS)}")
    dtype = jnp.promote_types(x0.dtype, jnp.float32)
    x0, t, noise = x0.astype(dtype), t.astype(dtype), noise.astype(dtype)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    wide_alpha, wide_sigma = expand_like(alpha, x0), expand_like(sigma, x0)
    targets = {
        "noise": noise,
        "x0": x0,
        "v": wide_alpha * noise - wide_sigma * x0,
        "flow": noise - x0,
    }
    error = (
        predict(wide_alpha * x0 + wide_sigma * noise, schedule.model_time(t)).astype(dtype)
        - targets[prediction]
    )
    loss = jnp.mean(jnp.square(error), axis=tuple(range(1, error.ndim)))
    if weighting == "none":
        return loss
    _, (_, x0_per_prediction) = noise_and_signal(prediction, alpha, sigma)
    return loss * jnp.minimum(schedule.snr(t), min_snr_gamma) * jnp.square(x0_per_prediction)
