"""Arithmetic on times in NumPy or JAX, whichever they come in."""

import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# Times and what is computed from them: float64 NumPy stays NumPy (coefficient tables), a JAX array
# keeps its dtype.
if TYPE_CHECKING:
    Times = Any  # the operators of the two have no common type
else:
    Times = Float[Array, "*shape"] | Float[np.ndarray, "*shape"] | float


def namespace(*values: Any) -> Any:
    """The module, NumPy or jax.numpy, that computes with `values`."""
    return jnp if any(isinstance(value, jax.Array) for value in values) else np


def log_one_minus_exp(x: Times) -> Times:
    """log(1 - exp(x)) for x < 0, elementwise, with no digits lost at either end."""
    xp = namespace(x)
    near_zero = x > -math.log(2.0)
    safe_near, safe_far = xp.where(near_zero, x, -1.0), xp.where(near_zero, -1.0, x)
    return xp.where(near_zero, xp.log(-xp.expm1(safe_near)), xp.log1p(-xp.exp(safe_far)))
