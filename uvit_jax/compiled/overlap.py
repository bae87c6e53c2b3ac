"""Overlap of a program's communication with its computation, from its schedule."""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from uvit_jax.compiled.collectives import Collective, goes_on
from uvit_jax.compiled.hlo_text import Computation, Instruction, Module
from uvit_jax.compiled.hlo_time import instruction_seconds
from uvit_jax.compiled.topology import Topology
from uvit_jax.parallel.chips import Chip

_PASSED_ON = ("get-tuple-element", "bitcast", "copy", "tuple", "async-update")


@dataclasses.dataclass(frozen=True)
class Span:
    """One collective in its place in the schedule; seconds are those of one execution.

    Attributes:
      collective: the collective.
      asynchronous: True if other operations are scheduled between its start and its end.
      seconds: time of its bytes on the network at full speed, without latency.
      beside: time of the computation that is scheduled while it is under way.
      hidden: the part of `seconds` that overlaps with computation. Each operation hides one
        collective of a network at a time.
    """

    collective: Collective
    asynchronous: bool
    seconds: float
    beside: float
    hidden: float


@dataclasses.dataclass(frozen=True)
class Overlap:
    """Seconds of a step on one chip: its computation, and the time that collectives add.

    Attributes:
      compute: seconds of all operations but the collectives, one after another.
      spans: every collective.
    """

    compute: float
    spans: tuple[Span, ...]

    @property
    def communication(self) -> float:
        """Seconds of all collectives, one after another."""
        return sum((span.collective.count * span.seconds for span in self.spans), start=0.0)

    @property
    def hidden(self) -> float:
        """Seconds of communication that overlap with computation."""
        return sum((span.collective.count * span.hidden for span in self.spans), start=0.0)

    @property
    def exposed(self) -> float:
        """Seconds of communication without computation beside it."""
        return self.communication - self.hidden

    @property
    def step(self) -> float:
        """Seconds of the whole program."""
        return self.compute + self.exposed


def overlap(
    module: Module,
    found: Sequence[Collective],
    chip: Chip,
    bandwidth: Callable[[Collective], float],
) -> Overlap:
    """Splits a scheduled program's time into computation, hidden and exposed communication.

    A collective that is one instruction stops the chip. One with a start and an end
    (`all-gather-start`, a `send` over DCN and the `recv-done` of its result) overlaps with what is
    scheduled between the two. One that the TPU compiler spreads over fusions makes progress only in
    those fusions, so only they count.

    Args:
      module: the program, `is_scheduled=true`: its instructions are in the order in which they run.
      found: its collectives.
      chip: the hardware.
      bandwidth: bytes per second that a chip sends in a collective (`link_bandwidth`).
    """
    seconds = instruction_seconds(module, chip)
    callers = _callers(module)
    placed: defaultdict[str, list[tuple[Collective, _Place]]] = defaultdict(list)
    for collective in found:
        place = _place(module, callers, collective)
        placed[place.computation].append((collective, place))

    spans = []
    for name, group in placed.items():
        computation = module.computations[name]
        work = [seconds[name][instruction] for instruction in computation.instructions]
        # Greedy, earliest end first: no other order hides more.
        left: dict[str, list[float]] = {network: list(work) for network in ("ici", "dcn")}
        for collective, place in sorted(group, key=lambda pair: pair[1].end):
            needed = collective.wire_bytes / bandwidth(collective)
            hidden = _take(left[collective.network], place.beside, needed)
            beside = sum((work[i] for i in place.beside), start=0.0)
            spans.append(Span(collective, bool(place.beside), needed, beside, hidden))
    order = {id(collective): i for i, collective in enumerate(found)}
    spans.sort(key=lambda span: order[id(span.collective)])
    return Overlap(sum(seconds[module.entry].values(), start=0.0), tuple(spans))


