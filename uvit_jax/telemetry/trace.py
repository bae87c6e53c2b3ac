"""The trace of a few steps, which xprof and TensorBoard's profiler open."""

import logging
import os
import pathlib

import jax

LOG = logging.getLogger("uvit_jax")


class StepTrace:
    """Traces some steps of a run into `<folder>/plugins/profile/<time>/`.

    A run that resumes among the steps traces those that are left.

    Args:
      steps: the steps in the trace; empty for none.
      folder: that the trace is written to.
    """

    def __init__(self, steps: range, folder: str | os.PathLike[str]):
        self._steps, self._folder, self._is_on = steps, pathlib.Path(folder), False

    def is_due(self, step: int) -> bool:
        """True before the first step to trace: earlier steps should have ended then."""
        return not self._is_on and step in self._steps

    def start(self) -> None:
        """Starts the trace."""
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # every call of Python would bury the steps
        jax.profiler.start_trace(str(self._folder), profiler_options=options)
        self._is_on = True

    def is_last(self, step: int) -> bool:
        """True after the last step to trace: it should have ended then."""
        return self._is_on and step + 1 not in self._steps

    def stop(self) -> None:
        """Writes the trace; does nothing where none is on, at the end of a run."""
        if self._is_on:
            self._is_on = False
            jax.profiler.stop_trace()
            LOG.info("wrote the trace of the steps to %s: xprof %s", self._folder, self._folder)


NO_TRACE = StepTrace(range(0), "")
