"""Initial weights, as the paper's code draws them."""

import math

import jax
from flax import nnx

# Linear layers and the position embedding: N(0, 0.02). The code truncates at +-2, a hundred
# standard deviations away.
NORMAL_02 = nnx.initializers.normal(0.02)


def torch_uniform(fan_in: int) -> nnx.Initializer:
    """PyTorch's default for convolutions, weight and bias alike: U(-1/sqrt(fan_in),
    1/sqrt(fan_in)).
    """
    bound = 1 / math.sqrt(fan_in)

    def init(key, shape, dtype=None, out_sharding=None):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
