"""What was asked for and does not fit the hardware or the shape: said once, and never a crash."""

import functools
import logging

LOG = logging.getLogger("uvit_jax")


@functools.cache
def say_once(message: str) -> None:
    """A warning that is logged the first time."""
    LOG.warning(message)
