"""Triton kernels: LayerNorm, its gradients with a residual add's and a bias's, sums over rows."""

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from uvit_jax.models.kernels.backends import kernel_jit
from uvit_jax.models.kernels.tiles import (
    Grid,
    Tuning,
    fetch,
    launch,
    load,
    load_block,
    make_grid,
    store,
)
from uvit_jax.models.layers import EPSILON

# The fastest seen on an H100 (benchmarks/kernels.py).
FORWARD = Tuning(rows=4, warps=4, row_pieces="pad")
SUMS = Tuning(rows=32, cols=128, warps=4, programs=132 * 8)


def backward_tuning(d: int) -> Tuning:
    """Tuning for rows of that width: as many programs as keep a multiprocessor busy."""
    return Tuning(rows=1, warps=4, programs=132 * (8 if d <= 512 else 4 if d <= 1024 else 6))


@kernel_jit("tuning", "interpret")
def norm_forward(
    r: Float[Array, "n d"],
    scale: Float[Array, " d"],
    shift: Float[Array, " d"],
    *,
    tuning: Tuning = FORWARD,
    interpret: bool = False,
) -> tuple[Float[Array, "n d"], Float[Array, " n"], Float[Array, " n"]]:
    """(h, mean, 1 / std) with h = LN(r) scale + shift."""
    n, d = r.shape

    def kernel(grid: Grid, *refs: Any) -> None:
        r_ref, scale_ref, shift_ref, h_ref, mean_ref, rstd_ref = refs
        columns = grid.columns()
        scales, shifts = _row(scale_ref, grid, columns), _row(shift_ref, grid, columns)

        def body(rows: jax.Array, carry: tuple[()]) -> tuple[()]:
            pieces = [load_block(r_ref, rows, cols, grid.mask(rows, cols)) for cols in columns]
            mean = _sum_pieces(pieces) / d
            centered = []
            for cols, value in zip(columns, pieces, strict=True):
                c, exists = value - mean[:, None], grid.col_mask(cols)
                centered.append(c if exists is None else jnp.where(exists[None], c, 0.0))
            rstd = jax.lax.rsqrt(_sum_pieces([c * c for c in centered]) / d + EPSILON)
            for cols, c, scale_piece, shift_piece in zip(
                columns, centered, scales, shifts, strict=True
            ):
                h = c * rstd[:, None] * scale_piece + shift_piece
                store(h_ref.at[rows[:, None], cols[None]], h, grid.mask(rows, cols))
            store(mean_ref.at[rows], mean, grid.row_mask(rows))
            store(rstd_ref.at[rows], rstd, grid.row_mask(rows))
            return carry

        grid.walk(body, ())

    statistic = jax.ShapeDtypeStruct((n,), jnp.float32)
    h, mean, rstd = launch(
        kernel,
        make_grid((n, d), tuning),
        [r, scale, shift],
        [jax.ShapeDtypeStruct((n, d), r.dtype), statistic, statistic],
        name="norm_forward",
        warps=tuning.warps,
        interpret=interpret,
        flops=8 * n * d,
    )
    return h, mean, rstd


