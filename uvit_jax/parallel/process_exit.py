"""End of a process of a run, with or without waiting for the others."""

import os
import sys
import time
from typing import NoReturn

import jax

from uvit_jax.parallel import hosts

# Process 0 runs the service that joins all processes. Before it ends alone, it leaves the others
# this long to print their own errors.
_SECONDS_TO_SPEAK = 2.0


def leave(code: int, *, agreed: bool) -> NoReturn:
    """Ends this process with this exit code.

    agreed: True if every process of the run reaches this exit: they wait for each other. With
      False the others may be inside a collective; this process does not wait for them, and JAX
      ends them when it is missed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if hosts.are_several():
        if not agreed:
            time.sleep(_SECONDS_TO_SPEAK if hosts.is_first() else 0)
            os._exit(code)
        jax.distributed.shutdown()
    sys.exit(code)
