"""Self-attention on the packed output of one qkv product for Hopper GPUs, whose copy engine masks what does not exist.

A warpgroup owns a block of 64 tokens of one head and walks over all tokens of that head, a block at a time, which the
copy engine brings into shared memory ahead of it; the warpgroups of a program share what is brought. It reads and
writes arrays as they lie: what lies behind the last token or channel arrives as zeros, and is not written.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from uvit_jax.models.fused.pallas_mosaic_gpu import plgpu

LOG2_E = math.log2(math.e)
ROWS = 64  # tokens of a block: the rows of a warpgroup's matrix product


@dataclasses.dataclass(frozen=True)
class Tiling:
    """What a kernel's speed, never its result, depends on.

    warpgroups: of a program, which own neighbouring blocks; stages: blocks of a kind in flight or in use.
    """

    warpgroups: int = 1
    stages: int = 3


@dataclasses.dataclass(frozen=True)
class Tuning:
    """The tilings of the two kernels."""

    forward: Tiling = Tiling()
    backward: Tiling = Tiling()


@dataclasses.dataclass(frozen=True)
class Part:
    """Channels `start` to `start + width` of a head: 16, 32 or 64, as wide as a swizzled row of shared memory."""

    start: int
    width: int


def parts_of(head_dim: int) -> tuple[Part, ...]:
    """The parts that a head's channels are held in: 72 are 64 and 16, of which 8 do not exist."""
    whole, rest = divmod(head_dim, 64)
    tail = [Part(64 * whole, next(width for width in (16, 32, 64) if width >= rest))] if rest else []
    return (*(Part(64 * i, 64) for i in range(whole)), *tail)


