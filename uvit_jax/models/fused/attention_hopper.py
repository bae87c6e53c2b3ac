"""Self-attention on the packed output of one qkv product for Hopper GPUs, whose copy engine masks what does not exist.

A task is a block of 64 tokens of one head, which a warpgroup owns while it computes with all tokens of that head. Two
programs of a warpgroup each stay on a multiprocessor and take turns at the tasks: while one waits for a product, the
other computes exponentials, and the copy engine brings what the next task needs. Arrays are read and written as they
lie: what is behind the last token or channel arrives as zeros, and is not written.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from uvit_jax.models.fused.hopper_blocks import (
    ROWS,
    Program,
    Tiling,
    along,
    inner,
    mask_columns,
    remainder,
)
from uvit_jax.models.fused.pallas_mosaic_gpu import plgpu
from uvit_jax.models.fused.traced_once import traced_once

Locate = Callable[[Any], tuple[Any, Any, Any, Any]]
QUERIES = 0  # the kind of task that owns queries; the other owns keys and values


@traced_once("tiling", "interpret")
def forward(
    qkv: Float[Array, "b t 3 h k"], tiling: Tiling, *, interpret: bool = False
) -> tuple[Float[Array, "b t h k"], Float[Array, "b h t2"]]:
    """softmax(q k^T / sqrt(k)) v, and the base-2 logarithm of each row's sum of exponentials in float32, for t2 >= t
    tokens.

    A program takes one head after the other: keys and values are read once, and all logits of a block's rows are in
    registers at once, so that the softmax knows its maximum before the first exponential.
    """
    batch, tokens, _, heads, head_dim = qkv.shape
    program = Program(tokens, heads, head_dim, qkv.dtype, tiling, interpret)
    blocks, parts = program.blocks, program.parts
    whole, rest = divmod(tokens, ROWS)
    # The tokens behind the last whole block are in a block that holds values first and then keys, to its end.
    wide, tail = (0, whole * ROWS), (0, program.columns(whole) if rest else 0)
    after = tail[1], ROWS - tail[1]

    def body(locate: Locate, count: Array, refs: tuple) -> None:
        qkv_ref, out_ref, lse_ref, q_tile, out_tile, k_tile, v_tile, tails, lse_memory, q_ready, k_ready, v_ready = refs

        def fetch_query(number: Any) -> None:
            example, head, _, block = locate(number)
            program.fetch(q_tile, 0, qkv_ref, (example, block * ROWS, head), q_ready)

        def fetch_all(number: Any, tile: list[Any], first_head: int, span: tuple[int, int], ready: Any) -> None:
            example, head, *_ = locate(number)
            if whole:
                program.fetch(tile, 0, qkv_ref, (example, 0, first_head + head), ready, wide)
            if rest:
                program.fetch(tails, 0, qkv_ref, (example, whole * ROWS, first_head + head), ready, span)

        def fetch_keys(number: Any) -> None:
            fetch_all(number, k_tile, heads, after, k_ready)

        def fetch_values(number: Any) -> None:
            fetch_all(number, v_tile, 2 * heads, tail, v_ready)

        def task(number: Array, _: None) -> None:
            example, head, _, block = locate(number)
            more = number + 1 < count
            first, next_head = block == 0, jnp.logical_and(block == blocks - 1, more)
            plgpu.barrier_wait(q_ready)
            pl.when(first)(lambda: plgpu.barrier_wait(k_ready))
            query, keys = program.block(q_tile, 0), []
            if whole:
                keys.append(program.block(k_tile, 0, wide))
            if rest:
                keys.append(program.block(tails, 0, (after[0], tail[1])))
            logits = inner([(query, key) for key in keys])
            plgpu.commit_smem()  # all warps have done with the query, and perhaps the keys
            pl.when(more)(lambda: fetch_query(number + 1))
            pl.when(next_head)(lambda: fetch_keys(number + 1))

            logits[-1] = mask_columns(logits[-1], rest or wide[1], -jnp.inf)
            peak = functools.reduce(jnp.maximum, [jnp.max(x, axis=1) for x in logits]) * program.scale
            weights = [jnp.exp2(x * program.scale - along(peak, 0, x.shape[1])) for x in logits]
            total = functools.reduce(jnp.add, [jnp.sum(x, axis=1) for x in weights])
            pl.when(first)(lambda: plgpu.barrier_wait(v_ready))
            products: list[Any] = []
            if whole:
                products.append(lambda: (0, weights[0], program.block(v_tile, 0, wide)))
            if rest:  # Keys lie where weights are zero.
                products.append(lambda: (0, program.among_zeros(weights[-1]), program.block(tails, 0)))
            (sums,) = program.add_products([program.zeros()], products)

            @pl.when(next_head)
            def fetch_next() -> None:
                plgpu.commit_smem()  # all warps have done with the values
                fetch_values(number + 1)

            sums = [x * along(1 / total, 0, part.width) for x, part in zip(sums, parts, strict=True)]
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            lse_memory[...] = peak + jnp.log2(total)
            program.write(out_tile, 0, sums, out_ref, (example, block * ROWS, head))
            plgpu.copy_smem_to_gmem(lse_memory, lse_ref.at[example, head, pl.ds(block * ROWS, ROWS)])

        fetch_query(0)
        fetch_keys(0)
        fetch_values(0)
        jax.lax.fori_loop(0, count, task, None)

    copies = len(parts) * (bool(whole) + bool(rest))
    call = program.launch(
        body,
        batch,
        1,
        [
            jax.ShapeDtypeStruct((batch, tokens, heads, head_dim), qkv.dtype),
            jax.ShapeDtypeStruct((batch, heads, program.padded), jnp.float32),
        ],
        [
            program.tiles(1),
            program.tiles(1),
            program.tiles(1, max(wide[1], ROWS)),
            program.tiles(1, max(wide[1], ROWS)),
            program.tiles(1),
            plgpu.SMEM((ROWS,), jnp.float32),
            program.barriers(len(parts), 1),
            program.barriers(copies, 1),
            program.barriers(copies, 1),
        ],
        side_by_side=False,
    )
    out, lse = call(qkv.reshape(batch, tokens, 3 * heads, head_dim))
    return out, lse


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
    """The gradient with respect to qkv, from what `forward` returned (arXiv:2307.08691, Algorithm 2).

    Half of the tasks own queries and write their gradient, the others own keys and write theirs and the values'; all
    walk over the other kind's blocks. The probabilities are computed by both (7 products where 5 would do): sums over
    queries and over keys then stay in registers each, and no sum depends on the order in which tasks are done.
    """
    batch, tokens, _, heads, head_dim = qkv.shape
    program = Program(tokens, heads, head_dim, qkv.dtype, tiling, interpret)
    slots, copies = program.slots, 2 * len(program.parts) + 1
    delta = jnp.einsum("bthk,bthk->bht", out.astype(jnp.float32), d_out.astype(jnp.float32))
    # Without this XLA makes one slow kernel of the sum and what puts it beside lse.
    delta = jax.lax.optimization_barrier(delta)
    vectors = jnp.stack([lse, jnp.pad(delta, ((0, 0), (0, 0), (0, program.padded - tokens)))], axis=2)

    def body(locate: Locate, count: Array, refs: tuple) -> None:
        qkv_ref, d_out_ref, vectors_ref, d_qkv_ref, first, second, third, fourth, vectors, own_ready, ready = refs

        def fetch_pair(
            tiles: tuple, slot: Any, vector: Any, where: tuple[Any, Any, Any], of_queries: Any, barrier: Any
        ) -> None:
            """A block of queries, with d_out, or of keys, with values; and the vectors of its tokens."""
            example, token, head = where
            number = jnp.where(of_queries, head, heads + head)
            program.fetch(tiles[0], slot, qkv_ref, (example, token, number), barrier)

            @pl.when(of_queries)
            def _() -> None:
                program.fetch(tiles[1], slot, d_out_ref, (example, token, head), barrier)

            @pl.when(jnp.logical_not(of_queries))
            def _() -> None:
                program.fetch(tiles[1], slot, qkv_ref, (example, token, 2 * heads + head), barrier)

            span = pl.ds(token, ROWS)
            plgpu.copy_gmem_to_smem(vectors_ref.at[example, head, :, span], vectors.at[vector], barrier)

        def fetch_own(number: Any) -> None:
            example, head, kind, block = locate(number)
            own = remainder(number, 2)
            where = example, block * ROWS, head
            fetch_pair((first, second), own, slots + own, where, kind == QUERIES, own_ready.at[own])

        def fetch(number: Any, step: int, slot: Any) -> None:
            example, head, kind, _ = locate(number)
            fetch_pair((third, fourth), slot, slot, (example, step * ROWS, head), kind != QUERIES, ready.at[slot])

        def load(slot: Any, axis: int, length: int = ROWS) -> tuple[Array, Array]:
            """lse and delta of the first tokens in the slot, to lie along the axis."""
            layout, span = plgpu.Layout.WGMMA.reduce(1 - axis), pl.ds(0, length)
            lse, delta = (plgpu.load(vectors.at[slot, i, span], layout=layout) for i in range(2))
            return lse, delta

        def task(number: Array, _: None) -> None:
            example, head, kind, block = locate(number)
            own, more = remainder(number, 2), number + 1 < count
            plgpu.barrier_wait(own_ready.at[own])

            @pl.when(more)
            def fetch_next() -> None:
                plgpu.wait_smem_to_gmem(0, wait_read_only=True)  # the task before wrote from there
                fetch_own(number + 1)

            def products(step: int, slot: Any) -> list[Array]:
                """Of the owned rows and of the tokens in the slot: logits, and the weights' gradient."""
                plgpu.barrier_wait(ready.at[slot])
                span = 0, program.columns(step)
                pairs = ((first, third), (second, fourth))
                return inner([(program.block(a, own), program.block(b, slot, span)) for a, b in pairs])

            def weights_of(step: int, logits: Array, lse: Array) -> Array:
                # A token of zeros, where there is none, may have any weight, infinity too.
                return mask_columns(jnp.exp2(logits * program.scale - lse), tokens - step * ROWS, 0.0)

            def scaled(sums: list[Array]) -> list[Array]:
                return [x * (1 / math.sqrt(head_dim)) for x in sums]

            @pl.when(kind == QUERIES)
            def queries_gradient() -> None:
                sums, (lse, delta) = program.zeros(), load(slots + own, 0)

                def use(step: int, slot: Any) -> None:
                    nonlocal sums
                    logits, d_weights = products(step, slot)
                    width = program.columns(step)
                    weights = weights_of(step, logits, along(lse, 0, width))
                    d_logits = program.among_zeros(weights * (d_weights - along(delta, 0, width)))
                    (sums,) = program.add_products([sums], [lambda: (0, d_logits, program.block(third, slot))])

                program.walk(fetch, use, number, more)
                program.write(first, own, scaled(sums), d_qkv_ref, (example, block * ROWS, head))

            @pl.when(kind != QUERIES)
            def keys_and_values_gradients() -> None:
                d_key, d_value = program.zeros(), program.zeros()

                def use(step: int, slot: Any) -> None:
                    nonlocal d_key, d_value
                    logits, d_weights = products(step, slot)
                    width = program.columns(step)
                    lse, delta = load(slot, 1, width)
                    weights = weights_of(step, logits, along(lse, 1, width))

                    def for_values() -> tuple[int, Array, list[Any]]:
                        return 1, program.among_zeros(weights), program.block(fourth, slot)

                    def for_keys() -> tuple[int, Array, list[Any]]:
                        d_logits = program.among_zeros(weights * (d_weights - along(delta, 1, width)))
                        return 0, d_logits, program.block(third, slot)

                    d_key, d_value = program.add_products([d_key, d_value], [for_values, for_keys])

                program.walk(fetch, use, number, more)
                program.write(first, own, scaled(d_key), d_qkv_ref, (example, block * ROWS, heads + head))
                program.write(second, own, d_value, d_qkv_ref, (example, block * ROWS, 2 * heads + head))

        fetch_own(0)
        program.begin(fetch)
        jax.lax.fori_loop(0, count, task, None)

    call = program.launch(
        body,
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
    return call(qkv.reshape(batch, tokens, 3 * heads, head_dim), d_out, vectors)[0].reshape(qkv.shape)
