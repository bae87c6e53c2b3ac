"""Parses the text of a compiled program, as the CPU, GPU and TPU compilers of XLA write it, into
its instructions.
"""

import dataclasses
import math
import re
from collections.abc import Container, Iterator
from typing import NamedTuple

# An assignment: "  ROOT %name = ", after which come the result's type, the opcode, the operands and
# the attributes.
_ASSIGNMENT = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = ")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+)(?: \(.*)? \{\s*$")
_SHAPE = re.compile(r"([a-z]\w*)\[([^\]]*)\]")
_OPCODE = re.compile(r"\s*([a-z][\w\-]*)\(")
_CALLED = re.compile(
    r"\b(calls|body|condition|to_apply|branch_computations|called_computations|true_computation|false_computation)"
    r"=(\{[^}]*\}|%?[\w.\-]+)"
)
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_VALUE_PART = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\](){},]')


class Shape(NamedTuple):
    """One array of an instruction's result or operands, in a program that is split over devices one
    device's part.
    """

    dtype: str
    dims: tuple[int, ...]

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """What it takes without padding; the first number in a name like "bf16" or "f8e4m3fn" is
        that of its bits.
        """
        if self.dtype == "pred":
            return self.elements
        bits = re.search(r"\d+", self.dtype)
        return self.elements * int(bits[0]) // 8 if bits else 0

    @property
    def is_whole_number(self) -> bool:
        """Whether it is a single integer."""
        return self.dims == () and self.dtype[:1] in "su"


