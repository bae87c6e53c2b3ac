"""The loggers by name, and the one place where they are opened.

A new logger is a module with a class that satisfies `Logger`, and one row of `LOGGERS`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from uvit_jax.extras import import_extra
from uvit_jax.telemetry.loggers.logger import LoggedRun, Logger


@dataclasses.dataclass(frozen=True)
class LoggerKind:
    """A kind of logger.

    Attributes:
      open: opens it; imports its module only then, since loggers' packages are slow to import.
      package: the module of an extra that it needs, and that extra's name; () for none.
    """

    open: Callable[[LoggedRun], Logger]
    package: tuple[str, str] | tuple[()] = ()


def _open_tensorboard(run: LoggedRun) -> Logger:
    from uvit_jax.telemetry.loggers.tensorboard import TensorBoard

    return TensorBoard(run)


def _open_wandb(run: LoggedRun) -> Logger:
    from uvit_jax.telemetry.loggers.wandb_run import WandbRun

    return WandbRun(run)


LOGGERS: Mapping[str, LoggerKind] = {
    "tensorboard": LoggerKind(_open_tensorboard),
    "wandb": LoggerKind(_open_wandb, package=("wandb", "wandb")),
}


def check_installed(names: Sequence[str]) -> None:
    """Raises a UserError naming the first of these loggers whose package isn't installed."""
    for name in names:
        if package := LOGGERS[name].package:
            import_extra(*package, f"config.train.loggers has {name!r}")


def open_loggers(names: Sequence[str], run: LoggedRun) -> list[Logger]:
    """The loggers of these names, each once.

    Raises:
      UserError: for one whose package isn't installed.
      OSError: for a workdir that can't be written.
    """
    check_installed(names)
    return [LOGGERS[name].open(run) for name in dict.fromkeys(names)]
