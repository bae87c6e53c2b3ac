"""Between a host's memory and arrays that are spread over the devices of all hosts."""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Shaped


def place(tree: Any, shardings: Any) -> Any:
    """Arrays on the devices of a tree of host arrays, which every process holds whole and alike.

    No process asks another one: where `jax.device_put` would compare the values over all hosts,
    each only hands to its own devices what they need. `shardings` is one for all arrays, or a tree
    of one for each.
    """
    if isinstance(shardings, jax.sharding.Sharding):
        return jax.tree.map(lambda array: _place(array, shardings), tree)
    return jax.tree.map(_place, tree, shardings)


def _place(array: Any, sharding: jax.sharding.Sharding) -> Array:
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    host = np.asarray(array)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def fetch(x: Shaped[Array, "..."] | Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    """The whole array in every process's memory, wherever its parts are; where they are spread over
    several hosts, all processes must call this together.
    """
    if isinstance(x, np.ndarray) or x.is_fully_addressable:
        return np.asarray(x)
    if x.is_fully_replicated:
        return np.asarray(x.addressable_data(0))
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))