@dataclasses.dataclass(frozen=True)
class Program:
    """What the kernels for one shape share.

    interpret: for Pallas's interpreter, which keeps the two views of a block apart and knows no sum that a product
      starts from.
    """

    tokens: int
    heads: int
    head_dim: int
    dtype: Any
    tiling: Tiling
    interpret: bool

    @property
    def parts(self) -> tuple[Part, ...]:
        """Of a head's channels."""
        return parts_of(self.head_dim)

    @property
    def blocks(self) -> int:
        """Of tokens, the last perhaps not whole."""
        return pl.cdiv(self.tokens, ROWS)

    @property
    def slots(self) -> int:
        """Blocks of a kind in shared memory."""
        return min(max(self.tiling.stages, 2), self.blocks)

    @property
    def programs(self) -> int:
        """That own the blocks of one head."""
        return pl.cdiv(self.blocks, self.tiling.warpgroups)

    @property
    def padded(self) -> int:
        """Tokens, those included that programs own and that do not exist."""
        return self.programs * self.tiling.warpgroups * ROWS

    @property
    def scale(self) -> float:
        """Of the logits, to base 2."""
        return LOG2_E / math.sqrt(self.head_dim)

    def warpgroup(self) -> Array:
        """Inside a kernel: this warpgroup's number in its program, whose memory of its own has it as first index."""
        return jax.lax.axis_index("warpgroups")

    def tiles(self, slots: int) -> list[Any]:
        """Shared memory of `slots` blocks, a part each, in two views.

        As it is copied, rows of a part; and as matrix products take it, tiles of 8 rows of a part. Both are the same
        bytes: a swizzled tile is eight swizzled rows. The copy engine has no tiles of 8 rows in 258.
        """

        def memory(part: Part) -> Any:
            shape = (slots, ROWS, part.width)
            if self.interpret:
                return plgpu.SMEM(shape, self.dtype)
            swizzle = plgpu.SwizzleTransform(part.width * jnp.dtype(self.dtype).itemsize)
            tiling = plgpu.TilingTransform((8, part.width))
            return plgpu.RefUnion(
                plgpu.SMEM(shape, self.dtype, transforms=(swizzle,)),
                plgpu.SMEM(shape, self.dtype, transforms=(tiling, swizzle)),
            )

        return [memory(part) for part in self.parts]

    def fetch(self, tiles: list[Any], slot: Any, source: Any, where: tuple[Any, Any, Any], barrier: Any) -> None:
        """Starts the copies of a block: where is (example, block, head)."""
        example, block, head = where
        for tile, part in zip(tiles, self.parts, strict=True):
            copied = tile if self.interpret else tile[0]
            view = source.at[example, pl.ds(block * ROWS, ROWS), head, _channels(part, block)]
            plgpu.copy_gmem_to_smem(view, copied.at[slot], barrier)

    def block(self, tiles: list[Any], slot: Any) -> list[Any]:
        """A block as matrix products take it."""
        return [(tile if self.interpret else tile[1]).at[slot] for tile in tiles]

    def write(self, tiles: list[Any], values: list[Array], target: Any, where: tuple[Any, Any, Any]) -> None:
        """Writes a block out of memory of this warpgroup's, and waits until it is."""
        example, block, head = where
        for memory, value in zip(self.block(tiles, self.warpgroup()), values, strict=True):
            memory[...] = value.astype(self.dtype)
        plgpu.commit_smem()
        for tile, part in zip(tiles, self.parts, strict=True):
            copied = tile if self.interpret else tile[0]
            view = target.at[example, pl.ds(block * ROWS, ROWS), head, _channels(part, block)]
            plgpu.copy_smem_to_gmem(copied.at[self.warpgroup()], view)
        plgpu.wait_smem_to_gmem(0)

    def zeros(self) -> list[Array]:
        """A block of sums."""
        return [_matrix(jnp.zeros((ROWS, part.width), jnp.float32)) for part in self.parts]

    def add_product(self, sums: list[Array], weights: Array, block: list[Any]) -> list[Array]:
        """sums + weights block, with the weights in registers."""
        weights = weights.astype(self.dtype)
        if self.interpret:
            return [
                x + _product([weights], [y], part.width) for x, y, part in zip(sums, block, self.parts, strict=True)
            ]

        def run(accumulators: list[Any]) -> None:
            for accumulator, part in zip(accumulators, block, strict=True):
                plgpu.wgmma(accumulator, weights, part)

        return pl.run_state(run)([plgpu.ACC.init(x) for x in sums])

    def walk(self, fetch: Callable[[int, int], None], use: Callable[[int, int], None], free: Any) -> None:
        """`use(step, slot)` for every block, after `fetch(step, slot)` by the first warpgroup, slots ahead.

        free: barriers, one a slot, at which every warpgroup says that it has done with what is in it.
        """
        shared, slots = self.tiling.warpgroups > 1, self.slots

        def start(step: int, *, wait: bool) -> None:
            @pl.when(self.warpgroup() == 0)
            def _() -> None:
                if wait:
                    plgpu.barrier_wait(free.at[step % slots])
                fetch(step, step % slots)

        for step in range(slots):
            start(step, wait=False)
        for step in range(self.blocks):
            use(step, step % slots)
            if shared and step + slots < self.blocks:
                plgpu.barrier_arrive(free.at[step % slots])
            # Where others use a slot too, they have a step's time to have done with it.
            next_step = step + slots - shared
            if slots <= next_step < self.blocks:
                start(next_step, wait=shared)

    def launch(self, kernel: Callable[..., None], rows: int, batch: int, outputs: list[Any], scratch: list[Any]) -> Any:
        """The kernel as a function of its inputs, a program for each example, head and of `rows`.

        Those of one head are neighbours, so that what they read in common is in the cache.
        """
        return plgpu.kernel(
            kernel,
            out_type=outputs,
            scratch_types=scratch,
            grid=(batch, self.heads, rows),
            grid_names=("examples", "heads", "rows"),
            num_threads=self.tiling.warpgroups,
            thread_name="warpgroups",
            compiler_params=plgpu.CompilerParams(approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Lane),
        )

    def barriers(self, arrivals: int, number: int) -> Any:
        """Each waits for so many copies, or warpgroups."""
        return plgpu.Barrier(num_arrivals=arrivals, num_barriers=number)


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
        peak, total = _rows(jnp.full((ROWS,), -jnp.inf, jnp.float32)), _rows(jnp.zeros((ROWS,), jnp.float32))
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
            (logits,) = _inner([(program.block(q_tiles, warpgroup), program.block(k_tiles, slot))])
            logits = _mask(logits, step, tokens, -jnp.inf)
            new_peak = jnp.maximum(peak, jnp.max(logits, axis=1) * program.scale)
            fade = jnp.exp2(peak - new_peak)
            weights = jnp.exp2(logits * program.scale - _along(new_peak, 0))
            peak, total = new_peak, total * fade + jnp.sum(weights, axis=1)
            faded = [x * _along(fade, 0, part.width) for x, part in zip(sums, program.parts, strict=True)]
            plgpu.barrier_wait(v_ready.at[slot])
            sums = program.add_product(faded, weights, program.block(v_tiles, slot))

        program.walk(fetch, use, free)
        sums = [x * _along(1 / total, 0, part.width) for x, part in zip(sums, program.parts, strict=True)]
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
            lse, delta = (_along(plgpu.load(x.at[slot], layout=layout), axis) for x in (lses, deltas))
            return lse, delta

        def gradients(step: int, slot: int, lse: Array, delta: Array) -> tuple[Array, Array]:
            """Weights and the logits' gradient, of the owned rows and of the tokens in the slot."""
            logits, d_weights = _inner(
                [
                    (program.block(first, warpgroup), program.block(third, slot)),
                    (program.block(second, warpgroup), program.block(fourth, slot)),
                ]
            )
            # A token of zeros, where there is none, may have any weight, infinity too.
            weights = _mask(jnp.exp2(logits * program.scale - lse), step, tokens, 0.0)
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


