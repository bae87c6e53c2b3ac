"""What ends a job that was asked for rightly, in one sentence: short memory, a full disk, a process
that was killed.
"""

import errno
import os
import pathlib
import re
import signal
import sys
import traceback
from collections.abc import Iterator

import jax
from absl import logging as absl_logging

from uvit_jax.experiment.config import Experiment

# Of the operating system's errors those that a person can do something about, and how TensorStore
# quotes them.
_FULL = (errno.ENOSPC, errno.EDQUOT)
_LOST = (errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOTCONN)
# Programs ask for files that are not there, and go on: these count where they end the job.
_PERHAPS = (
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EACCES,
    errno.EPERM,
    errno.EFBIG,
    errno.EMFILE,
    errno.ENFILE,
)
_QUOTED = re.compile(r"os_error_code='(\d+)'")
_QUOTED_PATH = re.compile(r'(?:Failed|Error) \w+:? "(/[^"]+)"')
_WORKER = re.compile(r"Worker process was terminated unexpectedly with exit code (-?\d+)")
_DEVICE_MEMORY = re.compile(r"RESOURCE_EXHAUSTED|out of memory|ran out of memory", re.IGNORECASE)
_AMOUNT = re.compile(
    r"allocat\w+ ([\d.,]+ ?(?:bytes|[KMGT]i?B))|Used ([\d.]+\w) of ([\d.]+\w) hbm", re.IGNORECASE
)


def sentence(
    error: Exception, job: str, experiment: Experiment, workdir: pathlib.Path
) -> str | None:
    """What ended a job, why, and what to do; None for an error that only a traceback explains.

    An error of a library may hide another: the whole chain is looked at.
    """
    chain = list(_chain(error))
    text = "\n".join(str(one) for one in chain)
    number, path = _system_error(chain, text)
    if number in _FULL:
        return (
            f"{path or _written(job, experiment, workdir)}: {os.strerror(number)}: free some; "
            f"{_next(job, workdir)}"
        )
    if match := _WORKER.search(text):
        return (
            f"a process that reads data {_ended(int(match[1]))} (config.data.workers is "
            f"{experiment.data.workers}): lower config.data.workers or config.data.prefetch if "
            f"memory is short, or set workers to 0 to read in threads; {_next(job, workdir)}"
        )
    if any(isinstance(one, MemoryError) for one in chain) or number == errno.ENOMEM:
        return (
            f"the host is out of memory: lower {_fields(job, experiment, chain)}; "
            f"{_next(job, workdir)}"
        )
    if any(isinstance(one, jax.errors.JaxRuntimeError) for one in chain) and _DEVICE_MEMORY.search(
        text
    ):
        amount = _AMOUNT.search(text)
        asked = f" ({amount[0]})" if amount else ""
        return (
            f"the devices are out of memory{asked}: lower {_fields(job, experiment, chain)}; "
            f"{_next(job, workdir)}"
        )
    if number:
        where = path or _written(job, experiment, workdir)
        if number == errno.ENOENT:
            return (
                f"{where} is gone, expected it to stay while the job {job} runs; "
                f"{_next(job, workdir)}"
            )
        return (
            f"{where} can't be read or written any more ({os.strerror(number)}); "
            f"{_next(job, workdir)}"
        )
    return None


def quiet_libraries() -> None:
    """Lets no library print tracebacks of its own, of threads in the background, but at
    --verbosity=1: the job ends with the sentence, or the traceback, of the error that they lead to.
    """
    absl_logging.get_absl_logger().addFilter(lambda record: not record.exc_info or _is_verbose())
    unraisable = sys.unraisablehook

    def hook(found: "sys.UnraisableHookArgs") -> None:
        # TensorStore's, where a save has failed and its other parts come to their ends.
        if _is_verbose() or str(found.exc_value) != "Event loop is closed":
            unraisable(found)

    sys.unraisablehook = hook


def _is_verbose() -> bool:
    return absl_logging.get_verbosity() >= absl_logging.DEBUG


def log_traceback(error: BaseException) -> None:
    """Logs where an error came from, for --verbosity=1."""
    absl_logging.debug("%s", "".join(traceback.format_exception(error)))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it was raised from or beside, the first of all last."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _system_error(chain: list[BaseException], text: str) -> tuple[int, str]:
    """The number and the path of the operating system's error that was first; 0 and "" without."""
    for one in reversed(chain):
        numbers = (*_FULL, *_LOST, errno.ENOMEM, *(_PERHAPS if one is chain[0] else ()))
        if isinstance(one, OSError) and one.errno is not None and one.errno in numbers:
            return one.errno, str(one.filename or "")
    quoted, path = _QUOTED.search(text), _QUOTED_PATH.search(text)
    return int(quoted[1]) if quoted else 0, path[1] if path else ""


def _written(job: str, experiment: Experiment, workdir: pathlib.Path) -> str:
    """What a job writes to."""
    outs = {"sample": experiment.sample.out, "evaluate": experiment.evaluate.out}
    outs["prepare"] = experiment.prepare.out or experiment.data.source
    return outs.get(job) or str(workdir)


def _ended(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was ended by {name}" + (
        ", as the system does when memory is short" if -code == signal.SIGKILL else ""
    )


def _fields(job: str, experiment: Experiment, chain: list[BaseException]) -> str:
    """The fields that memory depends on, with their values, by what the job was doing."""
    files = {
        pathlib.Path(frame.filename).stem
        for one in chain
        for frame in traceback.extract_tb(one.__traceback__)
    }
    train, sample, model = experiment.train, experiment.sample, experiment.model
    decoder = (
        f"config.autoencoder.batch_size ({experiment.autoencoder.batch_size})"
        if experiment.autoencoder.name
        else ""
    )
    if job in ("train", "preflight") and not files & {"generation", "pictures"}:
        remat = f", or set config.model.remat ({model.remat!r})" if model.remat == "none" else ""
        return (
            f"config.train.batch_size ({train.batch_size}), or raise config.train.microbatches "
            f"({train.microbatches}){remat}"
        )
    if job == "train" and "train_evaluation" not in files:
        first = f"config.train.num_images ({train.num_images})"
    elif job == "prepare":
        first = f"config.prepare.batch_size ({experiment.prepare.batch_size})"
    elif job == "evaluate" and experiment.evaluate.samples:
        return (
            "the load of the devices by other programs, or set config.evaluate.dtype to 'bfloat16'"
        )
    else:
        first = f"config.sample.batch_size ({sample.batch_size})"
    return f"{first} or {decoder}" if decoder else first


def _next(job: str, workdir: pathlib.Path) -> str:
    """Where the same command goes on."""
    if job == "prepare":
        return "the same command goes on after the shards that are finished"
    if job != "train":
        return "then run the same command again"
    complete = workdir.glob("checkpoints/[0-9]*/_CHECKPOINT_METADATA")  # which orbax writes
    steps = [int(path.parent.name) for path in complete if path.parent.name.isdigit()]
    if not steps:
        return "no checkpoint was saved yet"
    return f"the same command goes on from the newest checkpoint, of step {max(steps):,}"
