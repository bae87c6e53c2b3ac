"""The first line of a job's log: the version, what runs, and on which devices."""

import contextlib
import logging
from collections import Counter
from collections.abc import Iterator

import jax

from uvit_jax.errors import UserError
from uvit_jax.experiment.workdir import version
from uvit_jax.parallel import hosts
from uvit_jax.parallel.mesh import AXES, MeshConfig

LOG = logging.getLogger("uvit_jax")


def headline(job: str, config: str, mesh: MeshConfig | None, *, devices: bool) -> str:
    """A line as "uvit_jax 0.1.0, train configs/digits.py, 1 x cpu, mesh data 1 x fsdp 1 x ...".

    Args:
      job: its name.
      config: the config's file, or the workdir that it was read from.
      mesh: over all devices; None for a job without one.
      devices: False for a job that uses none of this machine.
    """
    parts = [f"uvit_jax {version('uvit-jax')}", f"{job} {config}"]
    if devices:
        kinds = Counter(device.device_kind for device in jax.devices())
        shared = f" on {jax.process_count()} hosts" if hosts.are_several() else ""
        parts += [f"{count} x {kind}{shared}" for kind, count in kinds.items()]
    if devices and mesh is not None:
        # The job itself says what is wrong with a mesh.
        with contextlib.suppress(UserError):
            sizes = zip(AXES, mesh.sizes(jax.device_count()), strict=True)
            parts.append(f"mesh {' x '.join(f'{axis} {size}' for axis, size in sizes)}")
    return ", ".join(parts)


@contextlib.contextmanager
def headed(line: str) -> Iterator[None]:
    """Puts a line before the first one that is logged; nothing is printed where none is logged.

    So a mistake that a job finds before its first line of log is still the only line.
    """
    waiting = [line] if hosts.is_first() else []

    def add(record: logging.LogRecord) -> bool:
        if waiting:
            record.msg, record.args = f"{waiting.pop()}\n{record.getMessage()}", ()
        return True

    LOG.addFilter(add)
    try:
        yield
    finally:
        LOG.removeFilter(add)
