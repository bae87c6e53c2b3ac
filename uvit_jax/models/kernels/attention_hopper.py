"""Self-attention on the packed output of one qkv product for Hopper GPUs, whose copy engine masks
what does not exist.

A task is a block of 64 tokens of one head, which a warpgroup owns while it computes with all tokens
of that head. Two programs of a warpgroup each stay on a multiprocessor and take turns at the tasks:
while one waits for a product, the other computes exponentials, and the copy engine brings what the
next task needs. Arrays are read and written as they lie: what is behind the last token or channel
arrives as zeros, and is not written.
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

from uvit_jax.models.kernels.hopper_blocks import (
    ROWS,
    Program,
    Tiling,
    along,
    mask_columns,
    remainder,
    together,
)
from uvit_jax.models.kernels.pallas_mosaic_gpu import plgpu
from uvit_jax.models.kernels.traced_once import traced_once

# (example, head, kind, block) of a program's task, by its number.
Locate = Callable[[Any], tuple[Any, Any, Any, Any]]
QUERIES = 0  # the kind of task that owns queries; the other owns keys and values


@traced_once("tiling", "interpret")
def forward(
    qkv: Float[Array, "b t 3 h k"], tiling: Tiling, *, interpret: bool = False
) -> tuple[Float[Array, "b t h k"], Float[Array, "b h t2"]]:
    """softmax(q k^T / sqrt(k)) v, and the base-2 logarithm of each row's sum of exponentials in
    float32, for t2 >= t tokens.

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
    """What one program does, with its `count` tasks and the arrays and memory given to it.

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
        together()  # all warps have done with the query, and perhaps the keys
        pl.when(more)(lambda: self._fetch_query(number + 1))
        pl.when(next_head)(lambda: self._fetch_keys(number + 1))

        peak = functools.reduce(jnp.maximum, [jnp.max(x, axis=1) for x in logits]) * program.scale
        weights = [jnp.exp2(x * program.scale - along(peak, 0, x.shape[1])) for x in logits]
        total = functools.reduce(jnp.add, [jnp.sum(x, axis=1) for x in weights])
        pl.when(first)(lambda: plgpu.barrier_wait(self.values_ready))
        sums = self._product(weights)

        @pl.when(next_head)
        def fetch_next() -> None:
            together()  # all warps have done with the values
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
        """With the whole blocks' keys and with the rest's, -inf where there are none."""
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
        """Of the weights, spans as those of the logits, and the values."""
        program, products = self.program, []
        if program.whole:
            products.append(lambda: (0, weights[0], program.block(self.values, 0, self._wide)))
        if program.rest:  # Keys lie where weights are zero.
            products.append(
                lambda: (0, program.among_zeros(weights[-1]), program.block(self.tails, 0))
            )
        (sums,) = program.add_products([program.zeros()], products)
        return sums


@traced_once("tiling", "interpret")
def backward(
    qkv: Float[Array, "b t 3 h k"],
    out: Float[Array, "b t h k"],
    lse: Float[Array, "b h t2"],
    d_out: Float[Array, "b t h k"],
    tiling: Tiling,
    *,
    interpret: bool = False,
) -> Float[Array, "b t 3 h k"]:
    """The gradient with respect to qkv, from what `forward` returned (arXiv:2307.08691, Algorithm
    2).

    Half of the tasks own queries and write their gradient, the others own keys and write theirs and
    the values'; all walk over the other kind's blocks. The probabilities are computed by both (7
    products where 5 would do): sums over queries and over keys then stay in registers each, and no
    sum depends on the order in which tasks are done.
    """
    batch, tokens, _, heads, head_dim = qkv.shape
    program = Program(tokens, heads, head_dim, qkv.dtype, tiling, interpret)
    slots, copies = program.slots, 2 * len(program.parts) + 1
    delta = jnp.einsum("bthk,bthk->bht", out.astype(jnp.float32), d_out.astype(jnp.float32))
    # Without this XLA makes one slow kernel of the sum and what puts it beside lse.
    delta = jax.lax.optimization_barrier(delta)
    vectors = jnp.stack(
        [lse, jnp.pad(delta, ((0, 0), (0, 0), (0, program.padded - tokens)))], axis=2
    )
    call = program.launch(
        "attention_backward",
        lambda locate, count, refs: _Backward(program, locate, count, *refs).run(),
        batch,
        2,
        [jax.ShapeDtypeStruct((batch, tokens, 3 * heads, head_dim), qkv.dtype)],
        [
            program.tiles(2),
            program.tiles(2),
            program.tiles(slots),
            program.tiles(slots),
            plgpu.SMEM((slots + 2, 2, ROWS), jnp.float32),
            program.barriers(copies, 2),
            program.barriers(copies, slots),
        ],
    )
    return call(qkv.reshape(batch, tokens, 3 * heads, head_dim), d_out, vectors)[0].reshape(
        qkv.shape
    )


@dataclasses.dataclass(frozen=True)
class _Backward:
    """What one program does, with its `count` tasks and the arrays and memory given to it.

    A task of queries owns a block of them and of d_out, and walks over keys and values; one of keys
    owns a block of them and of values, and walks over queries and d_out. `owned` of two tasks and
    `walked` of so many slots hold the first of each, the `other` ones the second; `vectors` hold
    lse and delta, of the slots and then of the owned.
    """

    program: Program
    locate: Locate
    count: Array
    qkv: Any
    d_out: Any
    lse_and_delta: Any
    d_qkv: Any
    owned: list[Any]
    other_owned: list[Any]
    walked: list[Any]
    other_walked: list[Any]
    vectors: Any
    own_ready: Any
    ready: Any

    def run(self) -> None:
        """All tasks."""
        self._fetch_own(0)
        self.program.begin(self._fetch)
        jax.lax.fori_loop(0, self.count, self._task, None)

    def _fetch_own(self, number: Any) -> None:
        example, head, kind, block = self.locate(number)
        own = remainder(number, 2)
        tiles, where = (self.owned, self.other_owned), (example, block * ROWS, head)
        self._fetch_pair(
            tiles, own, self.program.slots + own, where, kind == QUERIES, self.own_ready.at[own]
        )

    def _fetch(self, number: Any, step: int, slot: Any) -> None:
        example, head, kind, _ = self.locate(number)
        tiles, where = (self.walked, self.other_walked), (example, step * ROWS, head)
        self._fetch_pair(tiles, slot, slot, where, kind != QUERIES, self.ready.at[slot])

    def _fetch_pair(
        self,
        tiles: tuple,
        slot: Any,
        vector: Any,
        where: tuple[Any, Any, Any],
        of_queries: Any,
        barrier: Any,
    ) -> None:
        """A block of queries, with d_out, or of keys, with values; and the vectors of its tokens."""
        program, heads, (example, token, head) = self.program, self.program.heads, where
        number = jnp.where(of_queries, head, heads + head)
        d_out = program.copies(tiles[1], slot, self.d_out, (example, token, head), barrier)
        values = program.copies(
            tiles[1], slot, self.qkv, (example, token, 2 * heads + head), barrier
        )

        def either(d_out: Callable[[], None], values: Callable[[], None]) -> None:
            pl.when(of_queries)(d_out)
            pl.when(jnp.logical_not(of_queries))(values)

        def vectors() -> None:
            view = self.lse_and_delta.at[example, head, :, pl.ds(token, ROWS)]
            plgpu.copy_gmem_to_smem(view, self.vectors.at[vector], barrier)

        program.start(
            [
                *program.copies(tiles[0], slot, self.qkv, (example, token, number), barrier),
                *(functools.partial(either, *each) for each in zip(d_out, values, strict=True)),
                vectors,
            ]
        )

    def _task(self, number: Array, _: None) -> None:
        example, head, kind, block = self.locate(number)
        where = example, block * ROWS, head
        own, more = remainder(number, 2), number + 1 < self.count
        plgpu.barrier_wait(self.own_ready.at[own])

        @pl.when(more)
        def fetch_next() -> None:
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)  # the task before wrote from there
            self._fetch_own(number + 1)

        pl.when(kind == QUERIES)(lambda: self._queries_gradient(number, own, more, where))
        pl.when(kind != QUERIES)(lambda: self._keys_and_values_gradients(number, own, more, where))

    def _queries_gradient(
        self, number: Array, own: Array, more: Array, where: tuple[Any, Any, Any]
    ) -> None:
        program = self.program
        sums = program.zeros()
        lse, delta = self._load(program.slots + own, 0)

        def use(step: int, slot: Any) -> None:
            nonlocal sums
            width = program.columns(step)
            self._await(slot)
            logits, centered = self._products(step, slot, own, along(-delta, 0, width))
            d_logits = program.among_zeros(
                self._weights(step, logits, along(lse, 0, width)) * centered
            )
            (sums,) = program.add_products(
                [sums], [lambda: (0, d_logits, program.block(self.walked, slot))]
            )

        program.walk(self._fetch, use, number, more)
        program.write(self.owned, own, self._scaled(sums), self.d_qkv, where)

    def _keys_and_values_gradients(
        self, number: Array, own: Array, more: Array, where: tuple[Any, Any, Any]
    ) -> None:
        program = self.program
        d_key, d_value = program.zeros(), program.zeros()

        def use(step: int, slot: Any) -> None:
            nonlocal d_key, d_value
            width = program.columns(step)
            self._await(slot)
            lse, delta = self._load(slot, 1, width)
            logits, centered = self._products(step, slot, own, along(-delta, 1, width))
            weights = self._weights(step, logits, along(lse, 1, width))

            def for_values() -> tuple[int, Array, list[Any]]:
                return 1, program.among_zeros(weights), program.block(self.other_walked, slot)

            def for_keys() -> tuple[int, Array, list[Any]]:
                return 0, program.among_zeros(weights * centered), program.block(self.walked, slot)

            d_key, d_value = program.add_products([d_key, d_value], [for_values, for_keys])

        program.walk(self._fetch, use, number, more)
        (example, token, head), heads = where, program.heads
        program.write(
            self.owned, own, self._scaled(d_key), self.d_qkv, (example, token, heads + head)
        )
        program.write(
            self.other_owned, own, d_value, self.d_qkv, (example, token, 2 * heads + head)
        )

    def _load(self, slot: Any, axis: int, length: int = ROWS) -> tuple[Array, Array]:
        """lse and delta of the first tokens in the slot, to lie along the axis."""
        layout, span = plgpu.Layout.WGMMA.reduce(1 - axis), pl.ds(0, length)
        lse, delta = (plgpu.load(self.vectors.at[slot, i, span], layout=layout) for i in range(2))
        return lse, delta

    def _await(self, slot: Any) -> None:
        plgpu.barrier_wait(self.ready.at[slot])

    def _products(self, step: int, slot: Any, own: Array, minus_delta: Array) -> list[Array]:
        """Of the owned rows and of the tokens in the slot: logits, and the weights' gradient less
        delta.
        """
        span, block = (0, self.program.columns(step)), self.program.block
        pairs = ((self.owned, self.walked), (self.other_owned, self.other_walked))
        return self.program.inner(
            [(block(a, own), block(b, slot, span)) for a, b in pairs], [None, minus_delta]
        )

    def _weights(self, step: int, logits: Array, lse: Array) -> Array:
        # A token of zeros, where there is none, may have any weight, infinity too.
        weights = jnp.exp2(logits * self.program.scale - lse)
        return mask_columns(weights, self.program.tokens - step * ROWS, 0.0)

    def _scaled(self, sums: list[Array]) -> list[Array]:
        return [x * (1 / math.sqrt(self.program.head_dim)) for x in sums]
