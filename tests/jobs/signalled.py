"""Jobs that are sent a signal at a point of their own work, not of a clock: a busy machine does not
move it.
"""

import importlib
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence


def signalled(
    command: Sequence[str],
    method: str,
    *,
    call: int,
    seconds: float = 0.0,
    sends: signal.Signals = signal.SIGKILL,
) -> list[str]:
    """The command of a job that is sent a signal while it works.

    The signal comes at the latest when the job is done: its process waits for it. A job that never
    makes that call ends as it would have. An evaluation saves its state after every batch here, not
    once a minute.

    Args:
      command: as `runs.command` gives it.
      method: "package.module:Class.method".
      call: which of its calls, from 1, the signal comes in or after.
      seconds: from the start of that call to the signal.
    """
    interpreter, _, _, *arguments = command
    return [interpreter, "-m", __name__, sends.name, method, str(call), str(seconds), *arguments]


def _main() -> None:
    from uvit_jax import main
    from uvit_jax.jobs.evaluation import scoring

    scoring.SECONDS_BETWEEN_SAVES = 0.0
    name, method, call, seconds = sys.argv[1:5]
    del sys.argv[1:5]

    def send() -> None:
        time.sleep(float(seconds))
        os.kill(os.getpid(), signal.Signals[name])

    module, _, path = method.partition(":")
    owner_name, _, attribute = path.partition(".")
    owner = getattr(importlib.import_module(module), owner_name)
    called, calls, sender = (
        getattr(owner, attribute),
        [],
        threading.Thread(target=send, daemon=True),
    )

    def counted(*args, **kwargs):
        calls.append(None)
        if len(calls) == int(call):
            sender.start()
        return called(*args, **kwargs)

    setattr(owner, attribute, counted)
    try:
        main.run()
    finally:
        if sender.is_alive():
            sender.join()


if __name__ == "__main__":
    _main()
