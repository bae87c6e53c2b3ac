"""Figures of a compiled program for each chip: memory, FLOPs, collectives, and least time."""

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
from uvit_jax.jobs.forecast.hardware import Hardware
from uvit_jax.parallel.chips import Chip
from uvit_jax.parallel.mesh import slice_index

# A program that does not fit: "Used 17.20G of 15.75G hbm", "HLO temporaries (400.00G) exceeds
# available HBM (15.75G)".
_REFUSALS = (
    re.compile(r"\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)"),
    re.compile(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm"),
)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Refusal:
    """The compiler's refusal of a program that does not fit: bytes needed, and bytes available.

    None for a number that the compiler does not state.
    """

    needed: int | None
    limit: int | None


def compile_program(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled | Refusal, float]:
    """Returns the compiled program, or the refusal of one that does not fit, and the seconds."""
    began = time.monotonic()
    result: jax.stages.Compiled | Refusal
    try:
        with warnings.catch_warnings():
            # jax tries its cache, which can't hold programs for devices of another machine.
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
    """Reads the numbers in a compiler's RESOURCE_EXHAUSTED."""
    for pattern in _REFUSALS:
        if match := pattern.search(message):
            needed, limit = (int(float(match[i]) * _UNITS[match[i + 1]]) for i in (1, 3))
            return Refusal(needed, limit)
    return Refusal(None, None)


def shard_bytes(tree: Any) -> int:
    """Counts bytes of a tree's arrays (or of shapes with shardings) on one device, unpadded."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def memory_of(
    compiled: jax.stages.Compiled | Refusal, arguments: dict[str, int], capacity: int | None
) -> dict[str, Any]:
    """Counts bytes of one chip's memory, by part.

    `padding` is what the compiler's layouts add to the arguments; `temporaries` (activations,
    gradients) are at their peak; `results` are those that do not reuse an argument's memory. Of a
    refused program only the arguments and the sum are known.

    Args:
      compiled: the program, or the compiler's refusal.
      arguments: bytes of the program's arguments, by name, without padding.
      capacity: bytes that a program can fill; None if not known.
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
    """Returns FLOPs, collectives, roofline and a TPU slice's schedule of one call, for each chip.

    Args:
      compiled: the program.
      hardware: the devices that it is compiled for.
      mesh: the mesh of these devices.
      model_flops: FLOPs of the call on all chips, without rematerialisation; None to count those of
        the program.
      per_chip_bytes: arguments and results, which must pass between memory and chip.
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
            # The compiler counts a loop's body once, as this does; the two should agree.
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
        counted = flops * mesh.size if model_flops is None else model_flops
        figures["roofline"] = _roofline(work, hardware, hardware.chip, counted, mesh.size)
    return figures


def _roofline(
    work: roofline.Work, hardware: Hardware, chip: Chip, model_flops: float | int, chips: int
) -> dict[str, Any]:
    least = roofline.roofline(work, chip, hardware.ici_bandwidth)
    return {
        **dataclasses.asdict(least),
        "bound": least.bound,
        "no_overlap": least.no_overlap,
        "limit": least.limit,
        "highest_mfu": roofline.mfu(model_flops, least.bound, chips, chip),
    }


def _schedule(
    module: Module, found: Sequence[Collective], hardware: Hardware, mesh: Mesh
) -> dict[str, Any] | None:
    """Times computation and collectives (`compiled.overlap`); None without a named TPU slice."""
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
    """Returns each partition's place on the torus; in a program split by slice, those of one."""
    first = slice_index(mesh.devices.flat[0])
    dimensions = len(topology.shape)  # the coords of a flat pod's devices have a third number, 0
    devices = [device for device in mesh.devices.flat if slice_index(device) == first]
    whole = devices if len(devices) == topology.num_chips else mesh.devices.flat
    return [tuple(device.coords)[:dimensions] for device in whole]


def _cost(compiled: jax.stages.Compiled) -> dict[str, float]:
    """Returns the compiler's own cost analysis, empty without one."""
    try:
        cost = compiled.cost_analysis()
    except (jax.errors.JaxRuntimeError, NotImplementedError):
        return {}
    return dict(cost or {})
