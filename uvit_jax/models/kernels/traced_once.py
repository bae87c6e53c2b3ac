"""Kernels that a network's layers share."""

import functools
from collections.abc import Callable
from typing import Any

import jax


def traced_once(*static: str) -> Callable[[Callable[..., Any]], Any]:
    """For a function that runs kernels: it is traced and lowered once for each shape, not once a
    layer.

    In Python's hands a kernel is hundreds of operations. Those of 29 layers made the start of a
    train step ten seconds longer, whether its program was kept or not, and a minute with Hopper's
    attention.

    Args:
      static: names of arguments that are no arrays.
    """
    return functools.partial(jax.jit, static_argnames=static)
