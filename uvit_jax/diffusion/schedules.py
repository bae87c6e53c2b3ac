"""Noise schedules: alpha(t) and sigma(t) of x_t = alpha x_0 + sigma noise, t in (0, 1]."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from uvit_jax.diffusion.elementwise import Times, log_one_minus_exp, namespace
from uvit_jax.diffusion.slow_stretch import slowed, speed, unslowed
from uvit_jax.errors import UserError

# Length of the stretch before t = 1, where alpha would vanish, that runs at half speed.
SLOW_COSINE, SLOW_FLOW = 1e-3, 1e-4
# Networks trained in continuous time get t * 999 (score_sde's convention).
CONTINUOUS_TIME = 999.0


class Schedule:
    """A noise schedule: x_t = alpha(t) x_0 + sigma(t) noise, for a time t in (0, 1] of any shape.

    All methods are elementwise and finite there, and alpha <= 1. They take and return NumPy or JAX
    arrays of one shape. A variance-preserving schedule (alpha^2 + sigma^2 = 1) defines `log_alpha`,
    `inverse_lambda` (of a logarithm l, any finite number) and `beta`; the rest follows.
    """

    path_form: ClassVar[Literal["v", "flow"]] = "v"

    def log_alpha(self, t: Times) -> Times:
        """log alpha(t)."""
        raise NotImplementedError

    def inverse_lambda(self, l: Times) -> Times:  # noqa: E741
        """The time t at which lambda(t) = l."""
        raise NotImplementedError

    def beta(self, t: Times) -> Times:
        """beta(t) of dx = -beta/2 x dt + sqrt(beta) dw, that is -2 d log_alpha / dt."""
        raise NotImplementedError

    def alpha(self, t: Times) -> Times:
        """alpha(t), the factor of the clean image."""
        return namespace(t).exp(self.log_alpha(t))

    def sigma(self, t: Times) -> Times:
        """sigma(t), the standard deviation of the noise."""
        xp = namespace(t)
        return xp.sqrt(-xp.expm1(2.0 * self.log_alpha(t)))

    def lambda_(self, t: Times) -> Times:
        """log(alpha / sigma), half the log signal-to-noise ratio."""
        log_alpha = self.log_alpha(t)
        return log_alpha - 0.5 * log_one_minus_exp(2.0 * log_alpha)

    def snr(self, t: Times) -> Times:
        """alpha^2 / sigma^2."""
        return 1.0 / namespace(t).expm1(-2.0 * self.log_alpha(t))

    def drift(self, t: Times) -> Times:
        """f(t) of the forward SDE dx = f(t) x dt + g(t) dw (arXiv:2011.13456)."""
        return -0.5 * self.beta(t)

    def squared_diffusion(self, t: Times) -> Times:
        """g(t)^2 of the forward SDE."""
        return self.beta(t)

    def prior_std(self, t: Times) -> Times:
        """Standard deviation of x_t where alpha is negligible, the scale of initial noise."""
        return namespace(t).ones_like(t)

    def path(self, t: Times) -> Times:
        """tau of the probability-flow ODE dx / d tau = `path_form`, which is bounded up to t = 1.

        With alpha = cos tau and sigma = sin tau that is v (arXiv:2202.00512, appendix D).
        """
        return namespace(t).arctan2(self.sigma(t), self.alpha(t))

    def model_time(self, t: Times) -> Times:
        """The time that the network gets."""
        return t * CONTINUOUS_TIME

    def sample_time(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "..."]:
        """Training times, uniform on (0, 1].

        Args:
          key: of the random numbers.
          shape: of the result, as (batch,).
        """
        return 1.0 - jax.random.uniform(key, shape)


@dataclasses.dataclass(frozen=True)
class VPLinear(Schedule):
    """The VP-SDE with beta(t) = beta_min + t (beta_max - beta_min) (arXiv:2011.13456, eq. 32).

    Attributes:
      beta_min: beta(0), above 0.
      beta_max: beta(1), at least beta_min.

    Raises:
      UserError: for values outside these bounds.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0.0 < self.beta_min <= self.beta_max:
            raise UserError(
                f"VPLinear needs 0 < beta_min <= beta_max, found {self.beta_min} and "
                f"{self.beta_max}"
            )

    def log_alpha(self, t: Times) -> Times:
        """log alpha(t) = -t^2 (beta_max - beta_min) / 4 - t beta_min / 2."""
        return -t * (0.5 * self.beta_min + t * (0.25 * (self.beta_max - self.beta_min)))

    def inverse_lambda(self, l: Times) -> Times:  # noqa: E741
        """The root of the quadratic log_alpha, in the form without cancellation."""
        xp = namespace(l)
        # -2 log_alpha, the integral of beta from 0 to t.
        integral = xp.logaddexp(-2.0 * l, xp.zeros_like(l))
        slope = self.beta_max - self.beta_min
        return 2.0 * integral / (self.beta_min + xp.sqrt(self.beta_min**2 + 2.0 * slope * integral))

    def beta(self, t: Times) -> Times:
        """beta_min + t (beta_max - beta_min)."""
        return self.beta_min + t * (self.beta_max - self.beta_min)


