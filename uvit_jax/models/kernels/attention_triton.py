"""Self-attention on packed queries, keys and values as Triton kernels, with no copies around them.

A program owns a block of rows of one head and walks over all tokens of that head in blocks of
columns (`triton_blocks.py`).
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from uvit_jax.models.kernels.backends import kernel_jit
from uvit_jax.models.kernels.backends import triton as plgpu
from uvit_jax.models.kernels.triton_blocks import (
    Block,
    Matrix,
    add_product,
    channels,
    cut,
    inner,
    load,
    load_vector,
    store,
    store_vector,
    walk_columns,
    zeros,
)

LOG2_E = math.log2(math.e)


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Sizes that a kernel's speed depends on, never its result.

    Attributes:
      rows: rows that a program owns, a power of two of at least 16.
      columns: columns of a step of its loop, likewise.
      row_tail: the smallest block of rows for the last tokens: 16 to compute few rows for nothing,
        `rows` for one masked whole block (a smaller program; 16 rows are too few for Hopper's
        wgmma).
      warps: warps of 32 threads in a program.
      stages: blocks of columns in flight.
    """

    rows: int = 64
    columns: int = 64
    row_tail: int = 64
    warps: int = 4
    stages: int = 2


@dataclasses.dataclass(frozen=True)
class Tuning:
    """The tilings of the three kernels; rows are queries, but keys in `key_value_grad`."""

    forward: Tiling = Tiling(stages=3)
    query_grad: Tiling = Tiling()
    key_value_grad: Tiling = Tiling(columns=32, stages=3)


@kernel_jit("tiling", "interpret")
def forward(
    qkv: Float[Array, "b t 3 h k"], tiling: Tiling, *, interpret: bool = False
) -> tuple[Float[Array, "b t h k"], Float[Array, "b h t"]]:
    """softmax(q k^T / sqrt(k)) v, and log2 of each row's sum of exponentials, in float32."""
    b, t, _, h, k = qkv.shape
    out = jax.ShapeDtypeStruct((b, t, h, k), qkv.dtype)
    lse = jax.ShapeDtypeStruct((b, h, t), jnp.float32)
    call = _launcher(qkv.shape, qkv.dtype.itemsize, tiling, products=2, interpret=interpret)
    return call(_forward_kernel, [qkv], [out, lse])


@kernel_jit("tuning", "interpret")
def backward(
    qkv: Float[Array, "b t 3 h k"],
    out: Float[Array, "b t h k"],
    lse: Float[Array, "b h t"],
    d_out: Float[Array, "b t h k"],
    tuning: Tuning,
    *,
    interpret: bool = False,
) -> Float[Array, "b t 3 h k"]:
    """Gradient with respect to qkv, from the results of `forward`: two kernels that fill one array.

    The first owns queries: it writes their gradient, and delta = rowsum(d_out * out), which the
    second needs for all queries. The second owns keys and adds their gradients and the values' to
    the same array. The probabilities are computed in both (7 products where 5 would do): sums over
    queries and over keys then stay in registers each, and no sum depends on the order in which
    programs run.
    """
    call = functools.partial(_launcher, qkv.shape, qkv.dtype.itemsize, interpret=interpret)
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (qkv, lse)]
    d_qkv, delta = call(tuning.query_grad, products=3)(
        _query_grad_kernel, [qkv, out, d_out, lse], shapes
    )
    fill = call(tuning.key_value_grad, products=4)
    return fill(
        _key_value_grad_kernel, [qkv, d_out, lse, delta, d_qkv], shapes[:1], aliases={4: 0}
    )[0]


