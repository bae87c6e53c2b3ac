"""The interface that every logger has, and the run that one is opened for."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8


@dataclasses.dataclass(frozen=True)
class LoggedRun:
    """The run that a logger is opened for.

    Attributes:
      workdir: its folder, which exists.
      resume_step: number of steps in the state that it resumes from.
      config: its config, of JSON's types.
    """

    workdir: pathlib.Path
    resume_step: int
    config: Mapping[str, Any]


@runtime_checkable
class Logger(Protocol):
    """A place for numbers and pictures, on process 0. Steps never go back."""

    def scalars(self, step: int, values: Mapping[str, float | int]) -> None:
        """Adds numbers of a step, which may not be finite; a step may have several calls."""
        ...

    def image(self, tag: str, step: int, image: UInt8[np.ndarray, "h w c"]) -> None:
        """Adds a picture of 1, 3 or 4 channels."""
        ...

    def sync(self) -> None:
        """Makes what was added survive a kill, as far as the logger can."""
        ...

    def close(self, *, failed: bool) -> None:
        """Ends the logging; failed: True where the run ends with an error."""
        ...