@kernel_jit("with_bias", "tuning", "interpret")
def norm_backward(
    dr: Float[Array, "n d"],
    ds: Float[Array, "n d"] | None,
    dh: Float[Array, "n d"],
    r: Float[Array, "n d"],
    mean: Float[Array, " n"],
    rstd: Float[Array, " n"],
    scale: Float[Array, " d"],
    *,
    with_bias: bool,
    tuning: Tuning | None = None,
    interpret: bool = False,
) -> tuple[Float[Array, "n d"], Float[Array, "sums d"]]:
    """(dx, sums over the rows for scale, shift and, with_bias, bias `[2 or 3, d]` float32).

    One kernel reads dr, ds (a second gradient of r, where there is one), dh and r and writes dx and
    a partial sum for each program, which XLA then adds up.
    """
    n, d = r.shape
    sums = 3 if with_bias else 2
    streams = [a for a in (r, dh, dr, ds) if a is not None]

    def kernel(grid: Grid, *refs: Any) -> None:
        stream_refs = refs[: len(streams)]
        mean_ref, rstd_ref, scale_ref, dx_ref, partial_ref = refs[len(streams) :]
        columns = grid.columns()
        scales = _row(scale_ref, grid, columns)

        def fetch_rows(rows: jax.Array) -> tuple[list[jax.Array], list[list[jax.Array]]]:
            of_rows = [fetch(ref.at[rows], grid.row_mask(rows)) for ref in (mean_ref, rstd_ref)]
            where = [(rows[:, None], cols[None], grid.mask(rows, cols)) for cols in columns]
            return of_rows, [
                [fetch(ref.at[r, c], mask) for ref in stream_refs] for r, c, mask in where
            ]

        def body(
            rows: jax.Array, fetched: Any, carry: list[list[jax.Array]]
        ) -> list[list[jax.Array]]:
            (row_mean, row_rstd), blocks = jax.tree.map(lambda x: x.astype(jnp.float32), fetched)
            row_mean, row_rstd = row_mean[:, None], row_rstd[:, None]
            masks = [grid.mask(rows, cols) for cols in columns]
            normed = [(block[0] - row_mean) * row_rstd for block in blocks]
            slopes = [block[1] * s for block, s in zip(blocks, scales, strict=True)]
            c1 = _sum_pieces(slopes) / d
            c2 = _sum_pieces([g * z for g, z in zip(slopes, normed, strict=True)]) / d
            new = []
            for i, (_, dh_block, *dr_blocks) in enumerate(blocks):
                dx = functools.reduce(operator.add, dr_blocks) + row_rstd * (
                    slopes[i] - c1[:, None] - normed[i] * c2[:, None]
                )
                store(dx_ref.at[rows[:, None], columns[i][None]], dx, masks[i])
                # Summed element by element over the blocks, and over a block's rows once, after the
                # last of them.
                terms = [dh_block * normed[i], dh_block, *([dx] if with_bias else [])]
                new.append([old + term for old, term in zip(carry[i], terms, strict=True)])
            return new

        zeros = [
            [jnp.zeros((grid.rows, size), jnp.float32) for _ in range(sums)]
            for _, size in grid.pieces
        ]
        totals = grid.walk_ahead(fetch_rows, body, zeros)
        for cols, piece in zip(columns, totals, strict=True):
            for k, total in enumerate(piece):
                store(
                    partial_ref.at[pl.program_id(1), k, cols],
                    jnp.sum(total, axis=0),
                    grid.col_mask(cols),
                )

    tuning = tuning or backward_tuning(d)
    grid = make_grid((n, d), tuning)
    dx, partial = launch(
        kernel,
        grid,
        [*streams, mean, rstd, scale],
        [
            jax.ShapeDtypeStruct((n, d), r.dtype),
            jax.ShapeDtypeStruct((grid.strides, sums, d), jnp.float32),
        ],
        name="norm_backward",
        warps=tuning.warps,
        interpret=interpret,
        flops=16 * n * d,
    )
    return dx, jnp.sum(partial, axis=0)


@kernel_jit("tuning", "interpret")
def row_sums(
    x: Float[Array, "n d"], *, tuning: Tuning = SUMS, interpret: bool = False
) -> Float[Array, " d"]:
    """The sum over the rows, in float32: a bias's gradient where nothing else reads the rows."""
    grid = make_grid(x.shape, tuning)
    partial = launch(
        _row_sums_kernel,
        grid,
        [x],
        [jax.ShapeDtypeStruct((grid.strides, x.shape[1]), jnp.float32)],
        name="row_sums",
        warps=tuning.warps,
        interpret=interpret,
        flops=x.size,
    )
    return jnp.sum(partial[0], axis=0)


def _row_sums_kernel(grid: Grid, x_ref: Any, partial_ref: Any) -> None:
    columns = grid.columns()

    def body(rows: jax.Array, carry: list[jax.Array]) -> list[jax.Array]:
        return [
            total + load_block(x_ref, rows, cols, grid.mask(rows, cols))
            for total, cols in zip(carry, columns, strict=True)
        ]

    totals = grid.walk(body, [jnp.zeros((grid.rows, size), jnp.float32) for _, size in grid.pieces])
    for cols, total in zip(columns, totals, strict=True):
        store(partial_ref.at[pl.program_id(1), cols], jnp.sum(total, axis=0), grid.col_mask(cols))


def _row(ref: Any, grid: Grid, columns: list[jax.Array]) -> list[jax.Array]:
    """A parameter's columns `[1, size]`, a piece at a time."""
    return [load(ref.at[cols], grid.col_mask(cols))[None] for cols in columns]


def _sum_pieces(pieces: list[jax.Array]) -> jax.Array:
    """The sum of every row over all of its pieces, `[rows]`."""
    return functools.reduce(operator.add, [jnp.sum(piece, axis=1) for piece in pieces])
