"""DDIM with any eta, and the ancestral sampler of DDPM: both draw x_s given x_t and the x_0
predicted there.
"""

import numpy as np
from jaxtyping import Array, Float, Key

from uvit_jax.diffusion.schedules import Schedule
from uvit_jax.diffusion.spacing import Spacing, begin, time_grid
from uvit_jax.diffusion.tableau import (
    NoiseFn,
    Row,
    Samples,
    Threshold,
    Trajectory,
    check_steps,
    denoising_row,
    run,
)
from uvit_jax.errors import UserError

VARIANCES = ("small", "large")


def ddim(
    noise_fn: NoiseFn,
    x_T: Samples,
    schedule: Schedule,
    *,
    steps: int = 50,
    eta: float = 0.0,
    spacing: Spacing = "time_uniform",
    t_start: float = 1.0,
    t_end: float = 1e-3,
    denoise_to_zero: bool = False,
    threshold: Threshold | None = None,
    prediction: str = "noise",
    key: Key[Array, ""] | Key[Array, " b"] | None = None,
    noises: Float[Array, "n b *rest"] | None = None,
    return_trajectory: bool = False,
) -> Samples | tuple[Samples, Trajectory]:
    """Samples at t_end from x_T [b, ...] at t_start by `steps` evaluations (arXiv:2010.02502, eq.
    12 and 16).

    eta = 0 draws nothing and is DPM-Solver of order 1; eta = 1 draws with DDPM's posterior
    variance. `denoise_to_zero` ends with the x_0 predicted at t_end, one evaluation more. A
    predicted noise is first asked at `spacing.first_time`. Noise and errors as in `tableau.run`;
    UserError also for eta outside [0, 1].
    """
    check_steps(steps)
    check_eta(eta)
    x_T, t_start = begin(schedule, x_T, t_start, prediction, "x0")
    times = time_grid(schedule, spacing, steps, t_start, t_end)
    rows = _posterior_rows(schedule, times, eta, "small")
    if denoise_to_zero:
        rows.append(denoising_row(schedule, float(times[-1]), "x0"))
    return run(
        noise_fn,
        x_T,
        schedule,
        rows,
        ends_at=0.0 if denoise_to_zero else float(times[-1]),
        form="x0",
        prediction=prediction,
        threshold=threshold,
        key=key,
        noises=noises,
        return_trajectory=return_trajectory,
    )


def check_eta(eta: float) -> None:
    """Raises UserError unless 0 <= eta <= 1."""
    if not 0.0 <= eta <= 1.0:
        raise UserError(f"eta is {eta}, expected a number from 0 to 1")


def ddpm(
    noise_fn: NoiseFn,
    x_T: Samples,
    schedule: Schedule,
    *,
    steps: int = 1000,
    variance: str = "small",
    spacing: Spacing = "time_uniform",
    t_start: float = 1.0,
    t_end: float = 1e-3,
    threshold: Threshold | None = None,
    prediction: str = "noise",
    key: Key[Array, ""] | Key[Array, " b"] | None = None,
    noises: Float[Array, "n b *rest"] | None = None,
    return_trajectory: bool = False,
) -> Samples | tuple[Samples, Trajectory]:
    """Samples at time 0 from x_T [b, ...] at t_start: ancestral sampling (arXiv:2006.11239,
    algorithm 2) on any subset of the times.

    The network is asked at `steps` times from t_start to t_end; the last row is the x_0 predicted
    at t_end. With a discrete schedule, steps=1000 and the default ends these are n = 1000, ..., 1.
    variance: "small", that of the posterior, or "large", 1 - alpha_t^2 / alpha_s^2. Where it
    begins, noise and errors as in `ddim`.
    """
    check_steps(steps, at_least=2)
    if variance not in VARIANCES:
        raise UserError(f"variance is {variance!r}, expected one of {', '.join(VARIANCES)}")
    x_T, t_start = begin(schedule, x_T, t_start, prediction, "x0")
    times = time_grid(schedule, spacing, steps - 1, t_start, t_end)
    rows = [
        *_posterior_rows(schedule, times, 1.0, variance),
        denoising_row(schedule, float(times[-1]), "x0"),
    ]
    return run(
        noise_fn,
        x_T,
        schedule,
        rows,
        ends_at=0.0,
        form="x0",
        prediction=prediction,
        threshold=threshold,
        key=key,
        noises=noises,
        return_trajectory=return_trajectory,
    )


def _posterior_rows(schedule: Schedule, times: np.ndarray, eta: float, variance: str) -> list[Row]:
    """x_s = alpha_s x_0 + sqrt(sigma_s^2 - c^2) noise + c z, with noise = (x_t - alpha_t x_0) /
    sigma_t.
    """
    alpha, sigma = np.asarray(schedule.alpha(times)), np.asarray(schedule.sigma(times))
    lambdas = np.asarray(schedule.lambda_(times))
    share = -np.expm1(
        2.0 * (lambdas[:-1] - lambdas[1:])
    )  # the new noise in x_t given x_s, as a part of sigma_t^2
    kept = sigma[1:] * np.sqrt(1.0 - eta**2 * share) / sigma[:-1]
    weight = alpha[1:] - kept * alpha[:-1]
    # The posterior's variance is sigma_s^2 share, for a variance-preserving schedule sigma_s^2 /
    # sigma_t^2 (1 - alpha_t^2 / alpha_s^2).
    noise = eta * (sigma[1:] if variance == "small" else sigma[:-1]) * np.sqrt(share)
    columns = (times[:-1].tolist(), kept.tolist(), weight.tolist(), noise.tolist())
    return [Row(t, a, (w,), z) for t, a, w, z in zip(*columns, strict=True)]
