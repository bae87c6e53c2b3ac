"""Several hosts as one run: how they find each other, what they must agree on, and how all of them
end.
"""

import collections
import contextlib
import dataclasses
import json
import os
import re
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from uvit_jax.errors import UserError
from uvit_jax.parallel.devices import open_devices
from uvit_jax.parallel.launchers import Place, launched, number_in

Result = TypeVar("Result")
Plain = TypeVar("Plain", bool, int, str)

# JAX gives up by ending the process with a stack trace, so our own deadline comes first.
_SECONDS_AFTER_THE_DEADLINE = 60
# Where one host writes files while the others have ended: as long as they are alive, which is
# watched, they wait.
_SHUTDOWN_SECONDS = 24 * 3600
# Time for the others to say what is wrong with them, before the first process takes down what they
# are joined by.
_SECONDS_TO_SPEAK = 2.0


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """How this process finds the others of the run; left as it is, the environment says so.

    Attributes:
      start: "auto" joins the others where a TPU pod, Slurm, Open MPI, MPICH or
        JAX_COORDINATOR_ADDRESS say that there are any; "off" never does.
      coordinator: "host:port" of process 0, where the environment doesn't say; the same on every
        process.
      num_processes: of the whole run; 0 for what the environment says.
      process_id: of this process, from 0; -1 for what the environment says.
      timeout: seconds to wait for the others.
    """

    start: str = "auto"
    coordinator: str = ""
    num_processes: int = 0
    process_id: int = -1
    timeout: int = 300

    def __post_init__(self):
        if self.start not in ("auto", "off"):
            raise UserError(f"start is {self.start!r}, expected 'auto' or 'off'")
        if self.coordinator:
            _check_coordinator("coordinator", self.coordinator)
        if self.num_processes < 0:
            raise UserError(
                f"num_processes is {self.num_processes}, expected at least 1, or 0 for the "
                f"environment's"
            )
        if self.process_id < -1:
            raise UserError(
                f"process_id is {self.process_id}, expected at least 0, or -1 for the environment's"
            )
        if self.timeout < 1:
            raise UserError(f"timeout is {self.timeout}, expected at least 1 second")


def find_place(config: DistributedConfig, environ: Mapping[str, str]) -> Place | None:
    """Where this process stands among those of its run; None for a run of one. Reads no network and
    no device.

    What the config and JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say goes
    before what Slurm, Open MPI or a TPU pod do, value by value.

    Raises:
      UserError: where some of the values are given and others are not to be found, or one can't be.
    """
    if config.start == "off":
        return None
    found = launched(environ) or Place()
    address = config.coordinator or environ.get("JAX_COORDINATOR_ADDRESS")
    count, number = number_in(environ, "JAX_NUM_PROCESSES"), number_in(environ, "JAX_PROCESS_ID")
    place = dataclasses.replace(
        found,
        coordinator=address or found.coordinator,
        num_processes=config.num_processes or count or found.num_processes,
        process_id=next(
            (n for n in (config.process_id, number) if n is not None and n >= 0), found.process_id
        ),
    )
    if place.method == "deactivate":
        values = {
            name: getattr(place, name) for name in ("coordinator", "num_processes", "process_id")
        }
        if all(value is None for value in values.values()) or values["num_processes"] == 1:
            return None
        for name, value in values.items():
            if value is None:
                given = ", ".join(
                    f"{other} = {value}" for other, value in values.items() if value is not None
                )
                raise UserError(
                    f"config.distributed.{name} is not given and nothing else says it, but {given}"
                )
    if (
        place.num_processes
        and place.process_id is not None
        and place.process_id >= place.num_processes
    ):
        raise UserError(
            f"config.distributed.process_id is {place.process_id}, expected 0 to "
            f"{place.num_processes - 1}: num_processes is {place.num_processes}"
        )
    if address:
        _check_coordinator(
            "config.distributed.coordinator" if config.coordinator else "JAX_COORDINATOR_ADDRESS",
            address,
        )
    return place


def start(
    config: DistributedConfig, environ: Mapping[str, str], *, preemption: bool = True
) -> None:
    """Joins the other processes of the run, where there are any, and opens the devices.

    preemption: whether a SIGTERM is caught as a notice, for `PreemptionNotice`; without, it ends
    the process.

    Raises:
      UserError: for settings that can't be, or devices that JAX can't open. Where the others can't
        be reached in `config.timeout` seconds the process says so and ends with exit code 2: JAX
        can't be called back from its wait.
    """
    place = find_place(config, environ)
    if place is None:
        open_devices(environ)
        return
    if place.process_id == 0 and place.coordinator:
        _check_port(place.coordinator)
    jax.config.update("jax_enable_preemption_service", preemption)
    with _deadline(config.timeout, lambda: _nobody_came(place, config.timeout)):
        try:
            jax.distributed.initialize(
                place.coordinator,
                place.num_processes,
                place.process_id,
                place.local_devices,
                cluster_detection_method=place.method,
                initialization_timeout=config.timeout + _SECONDS_AFTER_THE_DEADLINE,
                shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
            )
        except Exception as error:
            told = " ".join(str(error).split())[:200]
            raise UserError(
                f"the hosts of the run can't be joined ({told}): set "
                "config.distributed.coordinator, num_processes and process_id, or "
                "config.distributed.start=off for a run of this host alone"
            ) from error
    _check_devices(open_devices(environ))


