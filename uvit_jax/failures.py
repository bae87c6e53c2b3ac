"""Failures that are not mistakes in the command (memory, disk, a killed process) as sentences."""

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

# The operating system's errors that a person can do something about; TensorStore quotes them.
_FULL = (errno.ENOSPC, errno.EDQUOT)
_LOST = (errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOTCONN)
# Libraries look for files that are missing, and go on: these count only where they end the job.
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
    """Says what ended a job, why, and what to do; None for an error that needs a traceback.

    An error of a library may hide another one, so the whole chain is searched.
    """
    chain = list(_chain(error))
    text = "\n".join(str(one) for one in chain)
    number, path = _system_error(chain, text)
    outs = {
        "sample": experiment.sample.out,
        "evaluate": experiment.evaluate.out,
        "prepare": experiment.prepare.out or experiment.data.source,
    }
    written = outs.get(job) or str(workdir)
    lower = f"lower {_memory_fields(job, experiment, _files(chain))}; {_next(job, workdir)}"
    if number in _FULL:
        return f"{path or written}: {os.strerror(number)}: free some; {_next(job, workdir)}"
    if match := _WORKER.search(text):
        return (
            f"a process that reads data {_ended(int(match[1]))} (config.data.workers is "
            f"{experiment.data.workers}): lower config.data.workers or config.data.prefetch if "
            f"memory is short, or set workers to 0 to read in threads; {_next(job, workdir)}"
        )
    if any(isinstance(one, MemoryError) for one in chain) or number == errno.ENOMEM:
        return f"the host is out of memory: {lower}"
    if any(isinstance(one, jax.errors.JaxRuntimeError) for one in chain) and _DEVICE_MEMORY.search(
        text
    ):
        amount = _AMOUNT.search(text)
        asked = f" ({amount[0]})" if amount else ""
        return f"the devices are out of memory{asked}: {lower}"
    if number:
        where = path or written
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
    """Silences tracebacks of libraries' background threads, except at --verbosity=1.

    The job ends with the sentence, or the traceback, of the error that they lead to.
    """
    absl_logging.get_absl_logger().addFilter(lambda record: not record.exc_info or _is_verbose())
    unraisable = sys.unraisablehook

    def hook(found: "sys.UnraisableHookArgs") -> None:
        # TensorStore's, after a save that failed, while its other parts end.
        if _is_verbose() or str(found.exc_value) != "Event loop is closed":
            unraisable(found)

    sys.unraisablehook = hook


def _is_verbose() -> bool:
    return absl_logging.get_verbosity() >= absl_logging.DEBUG


def log_traceback(error: BaseException) -> None:
    """Logs where an error came from, for --verbosity=1."""
    absl_logging.debug("%s", "".join(traceback.format_exception(error)))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an error and those that it was raised from, the earliest last."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _system_error(chain: list[BaseException], text: str) -> tuple[int, str]:
    """Number and path of the earliest error of the operating system; 0 and "" without one."""
    for one in reversed(chain):
        numbers = (*_FULL, *_LOST, errno.ENOMEM, *(_PERHAPS if one is chain[0] else ()))
        if isinstance(one, OSError) and one.errno is not None and one.errno in numbers:
            return one.errno, str(one.filename or "")
    quoted, path = _QUOTED.search(text), _QUOTED_PATH.search(text)
    return int(quoted[1]) if quoted else 0, path[1] if path else ""


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


def _files(chain: list[BaseException]) -> set[str]:
    """Names of the modules in the tracebacks of a chain of errors."""
    return {
        pathlib.Path(frame.filename).stem
        for one in chain
        for frame in traceback.extract_tb(one.__traceback__)
    }


def _memory_fields(job: str, experiment: Experiment, files: set[str]) -> str:
    """The fields that memory depends on, with their values, for what the job was doing.

    files: names of the modules in the traceback.
    """
    train, sample, model = experiment.train, experiment.sample, experiment.model
    decoder = (
        f"config.autoencoder.batch_size ({experiment.autoencoder.batch_size})"
        if experiment.autoencoder.name
        else ""
    )
    if job in ("train", "preflight") and not files & {"generation", "pictures", "gallery"}:
        remat = f", or set config.model.remat ({model.remat!r})" if model.remat == "none" else ""
        return (
            f"config.train.batch_size ({train.batch_size}), or raise config.train.microbatches "
            f"({train.microbatches}){remat}"
        )
    if job == "train" and "while_training" not in files:
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
    """Words for where the same command goes on."""
    if job == "prepare":
        return "the same command goes on after the shards that are finished"
    if job != "train":
        return "then run the same command again"
    # Orbax writes this file at the end of a save.
    complete = workdir.glob("checkpoints/[0-9]*/_CHECKPOINT_METADATA")
    steps = [int(path.parent.name) for path in complete if path.parent.name.isdigit()]
    if not steps:
        return "no checkpoint was saved yet"
    return f"the same command goes on from the newest checkpoint, of step {max(steps):,}"
