"""What the devices of a compiled program say to each other: each collective's kind, bytes, groups
and network.
"""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

from uvit_jax.compiled.hlo_loops import executions, loop_computations
from uvit_jax.compiled.hlo_text import Computation, Instruction, Module, Shape
from uvit_jax.compiled.replica_groups import Groups, braces, numbers, replica_groups

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# How a TPU program that is split by slice names what its runtime does between the slices.
_MEGASCALE_KINDS = {"ONE_TO_ONE": "collective-permute", "ONE_TO_ALL": "collective-broadcast"}
# Device ids of a description of several slices are 100000 x the slice + the place in it, slices
# from 1.
_MEGASCALE_SLICE = 100_000


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a program, as one device sees it; bytes are those of one execution.

    Attributes:
      kind: one of KINDS (or a newer one's own name).
      network: "dcn" where a group has devices of several slices, else "ici" (on GPUs and CPUs:
        whatever joins them).
      bytes: the whole buffer, unpadded: the larger of what a device gives and what it gets.
        All-gather: the result; reduce-scatter: the operand; the others: the operand, which is as
        large as the result.
      wire_bytes: what one of the n devices sends at the least, as a ring of them does
        (doi:10.1016/j.jpdc.2008.09.002): all-reduce 2 (n-1)/n x bytes; all-gather, reduce-scatter
        and all-to-all (n-1)/n x bytes; permute and broadcast bytes. A group over several slices
        counts for DCN whole, though a ring's neighbours mostly share a slice.
      group_size: n, the devices that take part together (for a permute 2: each sends to one other).
      groups: the partition numbers of each group; source and target of each pair for a permute.
        Those of a TPU program split by slice: device ids for what crosses slices, partitions of one
        slice for the rest.
      count: executions in one call of the program.
      inside_loop: whether it runs in the body of a loop.
      shapes: the whole buffer's arrays.
      op_name: the place in the JAX program it comes from, as far as the compiler says.
      name, computation: where it stands in the text.
    """

    kind: str
    network: Literal["ici", "dcn"]
    bytes: int
    wire_bytes: int
    group_size: int
    groups: Groups
    count: int
    inside_loop: bool
    shapes: tuple[Shape, ...]
    op_name: str
    name: str
    computation: str


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What all collectives of one kind over one network amount to for one device in one call of the
    program.
    """

    kind: str
    network: Literal["ici", "dcn"]
    count: int
    bytes: int
    wire_bytes: int


def collectives(module: Module, *, slice_of: Sequence[int] | None = None) -> list[Collective]:
    """Every collective that runs, in the order of the text, those of one device with itself left
    out.

    What the TPU compiler spreads over several fusions (it overlaps a gather with the products
    beside it) is one collective, and an all-reduce of which a fusion keeps only this device's part
    is a reduce-scatter, which is how TPUs do it.

    Args:
      module: the program.
      slice_of: the slice of each device in the order of the mesh the program was compiled for
        (`[d.slice_index for d in mesh.devices.flat]`); None for one slice. The TPU compiler may
        have split the program by slice (it has fewer partitions than there are devices): then its
        groups lie within a slice each, and what crosses slices says so itself.
    """
    counts, in_loops = executions(module), loop_computations(module)
    if slice_of is None or len(slice_of) > module.num_partitions * module.num_replicas:
        slice_of = ()
    callers = {
        name: i.op_name
        for _, i in module.instructions()
        if i.opcode == "fusion"
        for name in i.called
    }
    found = []
    for computation, instruction in module.instructions():
        if count := counts.get(computation.name, 0):
            collective = _read(module, computation, instruction, slice_of)
            if collective and collective.group_size > 1:
                origin = collective.op_name or callers.get(computation.name, "")
                inside = computation.name in in_loops
                found.append(
                    dataclasses.replace(collective, count=count, inside_loop=inside, op_name=origin)
                )
    return found


def summary(found: Sequence[Collective]) -> list[Traffic]:
    """One row for each kind and network, executions counted, most bytes sent first."""
    rows: defaultdict[tuple[str, Literal["ici", "dcn"]], list[Collective]] = defaultdict(list)
    for collective in found:
        rows[collective.kind, collective.network].append(collective)
    return sorted(
        (
            Traffic(
                *key,
                sum(c.count for c in group),
                sum(c.count * c.bytes for c in group),
                sum(c.count * c.wire_bytes for c in group),
            )
            for key, group in rows.items()
        ),
        key=lambda row: -row.wire_bytes,
    )


def wire_bytes(kind: str, size: int, group_size: int) -> int:
    """What one of a group's devices sends at the least for a whole buffer of this size
    (`Collective.wire_bytes`).
    """
    if group_size < 2:
        return 0
    if kind in ("collective-permute", "collective-broadcast"):
        return size
    return math.ceil((2 if kind == "all-reduce" else 1) * size * (group_size - 1) / group_size)


def _read(
    module: Module, computation: Computation, instruction: Instruction, slice_of: Sequence[int]
) -> Collective | None:
    """The collective this instruction is, or None; how often it runs is left open."""
    kind = instruction.opcode.removesuffix("-start")
    if kind in ("send", "recv"):
        return _send(computation, instruction, slice_of) if kind == "send" else None
    if kind.removeprefix("ragged-") not in KINDS or goes_on(instruction):
        return None
    if kind == "all-reduce" and _keeps_a_part(computation, instruction):
        kind = "reduce-scatter"
    groups = replica_groups(module, instruction)
    return _collective(computation, instruction, kind, groups, _network(groups, slice_of))


def _network(groups: Groups, slice_of: Sequence[int]) -> Literal["ici", "dcn"]:
    across = any(
        len({slice_of[device] for device in group if device < len(slice_of)}) > 1
        for group in groups
    )
    return "dcn" if across else "ici"


def _collective(
    computation: Computation,
    instruction: Instruction,
    kind: str,
    groups: Groups,
    network: Literal["ici", "dcn"],
) -> Collective:
    """The collective with the sizes that its operands and groups tell; how often it runs is left
    open.
    """
    group_size = max(map(len, groups), default=1)
    # Operands tell the size whatever the form of the result, which an asynchronous start packs with
    # other things.
    shapes = computation.operand_shapes(instruction) or instruction.shapes
    size = sum(shape.bytes for shape in shapes)
    if kind == "all-gather":
        size *= group_size
        shapes = tuple(s for s in instruction.shapes if s.dims)[-len(shapes) :]
    sent = wire_bytes(kind, size, group_size)
    name = instruction.name, computation.name
    return Collective(
        kind, network, size, sent, group_size, groups, 0, False, shapes, instruction.op_name, *name
    )


def _send(
    computation: Computation, instruction: Instruction, slice_of: Sequence[int]
) -> Collective | None:
    """What a TPU program split by slice sends over DCN, named as the collective that its runtime
    makes of it.

    On a GPU a send is half of a permute that was taken apart; one that is neither goes to the host.
    """
    if pairs := instruction.attribute("_xla_send_recv_source_target_pairs"):
        groups = braces(pairs)
        return _collective(
            computation, instruction, "collective-permute", groups, _network(groups, slice_of)
        )
    transfer = (instruction.attribute("_xla_megascale_transfer_type") or "").strip('"')
    if not transfer:
        return None
    kind = _MEGASCALE_KINDS.get(transfer, transfer.lower().replace("_", "-"))
    target = (instruction.attribute("_xla_megascale_target") or "").strip('"')
    groups = braces(target)
    if product := re.fullmatch(r"\{([\d,:]*)\}x\{([\d,:]*)\}", target):
        slices, places = (numbers(part) for part in product.groups())
        groups = tuple(tuple(s * _MEGASCALE_SLICE + place for s in slices) for place in places)
    sent = _collective(computation, instruction, kind, groups, "dcn")
    rendezvous = (instruction.attribute("_xla_host_transfer_rendezvous") or "").strip('"')
    # The first of a send's results is what it sends; the operands have the token besides, which
    # takes no bytes.
    dtype, dims = next(iter(instruction.shapes), Shape("token", ()))
    whole = (dims[0] * sent.group_size, *dims[1:]) if kind == "all-gather" and dims else dims
    return dataclasses.replace(
        sent, shapes=(Shape(dtype, whole),), op_name=sent.op_name or rendezvous
    )


def goes_on(instruction: Instruction) -> bool:
    """Whether this is a later part of what a TPU overlaps with fusions: it is handed the first
    part's flags.
    """
    flags = re.search(
        r'"async_collective_fusion_config":\{"flag_start":"(-?\d+)"', instruction.attributes
    )
    return flags is not None and int(flags[1]) >= 0


def _keeps_a_part(computation: Computation, instruction: Instruction) -> bool:
    """Whether all that leaves this computation of a reduction are slices of its results."""
    through = ("bitcast", "copy", "convert", "get-tuple-element")
    root = computation.origin(computation.root, through)
    names = root.operands if root is not None and root.opcode == "tuple" else (computation.root,)
    results = [computation.origin(name, through) for name in names]
    return all(
        result is not None
        and result.opcode == "dynamic-slice"
        and computation.origin(result.operands[0], through) is instruction
        for result in results
    )
