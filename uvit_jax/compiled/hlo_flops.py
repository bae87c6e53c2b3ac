"""FLOPs of a compiled program on the matrix units: dots, convolutions and kernels with them."""

import functools
import math
import re
from collections.abc import Sequence

import numpy as np

from uvit_jax.compiled.hlo_loops import executions
from uvit_jax.compiled.hlo_text import Computation, Instruction, Module, Shape


def matmul_flops(module: Module, *, loops: bool = True) -> int:
    """Counts FLOPs of one device in one call: two for every multiply-add of a matrix product.

    Counted are dots and convolutions, also inside fusions (where TPUs write dots as convolutions,
    and Triton has them); products of cuBLAS and oneDNN; convolutions and attention of cuDNN; and
    the FLOPs that a Pallas kernel states. A convolution counts only the places where its window
    covers the input, not padding or the zeros of a dilation: TPUs write batched products as such
    windows. Elementwise work is not counted.

    Args:
      module: the program.
      loops: False counts the body of each loop once, as `compiled.cost_analysis()["flops"]` does.
    """
    counts = executions(module, loops=loops)
    return sum(
        counts[computation.name] * instruction_flops(computation, instruction)
        for computation, instruction in module.instructions()
        if computation.name in counts
    )


def instruction_flops(computation: Computation, instruction: Instruction) -> int:
    """Counts FLOPs of one instruction; 0 for one that is not a matrix product or can't be read."""
    operands, results = computation.operand_shapes(instruction), instruction.shapes
    if not operands or not results:
        return 0
    try:
        match instruction.opcode:
            case "dot" | "scaled-dot":
                return _product(results[0], operands[0], instruction.ints("lhs_contracting_dims"))
            case "convolution":
                return _convolution(instruction, operands[0], operands[1], results[0])
            case "custom-call":
                return _kernel(instruction, operands, results)
    except (KeyError, IndexError, ValueError):
        # A newer compiler, which writes windows and dimensions in another way.
        return 0
    return 0


def _product(result: Shape, lhs: Shape, contracted: Sequence[int]) -> int:
    return 2 * result.elements * math.prod(lhs.dims[i] for i in contracted)


def _kernel(instruction: Instruction, operands: Sequence[Shape], results: Sequence[Shape]) -> int:
    """Counts FLOPs of a library's or Pallas kernel, by its target."""
    target = (instruction.attribute("custom_call_target") or "").strip('"')
    if "fmha" in target:
        return _attention(instruction, operands[0], backward="Backward" in target)
    if re.search("gemm|matmul", target):
        return _product(
            results[0], operands[0], _config_ints(instruction, "lhs_contracting_dimensions")
        )
    if "conv" in target:
        # The same multiply-adds, whichever of the three arrays is the result.
        if "BackwardInput" in target:
            return _convolution(instruction, results[0], operands[1], operands[0])
        if "BackwardFilter" in target:
            return _convolution(instruction, operands[0], results[0], operands[1])
        return _convolution(instruction, operands[0], operands[1], results[0])
    stated = re.search(r'"cost_estimate":\{[^}]*"flops":"?(\d+)', instruction.attributes)
    return int(stated[1]) if stated else 0


def _attention(instruction: Instruction, query: Shape, *, backward: bool) -> int:
    """Counts FLOPs of cuDNN's attention: two products forward, five backward (scores again)."""
    scores = re.search(
        r'"intermediate_tensor_shape":\{.*?"dimensions":\[([^\]]*)\]', instruction.attributes
    )
    if scores is None:
        return 0
    pairs = math.prod(int(n) for n in re.findall(r"\d+", scores[1]))
    return 2 * (5 if backward else 2) * pairs * query.dims[-1]


def _config_ints(instruction: Instruction, key: str) -> tuple[int, ...]:
    found = re.search(rf'"{key}":\[([^\]]*)\]', instruction.attributes)
    return tuple(int(n) for n in re.findall(r"\d+", found[1])) if found else ()


def _convolution(instruction: Instruction, lhs: Shape, kernel: Shape, result: Shape) -> int:
    """Counts 2 x batch x output features x input features of a group x (output, kernel) pairs.

    Only pairs of an output place and a kernel place that fall on the input count.

    The labels `b01f_01io->b01f` say which dimension of each array is the batch (b), the features
    (f; i and o for the kernel) and each of the spatial ones (0, 1, ...).
    """
    labels = re.fullmatch(
        r"(\w+)_(\w+)->(\w+)", (instruction.attribute("dim_labels") or "").strip('"')
    )
    if labels is None:
        return 0
    lhs_axes = dict(zip(labels[1], lhs.dims, strict=True))
    kernel_axes = dict(zip(labels[2], kernel.dims, strict=True))
    result_axes = dict(zip(labels[3], result.dims, strict=True))
    window = dict(
        part.split("=") for part in (instruction.attribute("window") or "{}")[1:-1].split()
    )
    places = 1
    for i, axis in enumerate(sorted(a for a in kernel_axes if a.isdigit())):
        stride, lhs_dilate, rhs_dilate = (
            _nth(window, key, i) for key in ("stride", "lhs_dilate", "rhs_dilate")
        )
        low = int(window["pad"].split("x")[i].split("_")[0]) if "pad" in window else 0
        places *= _pairs(
            lhs_axes[axis],
            kernel_axes[axis],
            result_axes[axis],
            stride,
            low,
            lhs_dilate,
            rhs_dilate,
        )
    batch = lhs_axes["b"] // next(iter(instruction.ints("batch_group_count")), 1)
    return 2 * batch * result_axes["f"] * kernel_axes["i"] * places


def _nth(window: dict[str, str], key: str, i: int) -> int:
    return int(window[key].split("x")[i]) if key in window else 1


@functools.cache
def _pairs(
    size: int, kernel: int, result: int, stride: int, low: int, lhs_dilate: int, rhs_dilate: int
) -> int:
    """Counts pairs of an output and a kernel place that fall on an input element, on one axis."""
    place = np.arange(result)[:, None] * stride + np.arange(kernel) * rhs_dilate - low
    inside = (place >= 0) & (place < (size - 1) * lhs_dilate + 1) & (place % lhs_dilate == 0)
    return int(inside.sum())
