"""Self-attention of short sequences as two TPU kernels: a whole example fits on the chip.

Queries, keys and values come as three planes `[3, b, t, heads * k]`, as a matrix product writes
them: heads side by side, nothing transposed, sliced or padded in memory. A program owns one
example; of each head it takes k columns of each plane. Sizes that fill no tile (258 tokens, 72
channels) are the compiler's to mask, which it does in every sum and contraction.

Logits have keys down and queries across, so that maxima and sums over keys run down the rows,
element by element, and of the backward pass's five products one has to transpose. (The other way
round the forward kernel is 14 % longer.)
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

LOG2_E = math.log2(math.e)
# Bytes of on-chip memory that a kernel may take, more than `vmem_bytes` for where it is off. A v4
# has 16 MiB, whatever is allowed; of later chips' 64 and 128 the compiler would else give 16.
VMEM_LIMIT = 32 * 2**20
# The contracted axes of a b^T, a b and a^T b.
_NT, _NN, _TN = ((1,), (1,)), ((1,), (0,)), ((0,), (0,))


def forward(
    planes: Float[Array, "3 b t c"], head_dim: int, *, interpret: bool = False
) -> Float[Array, "b t c"]:
    """softmax(q k^T / sqrt(head_dim)) v of the c / head_dim heads, softmax in float32."""
    out = jax.ShapeDtypeStruct(planes.shape[1:], planes.dtype)
    return _call(_forward_kernel, [planes], out, head_dim, products=2, interpret=interpret)


def backward(
    planes: Float[Array, "3 b t c"],
    d_out: Float[Array, "b t c"],
    head_dim: int,
    *,
    interpret: bool = False,
) -> Float[Array, "3 b t c"]:
    """Gradient with respect to the planes, which are all that the forward pass keeps for it.

    All keys of a query are there at once: its sum of exponentials takes fewer bytes to make again
    than to keep, and delta = rowsum(d_out * out) (arXiv:2205.14135, Algorithm 4) is the sum of p *
    dp over keys.
    """
    d_planes = jax.ShapeDtypeStruct(planes.shape, planes.dtype)
    return _call(
        _backward_kernel, [planes, d_out], d_planes, head_dim, products=5, interpret=interpret
    )


def vmem_bytes(tokens: int, heads: int, head_dim: int, itemsize: int) -> int:
    """On-chip memory of the backward kernel in bytes, roughly.

    Seven planes twice, to move one example while computing on another, and what the compiler
    spills: about one matrix of logits in float32 for each head of the unrolled loop.
    """
    rows, lanes = _up(tokens, 32 // itemsize), _up(heads * head_dim, 128)
    return 2 * 7 * rows * lanes * itemsize + heads * _up(tokens, 8) * _up(tokens, 128) * 4


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _call(
    kernel: Callable[..., None],
    inputs: list[Array],
    output: jax.ShapeDtypeStruct,
    head_dim: int,
    *,
    products: int,
    interpret: bool,
) -> Array:
    """Runs a kernel with one program for each example."""
    _, b, t, c = inputs[0].shape
    heads, rest = divmod(c, head_dim)
    assert rest == 0, f"{c} channels are not a whole number of heads of {head_dim}"

    def spec(array: Any) -> pl.BlockSpec:
        if array.ndim == 4:
            return pl.BlockSpec((3, None, t, c), lambda i: (0, i, 0, 0))
        return pl.BlockSpec((None, t, c), lambda i: (i, 0, 0))

    arrays: list[Any] = [*inputs, output]
    moved = sum(math.prod(a.shape) * a.dtype.itemsize for a in arrays)
    return pl.pallas_call(
        functools.partial(kernel, heads=heads, head_dim=head_dim),
        grid=(b,),
        in_specs=[spec(a) for a in inputs],
        out_specs=spec(output),
        out_shape=output,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",), vmem_limit_bytes=VMEM_LIMIT
        ),
        cost_estimate=pl.CostEstimate(
            flops=products * 2 * b * heads * t * t * head_dim,
            transcendentals=b * heads * t * t,
            bytes_accessed=moved,
        ),
        interpret=interpret,
        name=f"attention{kernel.__name__.removesuffix('_kernel')}",
    )(*inputs)


def _dot(a: Array, b: Array, contracted: tuple[tuple[int, ...], tuple[int, ...]]) -> Array:
    """The product over the contracted axes, summed in float32."""
    # The default for float32 operands would be one pass in bfloat16.
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    return jax.lax.dot_general(
        a, b, (contracted, ((), ())), precision=precision, preferred_element_type=jnp.float32
    )


def _probabilities(key: Array, query: Array) -> Array:
    """softmax over keys of k q^T / sqrt(head_dim), `[keys, queries]`, in base 2."""
    logits = _dot(key, query, _NT)
    peak = jnp.max(logits, axis=0, keepdims=True)
    weights = jnp.exp2((logits - peak) * (LOG2_E / math.sqrt(key.shape[1])))
    return weights * (1 / jnp.sum(weights, axis=0, keepdims=True))


def _forward_kernel(planes_ref: Any, out_ref: Any, *, heads: int, head_dim: int) -> None:
    # Unrolled, so that one head's products run beside another's softmax.
    for head in range(heads):
        columns = slice(head * head_dim, (head + 1) * head_dim)
        query, key, value = (planes_ref[i, :, columns] for i in range(3))
        p = _probabilities(key, query)
        out_ref[:, columns] = _dot(p.astype(value.dtype), value, _TN).astype(out_ref.dtype)


def _backward_kernel(
    planes_ref: Any, d_out_ref: Any, d_planes_ref: Any, *, heads: int, head_dim: int
) -> None:
    """Gradients of one example (arXiv:2205.14135, Algorithm 4).

    dv = p d_out, dl = p * (dp - delta) with dp = v d_out^T, dk = dl q, dq = dl^T k; p, dp and dl
    are `[keys, queries]`.
    """
    scale = 1 / math.sqrt(head_dim)
    for head in range(heads):
        columns = slice(head * head_dim, (head + 1) * head_dim)
        query, key, value = (planes_ref[i, :, columns] for i in range(3))
        d_out = d_out_ref[:, columns]
        p = _probabilities(key, query)
        # d_p before d_value: in the other order the compiler's schedule for a v5e is a fifth
        # longer.
        d_p = _dot(value, d_out, _NT)
        d_value = _dot(p.astype(d_out.dtype), d_out, _NN)
        delta = jnp.sum(p * d_p, axis=0, keepdims=True)
        d_logits = (p * (d_p - delta) * scale).astype(key.dtype)
        d_key, d_query = _dot(d_logits, query, _NN), _dot(d_logits, key, _TN)
        for i, gradient in enumerate((d_query, d_key, d_value)):
            d_planes_ref[i, :, columns] = gradient.astype(d_planes_ref.dtype)
