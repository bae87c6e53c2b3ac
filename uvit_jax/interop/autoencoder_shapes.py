"""Channel counts read from an autoencoder's weights, for either layout module."""

import numpy as np

from uvit_jax.errors import UserError
from uvit_jax.interop.state_dict import StateDict

UNKNOWN = "the weights are not of an autoencoder known here"


def conv_shape(state_dict: StateDict, name: str) -> tuple[int, int]:
    """Channels out and in of a convolution, by the name of its weight.

    Raises:
      UserError: for weights without it, or one that is not of a convolution.
    """
    if name not in state_dict:
        raise UserError(f"{UNKNOWN}: they lack {name}")
    shape = np.shape(state_dict[name])
    if len(shape) != 4:
        raise UserError(
            f"{name} has shape {shape}, expected [out, in, kernel height, kernel width]"
        )
    return shape[0], shape[1]