def _channels(part: Part, index: Array) -> Any:
    # A start that is no constant: what reaches behind the last channel is for the copy engine to leave out.
    return pl.ds(index * 0 + part.start, part.width)


def _matrix(x: Float[Array, "r c"]) -> Array:
    return plgpu.layout_cast(x, plgpu.Layout.WGMMA)


def _rows(x: Float[Array, " r"]) -> Array:
    return plgpu.layout_cast(x, plgpu.Layout.WGMMA.reduce(1))


def _along(vector: Float[Array, " r"], axis: int, width: int = ROWS) -> Float[Array, "r c"]:
    """The vector, whose elements lie along the axis, as a matrix."""
    return jax.lax.broadcast_in_dim(vector, (ROWS, width), [axis])


def _mask(x: Float[Array, "r c"], step: int, tokens: int, value: float) -> Float[Array, "r c"]:
    """The value in columns of tokens that do not exist."""
    if (step + 1) * ROWS <= tokens:
        return x
    columns = plgpu.broadcasted_iota(jnp.int32, (ROWS, ROWS), 1, layout=plgpu.Layout.WGMMA)
    return jnp.where(columns < tokens - step * ROWS, x, value)


def _inner(pairs: list[tuple[list[Any], list[Any]]]) -> list[Float[Array, "r c"]]:
    """a b^T of each pair of blocks, at once."""

    def run(*accumulators: Any) -> list[Array]:
        for accumulator, (a, b) in zip(accumulators, pairs, strict=True):
            for x, y in zip(a, b, strict=True):
                plgpu.wgmma(accumulator, x, y.transpose((1, 0)))
        return [accumulator[...] for accumulator in accumulators]

    return pl.run_scoped(run, *[plgpu.ACC((ROWS, ROWS), jnp.float32) for _ in pairs])


def _product(left: list[Array], right: list[Any], width: int) -> Float[Array, "r c"]:
    def run(accumulator: Any) -> Array:
        for x, y in zip(left, right, strict=True):
            plgpu.wgmma(accumulator, x, y)
        return accumulator[...]

    return pl.run_scoped(run, plgpu.ACC((ROWS, width), jnp.float32))
