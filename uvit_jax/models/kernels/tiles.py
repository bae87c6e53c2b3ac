"""Blocks, masks and strides by which a Triton kernel walks over rows and columns of a matrix."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from uvit_jax.models.kernels.backends import triton as plgpu


@dataclasses.dataclass(frozen=True)
class Tuning:
    """Sizes that a kernel's speed depends on, never its result.

    Attributes:
      rows: rows of the matrix that a program holds at a time, a power of two.
      cols: columns that it holds at a time, a power of two; 0 for whole rows (a LayerNorm needs
        them).
      warps: warps of 32 threads in a program.
      programs: programs launched in all, each striding over the blocks; 0 for one a block. Kernels
        with column sums write one partial sum a program, so there it should be a small multiple of
        the chip's 132 multiprocessors.
      row_pieces: whole rows as "pad" (one block of the next power of two, masked) or "split" (the
        largest power of two that fits, and a second, padded block with the rest).
    """

    rows: int = 4
    cols: int = 0
    warps: int = 4
    programs: int = 0
    row_pieces: str = "split"


@dataclasses.dataclass(frozen=True)
class Grid:
    """A matrix `[n, d]` in blocks: `strides` programs over the rows, for each column block."""

    n: int
    d: int
    rows: int
    cols: int
    strides: int
    row_pieces: str

    @property
    def shape(self) -> tuple[int, int]:
        """Programs over the blocks of columns and over the rows."""
        return (pl.cdiv(self.d, self.cols) if self.cols else 1), self.strides

    @property
    def steps(self) -> int:
        """Blocks of rows that each program takes."""
        return pl.cdiv(pl.cdiv(self.n, self.rows), self.strides)

    @property
    def pieces(self) -> tuple[tuple[int, int], ...]:
        """(start, power of two) of the pieces a program's columns are held in."""
        if self.cols:
            return ((0, self.cols),)
        if self.row_pieces == "pad":
            return ((0, pl.next_power_of_2(self.d)),)
        whole = 1 << (self.d.bit_length() - 1)
        rest = self.d - whole
        return ((0, whole), (whole, pl.next_power_of_2(rest))) if rest else ((0, whole),)

    def columns(self) -> list[jax.Array]:
        """Inside a kernel: the column numbers of this program, a piece at a time."""
        offset = pl.program_id(0) * self.cols if self.cols else 0
        return [offset + start + jnp.arange(size, dtype=jnp.int32) for start, size in self.pieces]

    def walk(self, body: Callable[[jax.Array, Any], Any], carry: Any) -> Any:
        """Inside a kernel: `carry = body(row numbers, carry)` for every block of its rows."""

        first = pl.program_id(1)

        def step(i: jax.Array | int, carry: Any) -> Any:
            return body(self._row_numbers(first, i), carry)

        # A loop of one step costs registers for nothing.
        return step(0, carry) if self.steps == 1 else jax.lax.fori_loop(0, self.steps, step, carry)

    def walk_ahead(
        self,
        read: Callable[[jax.Array], Any],
        body: Callable[[jax.Array, Any, Any], Any],
        carry: Any,
    ) -> Any:
        """`walk` with `body(row numbers, read(row numbers), carry)`, each block read a step ahead.

        Loads are in flight while the block before is computed with, if `read` does nothing with
        what it loads.
        """
        if self.steps == 1:
            return self.walk(lambda rows, carry: body(rows, read(rows), carry), carry)

        first = pl.program_id(1)

        def step(i: jax.Array, state: tuple[Any, Any]) -> tuple[Any, Any]:
            values, carry = state
            later = read(
                self._row_numbers(first, jnp.minimum(i + 1, self.steps - 1))
            )  # the last one twice
            return later, body(self._row_numbers(first, i), values, carry)

        return jax.lax.fori_loop(0, self.steps, step, (read(self._row_numbers(first, 0)), carry))[1]

    def _row_numbers(self, first: jax.Array, step: jax.Array | int) -> jax.Array:
        """Row numbers of a program's block at a step; `first` is its first block."""
        return (first + step * self.strides) * self.rows + jnp.arange(self.rows, dtype=jnp.int32)

    def row_mask(self, rows: jax.Array) -> jax.Array | None:
        """Mask of the rows that exist; None where all do."""
        return None if self.strides * self.steps * self.rows == self.n else rows < self.n

    def col_mask(self, cols: jax.Array) -> jax.Array | None:
        """Mask of the columns that exist; None where all do."""
        width = self.cols or sum(size for _, size in self.pieces)
        whole = self.d % self.cols == 0 if self.cols else width == self.d
        return None if whole else cols < self.d

    def mask(self, rows: jax.Array, cols: jax.Array) -> jax.Array | None:
        """Mask of the block's elements that exist; None where all do."""
        down, across = self.row_mask(rows), self.col_mask(cols)
        shape = (rows.shape[0], cols.shape[0])
        if down is None or across is None:
            one = (
                down[:, None] if down is not None else across[None] if across is not None else None
            )
            return None if one is None else jnp.broadcast_to(one, shape)
        return down[:, None] & across[None]


def make_grid(shape: tuple[int, ...], tuning: Tuning) -> Grid:
    """The cut of a matrix `[n, d]` by the tuning."""
    n, d = shape
    strides = pl.cdiv(n, tuning.rows)
    if tuning.programs:
        across = pl.cdiv(d, tuning.cols) if tuning.cols else 1
        strides = min(strides, max(1, tuning.programs // across))
    return Grid(n, d, tuning.rows, tuning.cols, strides, tuning.row_pieces)


def load_block(ref: Any, rows: jax.Array, cols: jax.Array, mask: jax.Array | None) -> jax.Array:
    """A block `[rows, cols]` in float32, zero where the mask is not set."""
    return load(ref.at[rows[:, None], cols[None]], mask)


def load(view: Any, mask: jax.Array | None) -> jax.Array:
    """Contents of a view of a reference in float32, zero where the mask is not set."""
    return fetch(view, mask).astype(jnp.float32)


def fetch(view: Any, mask: jax.Array | None) -> jax.Array:
    """`load` in the reference's dtype."""
    return plgpu.load(view) if mask is None else plgpu.load(view, mask=mask, other=0.0)


def store(view: Any, values: jax.Array, mask: jax.Array | None) -> None:
    """Writes the values, in the reference's dtype, where the mask is set."""
    plgpu.store(view, values.astype(view.dtype), mask=mask)


def launch(
    kernel: Callable[..., None],
    grid: Grid,
    inputs: list[jax.Array],
    outputs: list[jax.ShapeDtypeStruct],
    *,
    name: str,
    warps: int,
    interpret: bool,
    flops: int = 0,
) -> list[jax.Array]:
    """Runs a kernel that takes its grid, then references to all of every input and output."""
    arrays: list[Any] = [*inputs, *outputs]
    moved = sum(math.prod(a.shape) * jnp.dtype(a.dtype).itemsize for a in arrays)
    named = functools.partial(kernel, grid)
    out = pl.pallas_call(
        functools.update_wrapper(named, kernel),
        grid=grid.shape,
        out_shape=outputs,
        # Given even where it says little: it is what picks the Triton backend.
        compiler_params=plgpu.CompilerParams(num_warps=warps, num_stages=1),
        cost_estimate=pl.CostEstimate(flops=flops, bytes_accessed=moved, transcendentals=0),
        interpret=interpret,
        name=name,
    )(*inputs)
    return list(out)
