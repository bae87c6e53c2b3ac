"""Settings of the moving average; reading them imports nothing heavy."""

import dataclasses

from uvit_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class EMAConfig:
    """The average after every step, from the first: ema = rate * ema + (1 - rate) * params.

    Attributes:
      rate: share of the average that a step keeps, from 0 (no average) to below 1.
    """

    rate: float = 0.9999

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise UserError(f"rate is {self.rate}, expected a number from 0 to below 1")