@dataclasses.dataclass(frozen=True, slots=True)
class Instruction:
    """One line of a program.

    Attributes:
      name: unique in its computation, without the %.
      opcode: "dot", "fusion", "all-gather-start", ...
      shapes: the result's arrays; a tuple's, nested ones too, in order.
      operands: names of instructions of the same computation.
      literal: what stands for a constant's or a parameter's operands: its value or number.
      called: the computations it runs; the scalar functions of reductions, sorts and scatters are
        left out.
      attributes: what follows the operands, as it was written.
      op_name: the place in the JAX program it comes from, "" where the compiler doesn't say.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    literal: str
    called: tuple[str, ...]
    attributes: str
    op_name: str

    def attribute(self, name: str) -> str | None:
        """The value of `name=value`, also of one within frontend_attributes; None where there is
        none.
        """
        start = re.search(rf"(?:^|[{{,\s]){re.escape(name)}=", self.attributes)
        if start is None:
            return None
        depth = 0
        for part in _VALUE_PART.finditer(self.attributes, start.end()):
            depth += (part[0] in "[({") - (part[0] in "])}")
            if depth < 0 or (depth == 0 and part[0] == ","):
                return self.attributes[start.end() : part.start()]
        return self.attributes[start.end() :]

    def ints(self, name: str) -> tuple[int, ...]:
        """The whole numbers of an attribute such as `dimensions={1,2}`, () where there is none."""
        return tuple(int(n) for n in re.findall(r"-?\d+", self.attribute(name) or ""))


@dataclasses.dataclass(frozen=True)
class Computation:
    """A function of a program: its instructions by name, in order, and the name of the one it
    returns.
    """

    name: str
    instructions: dict[str, Instruction]
    root: str

    def operand_shapes(self, instruction: Instruction) -> tuple[Shape, ...]:
        """The arrays of its operands, of tuples too, in order."""
        known = (
            self.instructions[name] for name in instruction.operands if name in self.instructions
        )
        return tuple(shape for operand in known for shape in operand.shapes)

    def origin(self, name: str, through: Container[str]) -> Instruction | None:
        """The instruction whose result this is but for opcodes that pass their operand on; None for
        a name unknown.
        """
        found = self.instructions.get(name)
        while found is not None and found.opcode in through:
            found = self.instructions.get(next(iter(found.operands), ""))
        return found


@dataclasses.dataclass(frozen=True)
class Module:
    """A compiled program.

    Attributes:
      computations: its functions by name, in the order of the text.
      entry: the name of the one that is the program.
      num_partitions: parts the program's arrays are split into. A program for several TPU slices
        that the compiler has split by slice counts the devices of one slice.
      num_replicas: copies of the program that run together (1 for all that `jax.jit` makes).
    """

    computations: dict[str, Computation]
    entry: str
    num_partitions: int
    num_replicas: int

    def instructions(self) -> Iterator[tuple[Computation, Instruction]]:
        """Every instruction with the computation it stands in."""
        for computation in self.computations.values():
            for instruction in computation.instructions.values():
                yield computation, instruction


def parse(text: str) -> Module:
    """The program in `compiled.as_text()`: HLO after optimization, with one device's shapes.

    Lines of a form that isn't known are passed over, so that a newer compiler's text is read as far
    as it goes; of text that is no HLO at all comes a module without computations.
    """
    computations: dict[str, Computation] = {}
    entry = name = root = ""
    instructions: dict[str, Instruction] | None = None
    for line in text.splitlines():
        if instructions is None:
            header = _COMPUTATION.match(line)
            if header and not line.startswith("HloModule"):
                name, root, instructions = header[2], "", {}
                entry = name if header[1] else entry
        elif line.startswith("}"):
            computations[name] = Computation(
                name, instructions, root or next(reversed(instructions), "")
            )
            instructions = None
        elif (start := _ASSIGNMENT.match(line)) and (
            instruction := _instruction(start[2], line[start.end() :])
        ):
            instructions[instruction.name] = instruction
            root = instruction.name if start[1] else root
    title = text[: text.find("\n")]
    return Module(
        computations,
        entry or next(reversed(computations), ""),
        *(
            int(m[1]) if (m := re.search(rf"\b{n}=(\d+)", title)) else 1
            for n in ("num_partitions", "replica_count")
        ),
    )


def _instruction(name: str, text: str) -> Instruction | None:
    """The instruction after `name = `, None if it has no opcode."""
    type_end = _closing(text) + 1 if text.startswith("(") else text.find(" ")
    opcode = _OPCODE.match(text, type_end)
    if opcode is None:
        return None
    start = opcode.end()
    end = start - 1 + _closing(text[start - 1 :])
    inside, attributes = text[start:end], text[end + 1 :].lstrip(", ")
    is_literal = opcode[1] in ("constant", "parameter")
    op_name = _OP_NAME.search(attributes)
    return Instruction(
        name,
        opcode[1],
        _shapes(text[:type_end]),
        () if is_literal else _names(inside),
        inside if is_literal else "",
        _called(opcode[1], attributes),
        attributes,
        op_name[1] if op_name else "",
    )


def _closing(text: str) -> int:
    """The place of the parenthesis that closes the one the text begins with, the text's end if none
    does.
    """
    depth = 0
    for parenthesis in re.finditer(r"[()]", text):
        depth += 1 if parenthesis[0] == "(" else -1
        if depth == 0:
            return parenthesis.start()
    return len(text)


def _shapes(text: str) -> tuple[Shape, ...]:
    return tuple(
        Shape(dtype, tuple(int(n) for n in re.findall(r"\d+", dims)))
        for dtype, dims in _SHAPE.findall(text)
    )


def _names(text: str) -> tuple[str, ...]:
    """The names in "%a, /*index=1*/%b", in "f32[2,3]{1,0} %a" and in "a, b"."""
    if "%" in text:
        return tuple(re.findall(r"%([\w.\-]+)", text))
    parts = re.sub(r"/\*.*?\*/", "", text).split(", ")
    return tuple(part.split()[-1] for part in parts if part.strip())


def _called(opcode: str, attributes: str) -> tuple[str, ...]:
    # The end of something asynchronous names the computation that its start has run already.
    if opcode.endswith(("-done", "-update")):
        return ()
    found = (
        m
        for m in _CALLED.finditer(attributes)
        if m[1] != "to_apply" or opcode in ("call", "call-start")
    )
    return tuple(name for m in found for name in re.findall(r"[\w.\-]+", m[2]))