@dataclasses.dataclass(frozen=True)
class VPCosine(Schedule):
    """alpha(t) = cos(u) / cos(u_0), u = (t + s) / (1 + s) pi/2 (arXiv:2102.09672, eq. 17).

    alpha would vanish at t = 1, so the last thousandth runs at half speed and ends where t = 0.9995
    would be.

    Attributes:
      s: offset that keeps the first steps from being too small, above 0.

    Raises:
      UserError: for an s that is not above 0.
    """

    s: float = 0.008

    def __post_init__(self) -> None:
        if self.s <= 0.0:
            raise UserError(f"VPCosine needs s > 0, found {self.s}")

    @property
    def _rate(self) -> float:
        return 0.5 * math.pi / (1.0 + self.s)

    @property
    def _start(self) -> float:
        return self.s * self._rate

    def _to_go(self, t: Times) -> Times:
        """pi/2 - u, exact near t = 1, where 1 - t is."""
        return slowed(1.0 - t, SLOW_COSINE) * self._rate

    def log_alpha(self, t: Times) -> Times:
        """The log of cos(u) / cos(u_0).

        Near t = 0 from cos(u) / cos(u_0) = cos d - tan(u_0) sin d with d = u - u_0; near t = 1 from
        cos(u) = sin(pi/2 - u).
        """
        xp = namespace(t)
        early = t < 0.5
        d = xp.where(early, t, 0.25) * self._rate
        late = xp.where(early, 0.25 * self._rate, self._to_go(t))
        near_zero = xp.log1p(-2.0 * xp.square(xp.sin(0.5 * d)) - math.tan(self._start) * xp.sin(d))
        near_one = xp.log(xp.sin(late) / math.cos(self._start))
        return xp.where(early, near_zero, near_one)

    def inverse_lambda(self, l: Times) -> Times:  # noqa: E741
        """u from cos(u) = cos(u_0) alpha, then t by tan(u - u_0), whose terms are all positive."""
        xp = namespace(l)
        cos_0, sin_0 = math.cos(self._start), math.sin(self._start)
        alpha_squared = xp.exp(-xp.logaddexp(-2.0 * l, xp.zeros_like(l)))
        sigma_squared = xp.exp(-xp.logaddexp(2.0 * l, xp.zeros_like(l)))
        cos_u = cos_0 * xp.sqrt(alpha_squared)
        sin_u = xp.sqrt(sin_0**2 + cos_0**2 * sigma_squared)
        d = xp.arctan2(
            cos_0**2 * sigma_squared / (sin_u * cos_0 + cos_u * sin_0),
            cos_u * cos_0 + sin_u * sin_0,
        )
        to_go = xp.arctan2(cos_u, sin_u) / self._rate
        return xp.where(
            to_go > 2.0 * SLOW_COSINE, d / self._rate, 1.0 - unslowed(to_go, SLOW_COSINE)
        )

    def beta(self, t: Times) -> Times:
        """pi / (1 + s) tan(u), half of it in the slow stretch."""
        xp = namespace(t)
        early = t < 0.5
        late = xp.where(early, 0.5, self._to_go(t))
        tangent = xp.where(
            early, xp.tan((xp.where(early, t, 0.25) + self.s) * self._rate), 1.0 / xp.tan(late)
        )
        return 2.0 * self._rate * tangent * speed(1.0 - t, SLOW_COSINE)


