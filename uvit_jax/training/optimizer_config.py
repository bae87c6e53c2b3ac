"""AdamW's settings; reading them needs no optimizer library."""

import dataclasses
import math

from uvit_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its learning rate.

    Attributes:
      lr: base learning rate.
      warmup_steps: the rate is lr * min(step / warmup_steps, 1), step counted from 0: the very
        first update moves nothing. 0 for none.
      decay: after the warm-up, "none" or "cosine" to zero at the last step.
      betas: decay rates of the two moments.
      eps: added to the root of the second moment.
      weight_decay: decoupled, times the learning rate, on all parameters.
      grad_clip: largest global norm of the gradient; 0 for no clipping.
    """

    lr: float = 2e-4
    warmup_steps: int = 5000
    decay: str = "none"
    betas: tuple[float, float] = (0.99, 0.99)
    eps: float = 1e-8
    weight_decay: float = 0.03
    grad_clip: float = 0.0

    def __post_init__(self) -> None:
        if self.decay not in ("none", "cosine"):
            raise UserError(f"decay is {self.decay!r}, expected 'none' or 'cosine'")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"betas is {self.betas}, expected two numbers from 0 to below 1")
        for field in ("lr", "warmup_steps", "eps", "weight_decay", "grad_clip"):
            if not 0 <= getattr(self, field) < math.inf:
                raise UserError(
                    f"{field} is {getattr(self, field)}, expected 0 or more, and finite"
                )