def on_all(function: Callable[..., Result], *arguments: Any) -> Result:
    """`function(*arguments)`, called by every process; where it raises a UserError on one, all of
    them raise.

    So a file that one host lacks ends the run on all hosts, with the same sentence, and at once.
    The function may not call together what only together succeeds.

    Raises:
      SharedError: naming the first process on which the function failed, where there are several.
    """
    if not are_several():
        return function(*arguments)
    failure, result = "", None
    try:
        result = function(*arguments)
    except UserError as error:
        failure = str(error)
    failures = _gather(failure)
    if any(failures):
        first = next(i for i, text in enumerate(failures) if text)
        raise SharedError(failures[0] if first == 0 else f"{failures[first]} (process {first})")
    return result  # type: ignore[return-value]


def on_first(function: Callable[..., Result], *arguments: Any) -> Result | None:
    """Calls `function(*arguments)` on process 0; every process calls this at the same place.

    Returns:
      The result on process 0, None on the others: `first_says` sends a plain value to all.

    Raises:
      SharedError: on every process, where the function raised a UserError and there are several.
    """
    return on_all(function, *arguments) if is_first() else on_all(lambda: None)


def agree(values: Mapping[str, Any]) -> None:
    """Compares what the processes hold: names to values that JSON knows.

    Raises:
      SharedError: naming the first value that is not the same on all, on every process.
    """
    if not are_several():
        return
    texts = _gather(json.dumps(values, default=str))
    first, nothing = json.loads(texts[0]), object()
    for process, text in enumerate(texts):
        other = json.loads(text)
        for name in [*first, *other]:
            here, there = first.get(name, nothing), other.get(name, nothing)
            if here != there:
                said = ["absent" if value is nothing else _short(value) for value in (there, here)]
                raise SharedError(
                    f"the hosts disagree: {name} is {said[0]} on process {process} and {said[1]} "
                    f"on process 0"
                )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def same_secret() -> str:
    """A random word, the same on all processes."""
    return _gather(secrets.token_hex(8))[0]


def first_says(value: Plain) -> Plain:
    """The first process's value, on all processes; they call this together."""
    return json.loads(_gather(json.dumps(value))[0]) if are_several() else value


def largest(value: int) -> int:
    """The largest of the processes' values, on all processes; they call this together."""
    return max(json.loads(text) for text in _gather(json.dumps(value))) if are_several() else value


def are_several() -> bool:
    """Whether this process has joined others; touches no device."""
    return jax.distributed.is_initialized()


def index() -> int:
    """The number of this process among those of the run; touches no device where it is alone."""
    try:
        return jax.process_index() if are_several() else 0
    except RuntimeError:  # devices that can't be started: their error is being told
        return 0


def is_first() -> bool:
    """Whether this is the process that writes logs, pictures and whatever else is wanted once."""
    return index() == 0


def leave(code: int, *, agreed: bool) -> NoReturn:
    """Ends this process with this exit code.

    agreed: whether all processes are ending here. Otherwise the others may be waiting for this one
    in the middle of a computation: it doesn't wait for them, and they are ended by JAX when they
    miss it.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if are_several():
        if not agreed:
            time.sleep(_SECONDS_TO_SPEAK if is_first() else 0)
            os._exit(code)
        jax.distributed.shutdown()
    sys.exit(code)


class SharedError(UserError):
    """A UserError that all processes of the run raise at the same place."""


def _gather(text: str) -> list[str]:
    """Every process's text, in their order."""
    data = np.frombuffer(text.encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(data)))
    filled = np.zeros(max(lengths.max(), 1), np.uint8)
    filled[: len(data)] = data
    rows = multihost_utils.process_allgather(filled)
    return [row[:length].tobytes().decode() for row, length in zip(rows, lengths, strict=True)]


def _check_devices(devices: Sequence[jax.Device]) -> None:
    counts = collections.Counter(device.process_index for device in devices)
    for process, count in counts.items():
        if count != counts[0]:
            raise SharedError(
                f"the hosts disagree: process {process} has {count} devices and process 0 has "
                f"{counts[0]}"
            )


def _check_coordinator(name: str, address: str) -> None:
    if not re.fullmatch(r".+:\d+", address):
        raise UserError(f"{name} is {address!r}, expected 'host:port' of process 0")


def _check_port(coordinator: str) -> None:
    port = int(coordinator.rpartition(":")[2])
    try:
        with socket.create_server(("", port)):
            pass
    except (OSError, OverflowError) as error:
        raise UserError(
            f"config.distributed.coordinator is {coordinator!r}, expected a free port of process "
            f"0's host ({error})"
        ) from None


@contextlib.contextmanager
def _deadline(seconds: int, sentence: Callable[[], str]) -> Iterator[None]:
    def give_up() -> None:
        print(f"error: {sentence()}", file=sys.stderr, flush=True)
        os._exit(2)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _nobody_came(place: Place, timeout: int) -> str:
    waited = f"within {timeout} seconds (config.distributed.timeout)"
    if not place.coordinator:
        return f"the other hosts of the run didn't come {waited}"
    if place.process_id == 0:
        return f"not all {place.num_processes} processes came to {place.coordinator} {waited}"
    host, _, port = place.coordinator.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
    except (OSError, OverflowError) as error:
        return (
            f"config.distributed.coordinator is {place.coordinator!r}, where nobody answered "
            f"{waited}, expected process 0 there ({error})"
        )
    return (
        f"process 0 answers at {place.coordinator}, but not all {place.num_processes} processes "
        f"came {waited}, or two of them call themselves {place.process_id}"
    )
