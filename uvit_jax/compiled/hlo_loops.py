"""Number of executions of each part of a compiled program, from the trip counts of its loops."""

import dataclasses
import graphlib
import re
from collections import Counter
from collections.abc import Sequence

from uvit_jax.compiled.hlo_text import Computation, Instruction, Module

_KNOWN_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_PASSED_ON = ("copy", "bitcast", "convert", "copy-start", "copy-done", "reshape", "opt-barrier")


def executions(module: Module, *, loops: bool = True) -> dict[str, int]:
    """Counts how often each computation runs in one call of the program, for those that run.

    A loop's body counts once per trip, multiplied for nested loops, and its condition once more. A
    loop with an unknown trip count (`unknown_loops`) counts once, and every branch of a conditional
    counts as taken. With loops=False each body counts once, as in `compiled.cost_analysis()`.
    """
    # Callers come before their callees, so that a count is complete before it is passed on.
    calls = {
        name: {
            callee
            for i in computation.instructions.values()
            for callee in i.called
            if callee in module.computations
        }
        for name, computation in module.computations.items()
    }
    counts = Counter({module.entry: 1})
    for name in reversed([*graphlib.TopologicalSorter(calls).static_order()]):
        computation = module.computations[name]
        for instruction in computation.instructions.values() if counts[name] else ():
            trips = trip_count(module, computation, instruction) if loops else 1
            condition = (
                (instruction.attribute("condition") or "").lstrip("%")
                if instruction.opcode == "while"
                else ""
            )
            for callee in instruction.called:
                once_more = loops and trips is not None and callee == condition
                counts[callee] += counts[name] * ((1 if trips is None else trips) + once_more)
    return {name: count for name, count in counts.items() if count and name in module.computations}


def unknown_loops(module: Module) -> tuple[str, ...]:
    """Names the `while` instructions that run and whose trip count is not in the text."""
    running = executions(module, loops=False)
    return tuple(
        instruction.name
        for computation, instruction in module.instructions()
        if computation.name in running and trip_count(module, computation, instruction) is None
    )


def loop_computations(module: Module) -> frozenset[str]:
    """Returns the computations that run inside a loop, whatever its trip count."""
    pending = [c for _, i in module.instructions() if i.opcode == "while" for c in i.called]
    inside: set[str] = set()
    while pending:
        name = pending.pop()
        if name in module.computations and name not in inside:
            inside.add(name)
            pending += [
                c for i in module.computations[name].instructions.values() for c in i.called
            ]
    return frozenset(inside)


def trip_count(module: Module, computation: Computation, instruction: Instruction) -> int | None:
    """Returns how often the body of a `while` runs; 1 for any other instruction, None if unknown.

    The CPU and GPU compilers write the number. In a TPU's text it follows from the condition
    (`i < 14`), the first value of i, and what the body adds to it.
    """
    if instruction.opcode != "while":
        return 1
    if known := _KNOWN_TRIP_COUNT.search(instruction.attributes):
        return int(known[1])
    condition, body = (
        module.computations.get((instruction.attribute(key) or "").lstrip("%"))
        for key in ("condition", "body")
    )
    if condition is None or body is None:
        return None
    comparison = _comparison(module, condition, condition.root, None)
    if comparison is None:
        return None
    left, right, direction = comparison
    start, step = _course(module, computation, instruction, body, left)
    bound, bound_step = _course(module, computation, instruction, body, right)
    if start is None or bound is None or step is None or bound_step is None:
        return None
    return _rounds(bound - start, step - bound_step, direction)


