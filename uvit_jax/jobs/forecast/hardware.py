"""Devices that a preflight compiles for: a TPU slice by name, or those of this machine."""

import dataclasses
import os
from collections.abc import Sequence

import jax

from uvit_jax.compiled.topology import Topology, parse_topology, topology_devices
from uvit_jax.errors import UserError
from uvit_jax.experiment.job_sections import PreflightConfig
from uvit_jax.parallel.chips import Chip, find_chip
from uvit_jax.parallel.devices import open_devices


@dataclasses.dataclass(frozen=True)
class Hardware:
    """Devices to compile for, and what is known of their speed and memory.

    Attributes:
      name: "v5e:16x16", or the kind of the local devices.
      devices: all devices, of all slices.
      chip: speed of each device; None for a CPU, or a GPU that is not in the table.
      capacity: bytes of memory that a program can fill on each; None if not known.
      ici_bandwidth: bytes per second out of each chip to the others of its slice or host.
      num_slices: number of slices, which the data center's network joins.
      topology: the TPU slice that was named; None for local devices.
    """

    name: str
    devices: Sequence[jax.Device]
    chip: Chip | None
    capacity: int | None
    ici_bandwidth: float | None
    num_slices: int = 1
    topology: Topology | None = None

    def __str__(self) -> str:
        slices = f"{self.num_slices} x " if self.num_slices > 1 else ""
        return f"{slices}{self.name} ({len(self.devices):,} chip{'s' * (len(self.devices) > 1)})"


def open_hardware(config: PreflightConfig) -> Hardware:
    """Opens the slice that `config.topology` names, or this machine's own devices.

    Raises:
      UserError: for a topology that does not exist, or without the compiler for it.
    """
    if config.topology:
        return _named(config.topology, config.num_slices)
    if config.num_slices > 1:
        raise UserError(
            f"config.preflight.num_slices is {config.num_slices}, expected 1 where "
            "config.preflight.topology is empty"
        )
    return _local()


def _named(name: str, num_slices: int) -> Hardware:
    try:
        topology = parse_topology(name)
        devices = topology_devices(topology, num_slices)
    except UserError as error:
        raise UserError(f"config.preflight.{error}") from None
    chip, bandwidth = topology.chip, topology.ici_bandwidth
    return Hardware(str(topology), devices, chip, chip.hbm, bandwidth, num_slices, topology)


def _local() -> Hardware:
    devices = open_devices(os.environ)
    kind = devices[0].device_kind
    chip = find_chip(kind)
    # A GPU states how much its allocator can give out; a CPU states nothing.
    stats = devices[0].memory_stats() if devices[0].platform == "gpu" else None
    capacity = (stats or {}).get("bytes_limit") or (chip.hbm if chip else None)
    bandwidth = chip.link_bandwidth * max(2 * chip.dimensions, 1) if chip else None
    return Hardware(kind, devices, chip, capacity, bandwidth)
