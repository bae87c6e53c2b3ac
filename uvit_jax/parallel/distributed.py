"""Start of a run on several hosts: each process finds the others and joins them."""

import collections
import contextlib
import dataclasses
import os
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax

from uvit_jax.errors import UserError
from uvit_jax.parallel.devices import open_devices
from uvit_jax.parallel.hosts import SharedError
from uvit_jax.parallel.launchers import Place, launched, number_in

# JAX gives up by ending the process with a stack trace, so our own deadline comes first.
_SECONDS_AFTER_THE_DEADLINE = 60
# One process may write files long after the others are done. They wait for it as long as it lives,
# which JAX watches separately.
_SHUTDOWN_SECONDS = 24 * 3600


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """Where this process finds the others of the run; by default the environment says so.

    Attributes:
      start: "auto" joins other processes where a TPU pod, Slurm, Open MPI, MPICH or
        JAX_COORDINATOR_ADDRESS name them; "off" never does.
      coordinator: "host:port" of process 0, the same on every process; "" for the environment's.
      num_processes: number of processes in the run; 0 for the environment's.
      process_id: number of this process, from 0; -1 for the environment's.
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
                "environment's"
            )
        if self.process_id < -1:
            raise UserError(
                f"process_id is {self.process_id}, expected at least 0, or -1 for the environment's"
            )
        if self.timeout < 1:
            raise UserError(f"timeout is {self.timeout}, expected at least 1 second")


def find_place(
    config: DistributedConfig, environ: Mapping[str, str], *, prefix: str = ""
) -> Place | None:
    """Returns this process's place in its run; None for a run of one. Uses no network or device.

    A value comes from the config, else from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES or
    JAX_PROCESS_ID, else from what Slurm, MPI or a TPU pod set.

    Args:
      prefix: goes before the names of the config's fields in errors, as "config.distributed.".

    Raises:
      UserError: if some of the values are given and others are missing, or one is out of range.
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
        given = {
            name: value
            for name in ("coordinator", "num_processes", "process_id")
            if (value := getattr(place, name)) is not None
        }
        if not given or place.num_processes == 1:
            return None
        _check_complete(given, prefix)
    size, rank = place.num_processes, place.process_id
    if size and rank is not None and rank >= size:
        raise UserError(
            f"{prefix}process_id is {rank}, expected 0 to {size - 1}: num_processes is {size}"
        )
    if address:
        name = f"{prefix}coordinator" if config.coordinator else "JAX_COORDINATOR_ADDRESS"
        _check_coordinator(name, address)
    return place


def start(
    config: DistributedConfig,
    environ: Mapping[str, str],
    *,
    preemption: bool = True,
    prefix: str = "",
) -> None:
    """Joins the other processes of the run, if there are any, and opens the devices.

    Args:
      preemption: True catches a SIGTERM as a notice for `PreemptionNotice`; False lets it end the
        process.
      prefix: goes before the names of the config's fields in errors, as "config.distributed.".

    Raises:
      UserError: for settings out of range, or devices that JAX can't open. If the other processes
        do not answer within `config.timeout` seconds, this process prints a sentence and exits with
        code 2 instead, since JAX's wait can't be interrupted.
    """
    place = find_place(config, environ, prefix=prefix)
    if place is None:
        open_devices(environ)
        return
    if place.process_id == 0 and place.coordinator:
        _check_port(place.coordinator, prefix)
    jax.config.update("jax_enable_preemption_service", preemption)
    with _deadline(config.timeout, lambda: _why_alone(place, config.timeout, prefix)):
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
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"the hosts of the run can't be joined ({reason}): set {prefix}coordinator, "
                f"num_processes and process_id, or {prefix}start=off for a run of this host alone"
            ) from error
    _check_device_counts(open_devices(environ))


def _check_complete(given: Mapping[str, object], prefix: str) -> None:
    for name in ("coordinator", "num_processes", "process_id"):
        if name not in given:
            others = ", ".join(f"{other} = {value}" for other, value in given.items())
            raise UserError(
                f"{prefix}{name} is missing ({others}, and no launcher variable gives it)"
            )


def _check_device_counts(devices: Sequence[jax.Device]) -> None:
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


def _check_port(coordinator: str, prefix: str) -> None:
    port = int(coordinator.rpartition(":")[2])
    try:
        with socket.create_server(("", port)):
            pass
    except (OSError, OverflowError) as error:
        raise UserError(
            f"{prefix}coordinator is {coordinator!r}, expected a free port of process 0's host "
            f"({error})"
        ) from None


@contextlib.contextmanager
def _deadline(seconds: int, sentence: Callable[[], str]) -> Iterator[None]:
    """Prints the sentence and exits with code 2 unless the body ends within this many seconds."""

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


def _why_alone(place: Place, timeout: int, prefix: str) -> str:
    """Returns the sentence for other processes that did not come in time."""
    waited = f"within {timeout} seconds ({prefix}timeout)"
    if not place.coordinator:
        return f"the other hosts of the run didn't come {waited}"
    if place.process_id == 0:
        return f"not all {place.num_processes} processes came to {place.coordinator} {waited}"
    host, _, port = place.coordinator.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
    except (OSError, OverflowError) as error:
        return (
            f"{prefix}coordinator is {place.coordinator!r}, where nobody answered {waited}, "
            f"expected process 0 there ({error})"
        )
    return (
        f"process 0 answers at {place.coordinator}, but not all {place.num_processes} processes "
        f"came {waited}, or two of them have process_id {place.process_id}"
    )
