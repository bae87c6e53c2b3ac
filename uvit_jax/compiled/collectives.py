"""Collectives of a compiled program: the kind, bytes, groups and network of each."""

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
# Names that a TPU program split by slice gives to the transfers of its runtime between slices.
_MEGASCALE_KINDS = {"ONE_TO_ONE": "collective-permute", "ONE_TO_ALL": "collective-broadcast"}
# Device ids of a description of several slices are 100000 x the slice, from 1, + the place in it.
_MEGASCALE_SLICE = 100_000


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a program, as one device sees it; bytes are those of one execution.

    Attributes:
      kind: one of KINDS (or a newer one's own name).
      network: "dcn" if a group has devices of several slices, else "ici" (on GPUs and CPUs: any
        network between them).
      bytes: size of the whole buffer without padding, which is the larger of a device's input and
        output. All-gather: the result; reduce-scatter: the operand; the others: the operand, which
        is as large as the result.
      wire_bytes: the least that one of the n devices sends, as in a ring
        (doi:10.1016/j.jpdc.2008.09.002): all-reduce 2 (n-1)/n x bytes; all-gather, reduce-scatter
        and all-to-all (n-1)/n x bytes; permute and broadcast bytes. All bytes of a group over
        several slices count as DCN's, though most neighbours in a ring share a slice.
      group_size: n, the number of devices in a group (2 for a permute: each sends to one other).
      groups: the partition numbers of each group; source and target of each pair for a permute. In
        a TPU program split by slice they are device ids where a collective crosses slices, and
        partitions of one slice elsewhere.
      count: executions in one call of the program.
      inside_loop: True if it runs in the body of a loop.
      shapes: the arrays of the whole buffer.
      op_name: the place in the JAX program that it comes from, "" if the compiler gives none.
      name, computation: names of the instruction and of its computation in the text.
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
    """Totals of one kind of collective over one network, per device and call of the program."""

    kind: str
    network: Literal["ici", "dcn"]
    count: int
    bytes: int
    wire_bytes: int


def collectives(module: Module, *, slice_of: Sequence[int] | None = None) -> list[Collective]:
    """Returns every collective that runs between devices, in the order of the text.

    A collective that the TPU compiler spreads over several fusions, to overlap it with products, is
    returned once. An all-reduce of which a fusion keeps only this device's part is a
    reduce-scatter: TPUs write it so.

    Args:
      module: the program.
      slice_of: the slice of each device in the order of the mesh the program was compiled for
        (`[d.slice_index for d in mesh.devices.flat]`); None for one slice. If the TPU compiler has
        split the program by slice, it has fewer partitions than devices: then each group is within
        a slice, and collectives across slices are marked in the text.
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
    """Returns the totals of each kind and network, most bytes sent first."""
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
    """Returns the least bytes that one device sends for a buffer (`Collective.wire_bytes`)."""
    if group_size < 2:
        return 0
    if kind in ("collective-permute", "collective-broadcast"):
        return size
    return math.ceil((2 if kind == "all-reduce" else 1) * size * (group_size - 1) / group_size)


def _read(
    module: Module, computation: Computation, instruction: Instruction, slice_of: Sequence[int]
) -> Collective | None:
    """Returns the collective of an instruction, None if it is not one; `count` is not set yet."""
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
    """Returns a collective with sizes from its operands and groups; `count` is not set yet."""
    group_size = max(map(len, groups), default=1)
    # The size comes from the operands: the result of an asynchronous start holds other arrays too.
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
    """Returns the collective over DCN of a TPU program split by slice, under its runtime's kind.

    On a GPU a send is half of a permute that was split up. Any other send goes to the host: None.
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
    # The first of a send's results is the array that it sends; the operands include a token.
    dtype, dims = next(iter(instruction.shapes), Shape("token", ()))
    whole = (dims[0] * sent.group_size, *dims[1:]) if kind == "all-gather" and dims else dims
    return dataclasses.replace(
        sent, shapes=(Shape(dtype, whole),), op_name=sent.op_name or rendezvous
    )


def goes_on(instruction: Instruction) -> bool:
    """True for a later part of a collective that a TPU spreads over fusions, by its flags."""
    flags = re.search(
        r'"async_collective_fusion_config":\{"flag_start":"(-?\d+)"', instruction.attributes
    )
    return flags is not None and int(flags[1]) >= 0


def _keeps_a_part(computation: Computation, instruction: Instruction) -> bool:
    """True if a computation returns nothing of a reduction but slices of its results."""
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
