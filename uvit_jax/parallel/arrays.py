"""Copies between a host's memory and arrays sharded over the devices of all hosts."""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Shaped


def place(tree: Any, shardings: Any) -> Any:
    """Puts a tree of host arrays, which are equal on all processes, on the devices.

    No process communicates with another: `jax.device_put` would compare the values over all hosts,
    while here each only copies to its own devices what they need.

    Args:
      tree: whole arrays in each process's memory.
      shardings: one for all arrays, or a tree with one for each.
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
    """Returns the whole array in every process's memory.

    A collective if the array is sharded over several hosts: then all processes must call it.
    """
    if isinstance(x, np.ndarray) or x.is_fully_addressable:
        return np.asarray(x)
    if x.is_fully_replicated:
        return np.asarray(x.addressable_data(0))
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))
