"""Self-attention on the packed output of one qkv product for Hopper GPUs, whose copy engine masks what does not exist.

A warpgroup owns a block of 64 tokens of one head and walks over all tokens of that head, a block at a time, which the
copy engine brings into shared memory ahead of it; the warpgroups of a program share what is brought. It reads and
writes arrays as they lie: what lies behind the last token or channel arrives as zeros, and is not written.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from uvit_jax.models.fused.hopper_blocks import ROWS, Program, Tiling, along, inner, mask_columns, row_vector
from uvit_jax.models.fused.pallas_mosaic_gpu import plgpu


def forward(
    qkv: Float[Array, "b t 3 h k"], tiling: Tiling, *, interpret: bool = False
) -> tuple[Float[Array, "b t h k"], Float[Array, "b h t2"]]:
    """softmax(q k^T / sqrt(k)) v, and the base-2 logarithm of each row's sum of exponentials in float32, for t2 >= t
    tokens.
    """
    batch, tokens, _, heads, head_dim = qkv.shape
    program = Program(tokens, heads, head_dim, qkv.dtype, tiling, interpret)
    slots, copies, warpgroups = program.slots, len(program.parts), tiling.warpgroups

    def kernel(*refs: Any) -> None:
        qkv_ref, out_ref, lse_ref, q_tiles, k_tiles, v_tiles, lse_memory, own, k_ready, v_ready, free = refs
        example, head, rows = (jax.lax.axis_index(name) for name in ("examples", "heads", "rows"))
        warpgroup = program.warpgroup()
        owned = rows * warpgroups + warpgroup
        program.fetch(q_tiles, warpgroup, qkv_ref, (example, owned, head), own.at[warpgroup])
        peak, total = row_vector(jnp.full((ROWS,), -jnp.inf, jnp.float32)), row_vector(jnp.zeros((ROWS,), jnp.float32))
        sums = program.zeros()

        def fetch(step: int, slot: int) -> None:
            block = rows * 0 + step
            program.fetch(k_tiles, slot, qkv_ref, (example, block, heads + head), k_ready.at[slot])
            program.fetch(v_tiles, slot, qkv_ref, (example, block, 2 * heads + head), v_ready.at[slot])

        def use(step: int, slot: int) -> None:
            nonlocal peak, total, sums
            if step == 0:
                plgpu.barrier_wait(own.at[warpgroup])
            plgpu.barrier_wait(k_ready.at[slot])
            (logits,) = inner([(program.block(q_tiles, warpgroup), program.block(k_tiles, slot))])
            logits = mask_columns(logits, step, tokens, -jnp.inf)
            new_peak = jnp.maximum(peak, jnp.max(logits, axis=1) * program.scale)
            fade = jnp.exp2(peak - new_peak)
            weights = jnp.exp2(logits * program.scale - along(new_peak, 0))
            peak, total = new_peak, total * fade + jnp.sum(weights, axis=1)
            faded = [x * along(fade, 0, part.width) for x, part in zip(sums, program.parts, strict=True)]
            plgpu.barrier_wait(v_ready.at[slot])
            sums = program.add_product(faded, weights, program.block(v_tiles, slot))

        program.walk(fetch, use, free)
        sums = [x * along(1 / total, 0, part.width) for x, part in zip(sums, program.parts, strict=True)]
        own_lse = lse_memory.at[warpgroup]
        own_lse[...] = peak + jnp.log2(total)
        program.write(q_tiles, sums, out_ref, (example, owned, head))
        plgpu.copy_smem_to_gmem(own_lse, lse_ref.at[example, head, pl.ds(owned * ROWS, ROWS)])
        plgpu.wait_smem_to_gmem(0)

    call = program.launch(
        kernel,
        program.programs,
        batch,
        [
            jax.ShapeDtypeStruct((batch, tokens, heads, head_dim), qkv.dtype),
            jax.ShapeDtypeStruct((batch, heads, program.padded), jnp.float32),
        ],
        [
            program.tiles(warpgroups),
            program.tiles(slots),
            program.tiles(slots),
            plgpu.SMEM((warpgroups, ROWS), jnp.float32),
            program.barriers(copies, warpgroups),
            program.barriers(copies, slots),
            program.barriers(copies, slots),
            program.barriers(warpgroups, slots),
        ],
    )
    out, lse = call(qkv.reshape(batch, tokens, 3 * heads, head_dim))
    return out, lse


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

    Half of the programs own queries and write their gradient, the others own keys and write theirs and the values'.
    The probabilities are computed by both (7 products where 5 would do): sums over queries and over keys then stay in
    registers each, and no sum depends on the order in which programs run.
    """
    batch, tokens, _, heads, head_dim = qkv.shape
    program = Program(tokens, heads, head_dim, qkv.dtype, tiling, interpret)
    slots, copies, warpgroups = program.slots, 2 * len(program.parts) + 2, tiling.warpgroups
    delta = jnp.einsum("bthk,bthk->bht", out.astype(jnp.float32), d_out.astype(jnp.float32))
    lse, delta = (
        jnp.pad(x, ((0, 0), (0, 0), (0, max(0, program.padded - x.shape[-1]))))[..., : program.padded]
        for x in (lse, delta)
    )

    def kernel(*refs: Any) -> None:
        qkv_ref, d_out_ref, lse_ref, delta_ref, d_qkv_ref, first, second, third, fourth, *rest = refs
        lses, deltas, own, ready, free = rest
        example, head, rows = (jax.lax.axis_index(name) for name in ("examples", "heads", "rows"))
        warpgroup = program.warpgroup()
        queries, keys, values = (i * heads + head for i in range(3))
        mine = slots + warpgroup  # the vectors' slot of the owned block

        def fetch(tiles: tuple, slot: Any, vectors: Any, block: Any, numbers: tuple, barrier: Any) -> None:
            """Two blocks of qkv, or one and one of d_out for a number of None; and the vectors of their tokens."""
            for memory, number in zip(tiles, numbers, strict=True):
                source, where = (d_out_ref, head) if number is None else (qkv_ref, number)
                program.fetch(memory, slot, source, (example, block, where), barrier)
            span = pl.ds(block * ROWS, ROWS)
            plgpu.copy_gmem_to_smem(lse_ref.at[example, head, span], lses.at[vectors], barrier)
            plgpu.copy_gmem_to_smem(delta_ref.at[example, head, span], deltas.at[vectors], barrier)

        def load(slot: Any, axis: int) -> tuple[Array, Array]:
            layout = plgpu.Layout.WGMMA.reduce(1 - axis)
            lse, delta = (along(plgpu.load(x.at[slot], layout=layout), axis) for x in (lses, deltas))
            return lse, delta

        def gradients(step: int, slot: int, lse: Array, delta: Array) -> tuple[Array, Array]:
            """Weights and the logits' gradient, of the owned rows and of the tokens in the slot."""
            logits, d_weights = inner(
                [
                    (program.block(first, warpgroup), program.block(third, slot)),
                    (program.block(second, warpgroup), program.block(fourth, slot)),
                ]
            )
            # A token of zeros, where there is none, may have any weight, infinity too.
            weights = mask_columns(jnp.exp2(logits * program.scale - lse), step, tokens, 0.0)
            return weights, weights * (d_weights - delta)

        def walk(owned: Array, own_numbers: tuple, numbers: tuple, use: Callable[[int, int], None]) -> None:
            fetch((first, second), warpgroup, mine, owned, own_numbers, own.at[warpgroup])

            def fetch_step(step: int, slot: int) -> None:
                fetch((third, fourth), slot, slot, rows * 0 + step, numbers, ready.at[slot])

            def use_step(step: int, slot: int) -> None:
                if step == 0:
                    plgpu.barrier_wait(own.at[warpgroup])
                plgpu.barrier_wait(ready.at[slot])
                use(step, slot)

            program.walk(fetch_step, use_step, free)

        def scaled(sums: list[Array]) -> list[Array]:
            return [x * (1 / math.sqrt(head_dim)) for x in sums]

        @pl.when(rows < program.programs)
        def _() -> None:
            owned, sums = rows * warpgroups + warpgroup, program.zeros()
            vectors: tuple[Array, Array] | None = None

            def use(step: int, slot: int) -> None:
                nonlocal sums, vectors
                vectors = vectors or load(mine, 0)
                _, d_logits = gradients(step, slot, *vectors)
                sums = program.add_product(sums, d_logits, program.block(third, slot))

            walk(owned, (queries, None), (keys, values), use)
            program.write(first, scaled(sums), d_qkv_ref, (example, owned, queries))

        @pl.when(rows >= program.programs)
        def _() -> None:
            owned = (rows - program.programs) * warpgroups + warpgroup
            d_key, d_value = program.zeros(), program.zeros()

            def use(step: int, slot: int) -> None:
                nonlocal d_key, d_value
                weights, d_logits = gradients(step, slot, *load(slot, 1))
                d_value = program.add_product(d_value, weights, program.block(fourth, slot))
                d_key = program.add_product(d_key, d_logits, program.block(third, slot))

            walk(owned, (keys, values), (queries, None), use)
            program.write(first, scaled(d_key), d_qkv_ref, (example, owned, keys))
            program.write(second, d_value, d_qkv_ref, (example, owned, values))

    call = program.launch(
        kernel,
        2 * program.programs,
        batch,
        [jax.ShapeDtypeStruct((batch, tokens, 3 * heads, head_dim), qkv.dtype)],
        [
            program.tiles(warpgroups),
            program.tiles(warpgroups),
            program.tiles(slots),
            program.tiles(slots),
            plgpu.SMEM((slots + warpgroups, ROWS), jnp.float32),
            plgpu.SMEM((slots + warpgroups, ROWS), jnp.float32),
            program.barriers(copies, warpgroups),
            program.barriers(copies, slots),
            program.barriers(warpgroups, slots),
        ],
    )
    return call(qkv.reshape(batch, tokens, 3 * heads, head_dim), d_out, lse, delta)[0].reshape(qkv.shape)
