"""Reads a compiled program: what it consists of, how often each part runs, and what its matrix
products cost.
"""

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
