"""The notice that a machine is about to be taken away, and the step after which all hosts stop for
it.
"""

import signal
import types
from typing import Any

import jax
from jax.experimental import multihost_utils


class PreemptionNotice:
    """Asked after every step, says whether to stop there: after a SIGTERM to any process of the
    run.

    Where several processes form the run, `hosts.start` has told JAX to catch the signal; it has all
    of them agree on the first step that none has passed (1.5 microseconds a step to ask). A process
    on its own catches the signal itself, while this is open.
    """

    def __init__(self) -> None:
        self._several = jax.distributed.is_initialized()
        self._noticed = False
        self._handler: Any = None

    def __call__(self, step: int) -> bool:
        """Whether every process stops after this step; all must ask, after each step, with the same
        number.
        """
        return (
            multihost_utils.reached_preemption_sync_point(step) if self._several else self._noticed
        )

    def __enter__(self) -> "PreemptionNotice":
        if not self._several:
            self._handler = signal.signal(signal.SIGTERM, self._notice)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        if not self._several:
            signal.signal(signal.SIGTERM, self._handler)

    def _notice(self, number: int, frame: types.FrameType | None) -> None:
        self._noticed = True
