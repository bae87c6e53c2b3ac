"""Seconds of each instruction of a TPU program, as estimated by the compiler that scheduled it."""

import re

from uvit_jax.compiled.hlo_flops import instruction_flops
from uvit_jax.compiled.hlo_loops import trip_count
from uvit_jax.compiled.hlo_text import Computation, Instruction, Module
from uvit_jax.parallel.chips import Chip

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_MOVED = re.compile(r'"cost_estimate":\{[^}]*"bytes_accessed":"?(\d+)')
_RUNS_OTHERS = ("while", "call", "conditional")

# Seconds by the names of the computation and of the instruction in it.
Seconds = dict[str, dict[str, float]]


def instruction_seconds(module: Module, chip: Chip) -> Seconds:
    """Estimates seconds of one execution of every instruction on a chip, without networks.

    The TPU compiler writes beside each fusion the cycles that its scheduler expects, for both cores
    of a chip together. They are estimates, not measurements. Without them, or without `chip.clock`,
    an instruction takes the time of its matrix products at the chip's peak (a Pallas kernel that of
    the bytes it states, if longer), and other instructions take none. A loop counts its body and
    condition as often as they run (once if unknown), a conditional all of its branches.
    """
    known: Seconds = {}
    for name in module.computations:
        _computation(module, chip, name, known)
    return known


def _computation(module: Module, chip: Chip, name: str, known: Seconds) -> float:
    """Returns seconds of one execution of a computation; adds it and its callees to `known`."""
    if name not in module.computations:
        return 0.0
    if name not in known:
        computation = module.computations[name]
        known[name] = {
            i.name: _instruction(module, chip, computation, i, known)
            for i in computation.instructions.values()
        }
    return sum(known[name].values(), start=0.0)


def _instruction(
    module: Module, chip: Chip, computation: Computation, instruction: Instruction, known: Seconds
) -> float:
    within = [_computation(module, chip, callee, known) for callee in instruction.called]
    if instruction.opcode in _RUNS_OTHERS:
        return (trip_count(module, computation, instruction) or 1) * sum(within, start=0.0)
    cycles = _CYCLES.search(instruction.attributes)
    if cycles and chip.clock:
        return int(cycles[1]) / chip.clock
    if instruction.opcode == "fusion":
        return sum(within, start=0.0)
    moved = _MOVED.search(instruction.attributes) if instruction.opcode == "custom-call" else None
    return max(
        instruction_flops(computation, instruction) / chip.peak_flops,
        int(moved[1]) / chip.hbm_bandwidth if moved else 0.0,
    )