@dataclasses.dataclass(frozen=True)
class VPDiscrete(Schedule):
    """A discrete schedule of N betas (arXiv:2206.00927, appendix D).

    log alpha is linear between the times n/N. Below 1/N it goes on along its first segment, kept
    just under 0. The network gets n = t N.

    Attributes:
      betas: beta_1 to beta_N, each in (0, 1).

    Raises:
      UserError: for a beta outside (0, 1), or fewer than two of them.
    """

    betas: Sequence[float] | np.ndarray

    def __post_init__(self) -> None:
        # A tuple, so that the schedule is hashable.
        object.__setattr__(self, "betas", tuple(float(beta) for beta in self.betas))
        if len(self.betas) < 2:
            raise UserError(f"VPDiscrete needs at least two betas, found {len(self.betas)}")
        wrong = [beta for beta in self.betas if not 0.0 < beta < 1.0]
        if wrong:
            raise UserError(f"VPDiscrete needs every beta in (0, 1), found {wrong[0]}")

    @classmethod
    def stable_diffusion(cls) -> "VPDiscrete":
        """Stable Diffusion's 1000 betas: evenly spaced roots, from 0.00085 to 0.012."""
        return cls(tuple((np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2).tolist()))

    @functools.cached_property
    def _nodes(self) -> np.ndarray:
        """log alpha at n/N for n = 0..N in float64; node 0 continues the first segment."""
        nodes = 0.5 * np.cumsum(np.log1p(-np.asarray(self.betas)))
        return np.concatenate([[2.0 * nodes[0] - nodes[1]], nodes])

    @property
    def _ceiling(self) -> float:
        """The largest log alpha: Stable Diffusion's first segment would cross 0 at t = 5e-6."""
        return 1e-6 * float(self._nodes[1])

    def _segment(self, position: Times) -> tuple[Times, Times, Times]:
        """The segment that holds t N = position: its number, its left node and its rise."""
        xp = namespace(position)
        index = xp.clip(xp.floor(position), 0, len(self.betas) - 1)
        left, rise = self._tables(index)
        return index, left, rise

    def _tables(self, index: Times) -> tuple[Times, Times]:
        xp = namespace(index)
        row = index.astype(int) if xp is jnp else np.asarray(index, int)
        dtype = np.asarray(index).dtype if xp is np else index.dtype
        left, rise = xp.asarray(self._nodes[:-1], dtype), xp.asarray(np.diff(self._nodes), dtype)
        return left[row], rise[row]

    def log_alpha(self, t: Times) -> Times:
        """Interpolated linearly between the nodes n/N."""
        position = t * len(self.betas)
        index, left, rise = self._segment(position)
        return namespace(t).minimum(left + (position - index) * rise, self._ceiling)

    def inverse_lambda(self, l: Times) -> Times:  # noqa: E741
        """The time on the segment that holds log_alpha = -log(1 + exp(-2 l)) / 2."""
        xp = namespace(l)
        log_alpha = xp.minimum(-0.5 * xp.logaddexp(-2.0 * l, xp.zeros_like(l)), self._ceiling)
        nodes = xp.asarray(-self._nodes[1:-1], log_alpha.dtype)
        index = xp.searchsorted(nodes, -log_alpha, side="right").astype(log_alpha.dtype)
        left, rise = self._tables(index)
        return xp.maximum((index + (log_alpha - left) / rise) / len(self.betas), 1e-9)

    def beta(self, t: Times) -> Times:
        """-2 d log_alpha / dt, constant on each segment."""
        _, _, rise = self._segment(t * len(self.betas))
        return -2.0 * len(self.betas) * rise

    def model_time(self, t: Times) -> Times:
        """n = t N."""
        return t * len(self.betas)

    def sample_time(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "..."]:
        """Training times n/N of the given shape, n uniform on 1..N."""
        steps = len(self.betas)
        return jax.random.randint(key, shape, 1, steps + 1).astype(float) / steps


@dataclasses.dataclass(frozen=True)
class RectifiedFlow(Schedule):
    """Straight lines: alpha = 1 - t, sigma = t (arXiv:2209.03003).

    alpha would vanish at t = 1, so the last 1e-4 runs at half speed and ends where t = 0.99995
    would be.
    """

    path_form: ClassVar[Literal["v", "flow"]] = "flow"

    def alpha(self, t: Times) -> Times:
        """1 - t."""
        return slowed(1.0 - t, SLOW_FLOW)

    def sigma(self, t: Times) -> Times:
        """t."""
        return namespace(t).where(1.0 - t < SLOW_FLOW, 1.0 - self.alpha(t), t)

    def log_alpha(self, t: Times) -> Times:
        """log(1 - t)."""
        xp = namespace(t)
        early = t < 0.5
        return xp.where(early, xp.log1p(-xp.where(early, t, 0.25)), xp.log(self.alpha(t)))

    def lambda_(self, t: Times) -> Times:
        """log((1 - t) / t)."""
        return self.log_alpha(t) - namespace(t).log(self.sigma(t))

    def snr(self, t: Times) -> Times:
        """((1 - t) / t)^2."""
        return namespace(t).square(self.alpha(t) / self.sigma(t))

    def inverse_lambda(self, l: Times) -> Times:  # noqa: E741
        """1 / (1 + exp(l))."""
        xp = namespace(l)
        sigma = xp.exp(-xp.logaddexp(l, xp.zeros_like(l)))
        to_go = xp.exp(-xp.logaddexp(-l, xp.zeros_like(l)))
        return xp.where(to_go >= SLOW_FLOW, sigma, 1.0 - unslowed(to_go, SLOW_FLOW))

    def prior_std(self, t: Times) -> Times:
        """sigma(t)."""
        return self.sigma(t)

    def path(self, t: Times) -> Times:
        """sigma: d alpha = -d sigma, so dx / d sigma = noise - x_0, the flow."""
        return self.sigma(t)

    def drift(self, t: Times) -> Times:
        """d log_alpha / dt = -1 / (1 - t), half of it in the slow stretch."""
        return -speed(1.0 - t, SLOW_FLOW) / self.alpha(t)

    def squared_diffusion(self, t: Times) -> Times:
        """d sigma^2 / dt - 2 f sigma^2 = 2 t / (1 - t), half of it in the slow stretch."""
        return 2.0 * speed(1.0 - t, SLOW_FLOW) * self.sigma(t) / self.alpha(t)
