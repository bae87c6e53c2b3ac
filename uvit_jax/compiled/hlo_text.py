"""Parser of a compiled program's text, as XLA's compilers for CPU, GPU and TPU write it."""

import dataclasses
import math
import re
from collections.abc import Container, Iterator
from typing import NamedTuple

# An assignment: "  ROOT %name = ", then the result's type, the opcode, operands and attributes.
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
    """Shape of one array of an instruction's result or operands, as one device holds it."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Size in bytes without padding, by the bits in the dtype's name ("bf16", "f8e4m3fn")."""
        if self.dtype == "pred":
            return self.elements
        bits = re.search(r"\d+", self.dtype)
        return self.elements * int(bits[0]) // 8 if bits else 0

    @property
    def is_whole_number(self) -> bool:
        """True for a single integer."""
        return self.dims == () and self.dtype[:1] in "su"


@dataclasses.dataclass(frozen=True, slots=True)
class Instruction:
    """One line of a program.

    Attributes:
      name: unique in its computation, without the %.
      opcode: "dot", "fusion", "all-gather-start", ...
      shapes: the result's arrays; a tuple's, nested ones too, in order.
      operands: names of instructions of the same computation.
      literal: the value of a constant or the number of a parameter, in the place of operands.
      called: the computations that it runs, without the scalar functions of reductions, sorts and
        scatters.
      attributes: the text after the operands.
      op_name: the place in the JAX program that it comes from, "" if the compiler gives none.
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
        """Returns the value of `name=value`, also within frontend_attributes; None without it."""
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
        """Returns the whole numbers of an attribute such as `dimensions={1,2}`, () without it."""
        return tuple(int(n) for n in re.findall(r"-?\d+", self.attribute(name) or ""))


@dataclasses.dataclass(frozen=True)
class Computation:
    """A function of a program: its instructions by name, in order, and the name of its result."""

    name: str
    instructions: dict[str, Instruction]
    root: str

    def operand_shapes(self, instruction: Instruction) -> tuple[Shape, ...]:
        """Returns the arrays of an instruction's operands, those of tuples too, in order."""
        known = (
            self.instructions[name] for name in instruction.operands if name in self.instructions
        )
        return tuple(shape for operand in known for shape in operand.shapes)

    def origin(self, name: str, through: Container[str]) -> Instruction | None:
        """Follows a name back through opcodes that pass their operand on; None if unknown."""
        found = self.instructions.get(name)
        while found is not None and found.opcode in through:
            found = self.instructions.get(next(iter(found.operands), ""))
        return found


@dataclasses.dataclass(frozen=True)
class Module:
    """A compiled program.

    Attributes:
      computations: its functions by name, in the order of the text.
      entry: the name of the function that the program starts with.
      num_partitions: number of parts that arrays are split into. In a program that the compiler has
        split by TPU slice this is the number of devices of one slice.
      num_replicas: copies of the program that run together (always 1 from `jax.jit`).
    """

    computations: dict[str, Computation]
    entry: str
    num_partitions: int
    num_replicas: int

    def instructions(self) -> Iterator[tuple[Computation, Instruction]]:
        """Yields every instruction with its computation."""
        for computation in self.computations.values():
            for instruction in computation.instructions.values():
                yield computation, instruction


def parse(text: str) -> Module:
    """Parses `compiled.as_text()`: HLO after optimization, with one device's shapes.

    Lines of an unknown form are skipped, so that most of a newer compiler's text can be read. Text
    that is not HLO gives a module without computations.
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
    """Parses the instruction after `name = `, None if it has no opcode."""
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
    """Returns the place of the parenthesis that closes the first one; the text's end without it."""
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
    """Returns the names in "%a, /*index=1*/%b", in "f32[2,3]{1,0} %a" or in "a, b"."""
    if "%" in text:
        return tuple(re.findall(r"%([\w.\-]+)", text))
    parts = re.sub(r"/\*.*?\*/", "", text).split(", ")
    return tuple(part.split()[-1] for part in parts if part.strip())


def _called(opcode: str, attributes: str) -> tuple[str, ...]:
    # The end of an asynchronous operation names the computation that its start has already run.
    if opcode.endswith(("-done", "-update")):
        return ()
    found = (
        m
        for m in _CALLED.finditer(attributes)
        if m[1] != "to_apply" or opcode in ("call", "call-start")
    )
    return tuple(name for m in found for name in re.findall(r"[\w.\-]+", m[2]))