def _rounds(gap: int, step: int, direction: str) -> int | None:
    """Counts the trips in which `0 < gap`, or the direction's comparison, holds.

    Each trip takes `step` off the gap. None for a loop that would not end or can't be read.
    """
    if direction in ("GT", "GE"):
        gap, step, direction = -gap, -step, {"GT": "LT", "GE": "LE"}[direction]
    if direction == "NE" and step and gap % step == 0 and gap // step >= 0:
        return gap // step
    if direction == "LE":
        gap, direction = gap + 1, "LT"
    if direction != "LT" or step <= 0 < gap:
        return None
    return -(-gap // step) if gap > 0 else 0


@dataclasses.dataclass(frozen=True)
class _Affine:
    """A whole number: `offset`, plus an element of the loop's state at the start of a trip."""

    element: int | None
    offset: int


# Values of a computation's parameters; None in a loop, whose one parameter is its state.
_Arguments = Sequence[_Affine | None] | None


def _course(
    module: Module, computation: Computation, loop: Instruction, body: Computation, value: _Affine
) -> tuple[int | None, int | None]:
    """Returns a value in the first trip, and its growth in each; None for what is not known."""
    if value.element is None:
        return value.offset, 0
    begin = _element(module, computation, next(iter(loop.operands), ""), value.element, ())
    after = _element(module, body, body.root, value.element, None)
    start = begin.offset + value.offset if begin and begin.element is None else None
    return start, after.offset if after and after.element == value.element else None


def _comparison(
    module: Module, computation: Computation, name: str, arguments: _Arguments
) -> tuple[_Affine, _Affine, str] | None:
    """Returns both sides and the direction ("LT", ...) of an instruction's comparison."""
    instruction = computation.instructions.get(name)
    if instruction is None:
        return None
    values = [_value(module, computation, operand, arguments) for operand in instruction.operands]
    if instruction.opcode in ("fusion", "call"):
        callee = module.computations.get(next(iter(instruction.called), ""))
        return _comparison(module, callee, callee.root, values) if callee else None
    if (
        instruction.opcode != "compare"
        or len(values) != 2
        or values[0] is None
        or values[1] is None
    ):
        return None
    return values[0], values[1], instruction.attribute("direction") or ""


def _element(
    module: Module, computation: Computation, name: str, index: int, arguments: _Arguments
) -> _Affine | None:
    """Returns the value of an element of a tuple, None if unknown."""
    source = computation.origin(name, _PASSED_ON)
    if source is None:
        return None
    if source.opcode == "parameter" and arguments is None:
        return _Affine(index, 0)
    if source.opcode == "tuple" and index < len(source.operands):
        return _value(module, computation, source.operands[index], arguments)
    return None


def _value(
    module: Module, computation: Computation, name: str, arguments: _Arguments
) -> _Affine | None:
    """Returns the value of an instruction whose result is one whole number, None if unknown."""
    instruction = computation.origin(name, _PASSED_ON)
    # Arrays are not followed: a loop's counter does not depend on them, and they lead through the
    # whole program.
    if instruction is None or not (
        len(instruction.shapes) == 1 and instruction.shapes[0].is_whole_number
    ):
        return None
    values = [_value(module, computation, operand, arguments) for operand in instruction.operands]
    match instruction.opcode, values:
        case "constant", _:
            return (
                _Affine(None, int(instruction.literal))
                if re.fullmatch(r"-?\d+", instruction.literal)
                else None
            )
        case "parameter", _:
            number = int(instruction.literal)
            return arguments[number] if arguments is not None and number < len(arguments) else None
        case "get-tuple-element", [_]:
            index = next(iter(instruction.ints("index")), 0)
            return _element(module, computation, instruction.operands[0], index, arguments)
        case ("add", [_Affine() as left, _Affine(None, offset)]) | (
            "add",
            [_Affine(None, offset), _Affine() as left],
        ):
            return _Affine(left.element, left.offset + offset)
        case "subtract", [_Affine() as left, _Affine(None, offset)]:
            return _Affine(left.element, left.offset - offset)
        case "fusion" | "call", _:
            callee = module.computations.get(next(iter(instruction.called), ""))
            return _value(module, callee, callee.root, values) if callee else None
    return None