def _launcher(
    shape: tuple[int, ...], itemsize: int, tiling: Tiling, *, products: int, interpret: bool
) -> Callable[..., Any]:
    """Runs a kernel, one program a head and block of rows; neighbours share a head in cache."""
    b, t, _, h, k = shape
    whole, tail = cut(t, tiling.rows, tiling.row_tail)
    _, column_tail = cut(t, tiling.columns)
    # References reach as far as masked blocks do.
    tokens = max(
        whole * tiling.rows + sum(x.size for x in tail),
        t + sum(x.size - int(x.valid) for x in column_tail),
    )
    width = sum(block.size for block in channels(k))

    def spec(array: Any) -> pl.BlockSpec:
        if array.ndim == 5:
            return pl.BlockSpec(
                (None, tokens, 3, None, width), lambda i, head, example: (example, 0, 0, head, 0)
            )
        if array.ndim == 4:
            return pl.BlockSpec(
                (None, tokens, None, width), lambda i, head, example: (example, 0, head, 0)
            )
        return pl.BlockSpec((None, None, tokens), lambda i, head, example: (example, head, 0))

    def call(
        kernel: Callable[..., None],
        inputs: list[Any],
        outputs: list[Any],
        aliases: dict[int, int] | None = None,
    ) -> Any:
        def run(*refs: Any) -> None:
            body = functools.partial(kernel, *refs, tokens=t, head_dim=k, columns=tiling.columns)
            _own_rows(body, tiling.rows, whole, tail)

        moved = sum(math.prod(a.shape) * a.dtype.itemsize for a in (*inputs, *outputs))
        name = f"attention{kernel.__name__.removesuffix('_kernel')}"
        run.__name__ = name
        return pl.pallas_call(
            run,
            grid=(whole + len(tail), h, b),
            in_specs=[spec(a) for a in inputs],
            out_specs=[spec(a) for a in outputs],
            out_shape=outputs,
            input_output_aliases=aliases or {},
            compiler_params=plgpu.CompilerParams(num_warps=tiling.warps, num_stages=tiling.stages),
            cost_estimate=pl.CostEstimate(
                flops=products * 2 * b * h * t * t * k,
                transcendentals=b * h * t * t,
                bytes_accessed=moved,
            ),
            interpret=interpret,
            name=name,
        )(*inputs)

    return call


def _own_rows(
    body: Callable[[Block], None], rows: int, whole: int, tail: tuple[Block, ...]
) -> None:
    """Runs the body on the block of rows that this program owns."""
    i = pl.program_id(0)
    if len(tail) == 1 and tail[0].size == rows:
        # Masks everywhere cost less than the body twice.
        body(Block(i * rows, rows, whole * rows + int(tail[0].valid) - i * rows))
        return
    if whole:
        pl.when(i < whole)(lambda: body(Block(i * rows, rows, rows)))
    for j, block in enumerate(tail):
        pl.when(i == whole + j)(functools.partial(body, block))


def _forward_kernel(
    qkv_ref: Any,
    out_ref: Any,
    lse_ref: Any,
    rows: Block,
    *,
    tokens: int,
    head_dim: int,
    columns: int,
) -> None:
    """Online softmax (arXiv:2205.14135, Alg. 1) over blocks of keys, in base 2, scale inside."""
    scale = LOG2_E / math.sqrt(head_dim)
    query = load(qkv_ref, (0,), rows, head_dim)

    def step(block: Block, carry: tuple[Array, Array, Matrix]) -> tuple[Array, Array, Matrix]:
        peak, total, acc = carry
        logits = inner(query, load(qkv_ref, (1,), block, head_dim))
        if block.masked:
            logits = jnp.where(block.mask[None], logits, -jnp.inf)
        new_peak = jnp.maximum(peak, jnp.max(logits, axis=1))
        weights = jnp.exp2(logits * scale - (new_peak * scale)[:, None])
        fade = jnp.exp2((peak - new_peak) * scale)
        acc = tuple(x * fade[:, None] for x in acc)
        acc = add_product(acc, weights, load(qkv_ref, (2,), block, head_dim))
        return new_peak, total * fade + jnp.sum(weights, axis=1), acc

    # Finite, so that a first block whose logits are all -inf fades by no NaN.
    lowest = jnp.full((rows.size,), jnp.finfo(jnp.float32).min, jnp.float32)
    start = lowest, jnp.zeros((rows.size,), jnp.float32), zeros(rows, head_dim)
    peak, total, acc = walk_columns(step, start, tokens, columns)
    store(out_ref, (), rows, head_dim, tuple(x / total[:, None] for x in acc))
    store_vector(lse_ref, rows, peak * scale + jnp.log2(total))


