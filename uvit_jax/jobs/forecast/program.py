"""What a compiled program needs of each chip: memory by part, FLOPs, collectives, and the least
time they take.
"""

import dataclasses
import math
import re
import time
import warnings
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from uvit_jax.compiled import roofline
from uvit_jax.compiled.collectives import Collective, collectives, summary
from uvit_jax.compiled.hlo import Module, matmul_flops, parse, unknown_loops
from uvit_jax.compiled.overlap import link_bandwidth, overlap
from uvit_jax.compiled.topology import Topology
from uvit_jax.parallel.chips import Chip
from uvit_jax.parallel.mesh import slice_index

# "Used 17.20G of 15.75G hbm", "HLO temporaries (400.00G) exceeds available HBM (15.75G)": more than
# there is.
_REFUSALS = (
    re.compile(r"\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)"),
    re.compile(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm"),
)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Hardware:
    """The devices compiled for.

    Attributes:
      name: "v5e:16x16", or what the local devices are.
      devices: all of them, of all slices.
      chip: what is known of each; None for a CPU, or a GPU that isn't in the table.
      capacity: bytes of memory that a program can fill on each; None where that isn't known.
      ici_bandwidth: bytes a second out of each chip to the others of its slice or host.
      num_slices: slices that the data center's network joins.
      topology: of a TPU slice that was named; None for local devices.
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


@dataclasses.dataclass(frozen=True)
class Refusal:
    """The compiler's word that a program doesn't fit: bytes it needs (as far as it says) and bytes
    there are.
    """

    needed: int | None
    limit: int | None


def compile_program(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled | Refusal, float]:
    """The compiled program, or the compiler's refusal of one that doesn't fit, and the seconds it
    took.
    """
    began = time.monotonic()
    result: jax.stages.Compiled | Refusal
    try:
        with warnings.catch_warnings():
            # jax tries its cache of compiled programs, which can't hold one for devices that are
            # not there.
            warnings.filterwarnings(
                "ignore", "Error (reading|writing) persistent compilation cache"
            )
            result = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        result = read_refusal(str(error))
    return result, time.monotonic() - began


def read_refusal(message: str) -> Refusal:
    """What a compiler's RESOURCE_EXHAUSTED says in numbers."""
    for pattern in _REFUSALS:
        if match := pattern.search(message):
            needed, limit = (int(float(match[i]) * _UNITS[match[i + 1]]) for i in (1, 3))
            return Refusal(needed, limit)
    return Refusal(None, None)


def shard_bytes(tree: Any) -> int:
    """Bytes that the arrays of a tree (or their shapes, with shardings) take on one device, without
    padding.
    """
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def memory_of(
    compiled: jax.stages.Compiled | Refusal, arguments: dict[str, int], capacity: int | None
) -> dict[str, Any]:
    """Bytes of one chip's memory by part.

    `arguments` are what the program is handed, by name, without padding. `padding` is what the
    compiler's layouts add to them; `temporaries` (activations, gradients) are at their peak;
    `results` is what doesn't take the place of an argument. Of a program that was refused only the
    arguments and the sum are known.
    """
    if isinstance(compiled, Refusal):
        total = compiled.needed
        temporaries = None if total is None else max(total - sum(arguments.values()), 0)
        known: dict[str, int | None] = {**arguments, "temporaries": temporaries}
        return {
            "parts": known,
            "total": total,
            "capacity": compiled.limit or capacity,
            "fits": False,
        }
    stats = compiled.memory_analysis()
    if stats is None:
        return {"parts": dict(arguments), "total": None, "capacity": capacity, "fits": None}
    parts = arguments | {
        "padding": stats.argument_size_in_bytes - sum(arguments.values()),
        "temporaries": stats.temp_size_in_bytes,
        "results": stats.output_size_in_bytes - stats.alias_size_in_bytes,
        "program": stats.generated_code_size_in_bytes,
    }
    total = sum(parts.values())
    return {
        "parts": parts,
        "total": total,
        "capacity": capacity,
        "fits": None if capacity is None else total <= capacity,
    }


def examine(
    compiled: jax.stages.Compiled,
    hardware: Hardware,
    mesh: Mesh,
    *,
    model_flops: float | int | None,
    per_chip_bytes: int,
) -> dict[str, Any]:
    """FLOPs, collectives, roofline and, for a TPU slice, the schedule of one call of a compiled
    program, for each chip.

    model_flops: what the call is worth on all chips together, without rematerialisation; None where
    that isn't known but from the program. per_chip_bytes: arguments and results, what must pass
    between memory and chip.
    """
    module = parse(compiled.as_text() or "")
    slices = (
        None if hardware.num_slices == 1 else [slice_index(device) for device in mesh.devices.flat]
    )
    found = collectives(module, slice_of=slices)
    rows = summary(found)
    flops = matmul_flops(module)
    cost = _cost(compiled)
    sent = {
        network: sum(row.wire_bytes for row in rows if row.network == network)
        for network in ("ici", "dcn")
    }
    figures: dict[str, Any] = {
        "flops": {
            "model": None if model_flops is None else model_flops / mesh.size,
            "compiled": flops,
            # What the compiler says counts a loop's body once, as this does; the two should agree.
            "compiled_loops_once": matmul_flops(module, loops=False),
            "compiler_loops_once": cost.get("flops"),
            "unknown_loops": list(unknown_loops(module)),
        },
        "collectives": [dataclasses.asdict(row) for row in rows],
        "traffic": {
            "hbm_least": per_chip_bytes,
            "hbm_compiler_loops_once": cost.get("bytes accessed"),
            "ici": sent["ici"],
            "dcn": sent["dcn"],
        },
        "roofline": None,
        "schedule": _schedule(module, found, hardware, mesh),
    }
    if hardware.chip is not None:
        work = roofline.Work(flops, per_chip_bytes, sent["ici"], sent["dcn"])
        least = roofline.roofline(work, hardware.chip, hardware.ici_bandwidth)
        figures["roofline"] = {
            **dataclasses.asdict(least),
            "bound": least.bound,
            "no_overlap": least.no_overlap,
            "limit": least.limit,
            "highest_mfu": roofline.mfu(
                flops * mesh.size if model_flops is None else model_flops,
                least.bound,
                mesh.size,
                hardware.chip,
            ),
        }
    return figures


def _schedule(
    module: Module, found: Sequence[Collective], hardware: Hardware, mesh: Mesh
) -> dict[str, Any] | None:
    """What the chips compute and send in the order of the program (`parallel.overlap`); None where
    no TPU was named.
    """
    if hardware.topology is None:
        return None
    bandwidth = link_bandwidth(hardware.topology, _coordinates(hardware.topology, mesh))
    result = overlap(module, found, hardware.topology.chip, bandwidth)
    return {
        **{
            name: getattr(result, name)
            for name in ("compute", "communication", "hidden", "exposed", "step")
        },
        "asynchronous": sum(span.collective.count for span in result.spans if span.asynchronous),
        "networks": {
            network: {
                "communication": sum(span.collective.count * span.seconds for span in spans),
                "hidden": sum(span.collective.count * span.hidden for span in spans),
            }
            for network in ("ici", "dcn")
            if (spans := [span for span in result.spans if span.collective.network == network])
        },
    }


def _coordinates(topology: Topology, mesh: Mesh) -> list[tuple[int, ...]]:
    """Each partition's place on the torus: of a program that was split by slice, those of one
    slice.
    """
    first, dimensions = (
        slice_index(mesh.devices.flat[0]),
        len(topology.shape),
    )  # a flat pod's coords have a 0 besides
    devices = [device for device in mesh.devices.flat if slice_index(device) == first]
    whole = devices if len(devices) == topology.num_chips else mesh.devices.flat
    return [tuple(device.coords)[:dimensions] for device in whole]


def _cost(compiled: jax.stages.Compiled) -> dict[str, float]:
    """The compiler's own account, empty where it gives none."""
    try:
        cost = compiled.cost_analysis()
    except (jax.errors.JaxRuntimeError, NotImplementedError):
        return {}
    return dict(cost or {})
