"""The exponential moving average of the weights, the ones that are sampled from."""

import dataclasses
from typing import Any

import jax

from uvit_jax.errors import UserError

Params = dict[Any, Any]


@dataclasses.dataclass(frozen=True)
class EMAConfig:
    """The average after every step, from the first: ema = rate * ema + (1 - rate) * params."""

    rate: float = 0.9999

    def __post_init__(self):
        if not 0 <= self.rate < 1:
            raise UserError(f"rate is {self.rate}, expected a number from 0 to below 1")


def update(ema: Params, params: Params, rate: float | int) -> Params:
    """The next average, array by array."""
    return jax.tree.map(lambda e, p: rate * e + (1 - rate) * p, ema, params)
