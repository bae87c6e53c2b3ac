"""Self-attention on packed queries, keys and values for Hopper GPUs.

A task is a block of 64 tokens of one head, which a warpgroup owns while it computes with all tokens
of that head. Two programs of a warpgroup each stay on a multiprocessor and take turns at the tasks:
while one waits for a product, the other computes exponentials, and the copy engine brings what the
next task needs. Arrays are read and written in place: the copy engine reads zeros behind the last
token or channel, and writes nothing there.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from uvit_jax.models.kernels.backends import kernel_jit
from uvit_jax.models.kernels.backends import mosaic_gpu as plgpu
from uvit_jax.models.kernels.hopper_blocks import Locate, Program
from uvit_jax.models.kernels.hopper_registers import along, mask_columns, warpgroup_barrier
from uvit_jax.models.kernels.hopper_tiling import ROWS, Tiling


@kernel_jit("tiling", "interpret")
def forward(
    qkv: Float[Array, "b t 3 h k"], tiling: Tiling, *, interpret: bool = False
) -> tuple[Float[Array, "b t h k"], Float[Array, "b h t2"]]:
    """softmax(q k^T / sqrt(k)) v, and the base-2 logarithm of each row's sum of exponentials.

    The logarithm is in float32, for t2 >= t tokens.

    A program takes one head after the other: keys and values are read once, and all logits of a
    block's rows are in registers at once, so that the softmax knows its maximum before the first
    exponential.
    """
    batch, tokens, _, heads, head_dim = qkv.shape
    program = Program(tokens, heads, head_dim, qkv.dtype, tiling, interpret)
    copies = len(program.parts) * (bool(program.whole) + bool(program.rest))
    rows = max(program.whole, 1) * ROWS
    call = program.launch(
        "attention_forward",
        lambda locate, count, refs: _Forward(program, locate, count, *refs).run(),
        batch,
        1,
        [
            jax.ShapeDtypeStruct((batch, tokens, heads, head_dim), qkv.dtype),
            jax.ShapeDtypeStruct((batch, heads, program.padded), jnp.float32),
        ],
        [
            program.tiles(1),
            program.tiles(1),
            program.tiles(1, rows),
            program.tiles(1, rows),
            program.tiles(1),
            plgpu.SMEM((ROWS,), jnp.float32),
            program.barriers(len(program.parts), 1),
            program.barriers(copies, 1),
            program.barriers(copies, 1),
        ],
        side_by_side=False,
    )
    out, lse = call(qkv.reshape(batch, tokens, 3 * heads, head_dim))
    return out, lse


@dataclasses.dataclass(frozen=True)
class _Forward:
    """One program: its `count` tasks and the arrays and memory given to it.

    The tokens behind the last whole block are in a block of their own, which holds values first and
    then keys.
    """

    program: Program
    locate: Locate
    count: Array
    qkv: Any
    out: Any
    lse: Any
    query: list[Any]
    written: list[Any]
    keys: list[Any]
    values: list[Any]
    tails: list[Any]
    written_lse: Any
    query_ready: Any
    keys_ready: Any
    values_ready: Any

    def run(self) -> None:
        """All tasks."""
        self._fetch_query(0)
        self._fetch_keys(0)
        self._fetch_values(0)
        jax.lax.fori_loop(0, self.count, self._task, None)

    @property
    def _wide(self) -> tuple[int, int]:
        return 0, self.program.whole * ROWS

    @property
    def _tail(self) -> tuple[int, int]:
        return 0, self.program.columns(self.program.whole)

    @property
    def _after(self) -> tuple[int, int]:
        return self._tail[1], ROWS - self._tail[1]

    def _fetch_query(self, number: Any) -> None:
        example, head, _, block = self.locate(number)
        self.program.start(
            self.program.copies(
                self.query, 0, self.qkv, (example, block * ROWS, head), self.query_ready
            )
        )

    def _fetch_keys(self, number: Any) -> None:
        self._fetch_all(number, self.keys, self.program.heads, self._after, self.keys_ready)

    def _fetch_values(self, number: Any) -> None:
        self._fetch_all(number, self.values, 2 * self.program.heads, self._tail, self.values_ready)

    def _fetch_all(
        self, number: Any, tile: list[Any], first_head: int, rest: tuple[int, int], ready: Any
    ) -> None:
        example, head, *_ = self.locate(number)
        program, head = self.program, first_head + head
        copies = []
        if program.whole:
            copies += program.copies(tile, 0, self.qkv, (example, 0, head), ready, self._wide)
        if program.rest:
            where = example, program.whole * ROWS, head
            copies += program.copies(self.tails, 0, self.qkv, where, ready, rest)
        program.start(copies)

    def _task(self, number: Array, _: None) -> None:
        program = self.program
        example, head, _, block = self.locate(number)
        more = number + 1 < self.count
        first, next_head = block == 0, jnp.logical_and(block == program.blocks - 1, more)
        plgpu.barrier_wait(self.query_ready)
        pl.when(first)(lambda: plgpu.barrier_wait(self.keys_ready))
        logits = self._logits()
        warpgroup_barrier()  # all warps have done with the query, and perhaps the keys
        pl.when(more)(lambda: self._fetch_query(number + 1))
        pl.when(next_head)(lambda: self._fetch_keys(number + 1))

        peak = functools.reduce(jnp.maximum, [jnp.max(x, axis=1) for x in logits]) * program.scale
        weights = [jnp.exp2(x * program.scale - along(peak, 0, x.shape[1])) for x in logits]
        total = functools.reduce(jnp.add, [jnp.sum(x, axis=1) for x in weights])
        pl.when(first)(lambda: plgpu.barrier_wait(self.values_ready))
        sums = self._product(weights)

        @pl.when(next_head)
        def fetch_next() -> None:
            warpgroup_barrier()  # all warps have done with the values
            self._fetch_values(number + 1)

        sums = [
            x * along(1 / total, 0, part.width) for x, part in zip(sums, program.parts, strict=True)
        ]
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        self.written_lse[...] = peak + jnp.log2(total)
        program.write(self.written, 0, sums, self.out, (example, block * ROWS, head))
        plgpu.copy_smem_to_gmem(
            self.written_lse, self.lse.at[example, head, pl.ds(block * ROWS, ROWS)]
        )

    def _logits(self) -> list[Array]:
        """Logits with the keys of whole blocks and of the rest, -inf where there is no key."""
        program, keys = self.program, []
        if program.whole:
            keys.append(program.block(self.keys, 0, self._wide))
        if program.rest:
            keys.append(program.block(self.tails, 0, (self._after[0], self._tail[1])))
        query = program.block(self.query, 0)
        logits = program.inner([(query, key) for key in keys], [None] * len(keys))
        logits[-1] = mask_columns(logits[-1], program.rest or self._wide[1], -jnp.inf)
        return logits

    def _product(self, weights: list[Array]) -> list[Array]:
        """Product of the weights, in the spans of the logits, and the values."""
        program, products = self.program, []
        if program.whole:
            products.append(lambda: (0, weights[0], program.block(self.values, 0, self._wide)))
        if program.rest:  # keys are there, where weights are zero
            products.append(
                lambda: (0, program.among_zeros(weights[-1]), program.block(self.tails, 0))
            )
        (sums,) = program.add_products([program.zeros()], products)
        return sums