def _query_grad_kernel(
    qkv_ref: Any,
    out_ref: Any,
    d_out_ref: Any,
    lse_ref: Any,
    d_qkv_ref: Any,
    delta_ref: Any,
    rows: Block,
    *,
    tokens: int,
    head_dim: int,
    columns: int,
) -> None:
    """dq = scale (p * (d_out v^T - delta)) k, delta = rowsum(d_out * out) (2307.08691, Alg. 2)."""
    scale = LOG2_E / math.sqrt(head_dim)
    query, d_out = load(qkv_ref, (0,), rows, head_dim), load(d_out_ref, (), rows, head_dim)
    out, lse = load(out_ref, (), rows, head_dim), load_vector(lse_ref, rows)
    products = (
        x.astype(jnp.float32) * y.astype(jnp.float32) for x, y in zip(out, d_out, strict=True)
    )
    first, *rest = (jnp.sum(x, axis=1) for x in products)
    delta = sum(rest, first)
    store_vector(delta_ref, rows, delta)

    def step(block: Block, acc: Matrix) -> Matrix:
        key = load(qkv_ref, (1,), block, head_dim)
        weights = jnp.exp2(inner(query, key) * scale - lse[:, None])
        if block.masked:
            # A key of zeros, where there is none, may have any weight, infinity too.
            weights = jnp.where(block.mask[None], weights, 0.0)
        d_logits = weights * (inner(d_out, load(qkv_ref, (2,), block, head_dim)) - delta[:, None])
        return add_product(acc, d_logits, key)

    acc = walk_columns(step, zeros(rows, head_dim), tokens, columns)
    store(d_qkv_ref, (0,), rows, head_dim, tuple(x / math.sqrt(head_dim) for x in acc))


def _key_value_grad_kernel(
    qkv_ref: Any,
    d_out_ref: Any,
    lse_ref: Any,
    delta_ref: Any,
    _: Any,
    d_qkv_ref: Any,
    rows: Block,
    *,
    tokens: int,
    head_dim: int,
    columns: int,
) -> None:
    """dv = p^T d_out, dk = scale (p * (d_out v^T - delta))^T q (arXiv:2307.08691, Algorithm 2).

    Rows are keys and columns queries, p transposed: as the left factor of both sums it never leaves
    the registers. Queries that do not exist are zeros, and so is what they add.
    """
    scale = LOG2_E / math.sqrt(head_dim)
    key, value = load(qkv_ref, (1,), rows, head_dim), load(qkv_ref, (2,), rows, head_dim)

    def step(block: Block, carry: tuple[Matrix, Matrix]) -> tuple[Matrix, Matrix]:
        d_key, d_value = carry
        query, d_out = load(qkv_ref, (0,), block, head_dim), load(d_out_ref, (), block, head_dim)
        lse, delta = load_vector(lse_ref, block), load_vector(delta_ref, block)
        weights = jnp.exp2(inner(key, query) * scale - lse[None])
        d_value = add_product(d_value, weights, d_out)
        d_logits = weights * (inner(value, d_out) - delta[None])
        return add_product(d_key, d_logits, query), d_value

    start = zeros(rows, head_dim), zeros(rows, head_dim)
    d_key, d_value = walk_columns(step, start, tokens, columns)
    store(d_qkv_ref, (1,), rows, head_dim, tuple(x / math.sqrt(head_dim) for x in d_key))
    store(d_qkv_ref, (2,), rows, head_dim, d_value)
