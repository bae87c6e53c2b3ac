"""The exponential-integrator weights of all DPM-Solvers (arXiv:2206.00927, arXiv:2211.01095).

In lambda = log(alpha / sigma) the diffusion ODE has an exact solution with one integral left over
the network. With h = lambda_t - lambda_s, r = (lambda - lambda_s) / h and the network's Taylor
polynomial m + D1 r + D2 r^2 / 2 that integral is

    x_t = base x_s + C (phi_1(z) m + phi_2(z) D1 + phi_3(z) D2)

    dpmsolver         base = alpha_t / alpha_s            C = -sigma_t h     z = h      m: noise
    dpmsolver++       base = sigma_t / sigma_s            C = alpha_t h      z = -h     m: x_0
    sde-dpmsolver++   base = sigma_t / sigma_s exp(-h)    C = 2 alpha_t h    z = -2h    m: x_0

(propositions 3.1 of arXiv:2206.00927 and 4.1 of arXiv:2211.01095). The SDE adds sigma_t sqrt(1 -
exp(-2h)) noise.
"""

import math
from typing import Any, NamedTuple

from uvit_jax.diffusion.elementwise import Times, namespace
from uvit_jax.diffusion.schedules import Schedule
from uvit_jax.diffusion.tableau import Form

# The form of the network's output m, by solver.
FORMS: dict[str, Form] = {"dpmsolver++": "x0", "dpmsolver": "noise", "sde-dpmsolver++": "x0"}


def phi(order: int, z: Times) -> Times:
    """phi_k(z) = sum_n z^n / (n + k)!, so phi_1(z) = (e^z - 1) / z; all digits kept near z = 0."""
    xp = namespace(z)
    small = abs(z) < 1.0
    near, far = xp.where(small, z, 0.0), xp.where(small, 1.0, z)
    series = xp.zeros_like(near)
    for n in range(17, -1, -1):
        series = series * near + 1.0 / math.factorial(n + order)
    closed = xp.expm1(far) / far
    for k in range(1, order):
        closed = (closed - 1.0 / math.factorial(k)) / far
    return xp.where(small, series, closed)


class Weights(NamedTuple):
    """x_t = base x_s + w1 m + w2 D1 + w3 D2 + noise z."""

    base: Times
    w1: Times
    w2: Times
    w3: Times
    noise: Times


def weights(solver: str, schedule: Schedule, s: Times, t: Times, h: Times | None = None) -> Weights:
    """The weights of a step from s to t < s; NumPy in, NumPy out, else JAX.

    solver: a name in `FORMS`. h: lambda_t - lambda_s where it is known more exactly than by the
    difference.
    """
    xp: Any = namespace(s, t)
    alpha_s, alpha_t = schedule.alpha(s), schedule.alpha(t)
    sigma_s, sigma_t = schedule.sigma(s), schedule.sigma(t)
    h = schedule.lambda_(t) - schedule.lambda_(s) if h is None else h
    noise = 0.0 * h
    if solver == "dpmsolver":
        base, factor, z = alpha_t / alpha_s, -sigma_t * h, h
    elif solver == "dpmsolver++":
        base, factor, z = sigma_t / sigma_s, alpha_t * h, -h
    else:
        base, factor, z = sigma_t / sigma_s * xp.exp(-h), 2.0 * alpha_t * h, -2.0 * h
        noise = sigma_t * xp.sqrt(-xp.expm1(z))
    return Weights(base, factor * phi(1, z), factor * phi(2, z), factor * phi(3, z), noise)
