"""The parts of a compiled program, how often each runs, and the FLOPs of its matrix products."""

from uvit_jax.compiled.hlo_flops import instruction_flops, matmul_flops
from uvit_jax.compiled.hlo_loops import executions, loop_computations, unknown_loops
from uvit_jax.compiled.hlo_text import Computation, Instruction, Module, Shape, parse

__all__ = [
    "Computation",
    "Instruction",
    "Module",
    "Shape",
    "executions",
    "instruction_flops",
    "loop_computations",
    "matmul_flops",
    "parse",
    "unknown_loops",
]
