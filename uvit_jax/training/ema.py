"""The exponential moving average of the weights, the ones that are sampled from."""

import jax

from uvit_jax.training.state import Params


def update(ema: Params, params: Params, rate: float | int) -> Params:
    """The next average, array by array: ema + (1 - rate) (params - ema).

    The official code computes rate * ema + (1 - rate) * params, the same in real numbers. In
    float32 the two factors are rounded, their sum is not 1, and the average shrinks: by 1.7e-4 of
    itself at rate 0.9999, 1.4e-3 at 0.99999. Here 1 - rate is one factor, computed in float64 and
    rounded once, and an average equal to the parameters stays equal bit for bit. Over a few steps
    both forms agree to float32's rounding.
    """
    step = 1 - rate
    updated: Params = jax.tree.map(lambda e, p: e + step * (p - e), ema, params)
    return updated