def link_bandwidth(
    topology: Topology, coords: Sequence[tuple[int, ...]]
) -> Callable[[Collective], float]:
    """Returns a function for `overlap`: a collective's bytes per second out of one chip.

    These go over the chip's links to its group, or over its share of its host's DCN. The chips of a
    group wait for the one with the fewest links, and all groups for the slowest.

    coords: each partition's place on the torus.
    """

    def bandwidth(collective: Collective) -> float:
        if collective.network == "dcn":
            assert topology.chip.dcn_bandwidth is not None  # every TPU's is known
            return topology.chip.dcn_bandwidth
        groups = ([coords[i % len(coords)] for i in group] for group in collective.groups)
        return min(
            topology.group_bandwidth([set(places) for places in zip(*group, strict=True)])
            for group in groups
        )

    return bandwidth


def _take(left: list[float], places: Iterable[int], needed: float) -> float:
    """Takes up to `needed` seconds out of `left` at these places; returns the seconds taken."""
    taken = 0.0
    for i in places:
        part = min(left[i], needed - taken)
        left[i] -= part
        taken += part
    return taken


@dataclasses.dataclass(frozen=True)
class _Place:
    """Place of a collective: its computation, and positions of its end and of what overlaps."""

    computation: str
    end: int
    beside: tuple[int, ...]


def _callers(module: Module) -> dict[str, tuple[Computation, Instruction]]:
    """Maps computations of fusions and asynchronous calls to the instruction that calls them."""
    return {
        callee: (computation, instruction)
        for computation, instruction in module.instructions()
        if instruction.opcode in ("fusion", "async-start", "call-start")
        for callee in instruction.called
    }


def _place(
    module: Module, callers: dict[str, tuple[Computation, Instruction]], collective: Collective
) -> _Place:
    computation = module.computations[collective.computation]
    instruction = inner = computation.instructions[collective.name]
    within = computation
    while computation.name in callers:
        within = computation
        computation, instruction = callers[computation.name]
    names = list(computation.instructions)
    start = names.index(instruction.name)
    if _has_target(within, "AsyncCollectiveStart"):
        carriers = _carriers(module, computation, inner.attribute("channel_id"))
        end = max(carriers, default=start)
        return _Place(computation.name, end, tuple(i for i in carriers if i != end))
    found = _end(computation, instruction)
    if found is None:
        return _Place(computation.name, start, ())
    end = names.index(found)
    return _Place(computation.name, end, tuple(range(start + 1, end)))


def _has_target(computation: Computation, target: str) -> bool:
    return any(
        i.attribute("custom_call_target") == f'"{target}"'
        for i in computation.instructions.values()
    )


def _carriers(module: Module, computation: Computation, channel: str | None) -> tuple[int, ...]:
    """Returns the positions of the fusions that a collective is spread over, its end last."""
    return tuple(
        position
        for position, instruction in enumerate(computation.instructions.values())
        if instruction.opcode == "fusion"
        and any(
            goes_on(inner) and inner.attribute("channel_id") == channel
            for callee in instruction.called
            if callee in module.computations
            for inner in module.computations[callee].instructions.values()
        )
    )


def _end(computation: Computation, start: Instruction) -> str | None:
    """Returns the instruction that waits for a start; None for one that waits itself."""
    kind = start.opcode.removesuffix("-start")
    if start.opcode == "send":
        # The result of a collective over DCN is received under the name that it was sent with.
        name = start.attribute("_xla_host_transfer_rendezvous")
        received = {
            i.name
            for i in computation.instructions.values()
            if i.opcode == "recv" and i.attribute("_xla_host_transfer_rendezvous") == name
        }
        begun, opcode = received or {start.name}, "recv-done" if received else "send-done"
    elif start.opcode.endswith("-start"):
        begun, opcode = {start.name}, f"{kind}-done"
    else:
        return None
    for instruction in computation.instructions.values():
        if instruction.opcode == opcode:
            for operand in instruction.operands:
                origin = computation.origin(operand, _PASSED_ON)
                if origin is not None and origin.name in begun:
                    return instruction.name
    return None
