"""What Hopper's attention kernels are made of: blocks of tokens in shared memory, their ways in and out, products."""

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

    def _copied(self, tiles: list[Any], slot: Any) -> list[Any]:
        """A block as the copy engine takes it."""
        return [(tile if self.interpret else tile[0]).at[slot] for tile in tiles]

    def fetch(self, tiles: list[Any], slot: Any, source: Any, where: tuple[Any, Any, Any], barrier: Any) -> None:
        """Starts the copies of a block: where is (example, block, head)."""
        example, block, head = where
        for memory, part in zip(self._copied(tiles, slot), self.parts, strict=True):
            view = source.at[example, pl.ds(block * ROWS, ROWS), head, _channels(part, block)]
            plgpu.copy_gmem_to_smem(view, memory, barrier)

    def block(self, tiles: list[Any], slot: Any) -> list[Any]:
        """A block as matrix products take it."""
        return [(tile if self.interpret else tile[1]).at[slot] for tile in tiles]

    def write(self, tiles: list[Any], values: list[Array], target: Any, where: tuple[Any, Any, Any]) -> None:
        """Writes a block out of memory of this warpgroup's, and waits until it is."""
        example, block, head = where
        for memory, value in zip(self.block(tiles, self.warpgroup()), values, strict=True):
            memory[...] = value.astype(self.dtype)
        plgpu.commit_smem()
        for memory, part in zip(self._copied(tiles, self.warpgroup()), self.parts, strict=True):
            view = target.at[example, pl.ds(block * ROWS, ROWS), head, _channels(part, block)]
            plgpu.copy_smem_to_gmem(memory, view)
        plgpu.wait_smem_to_gmem(0)

    def zeros(self) -> list[Array]:
        """A block of sums."""
        return [_matrix(jnp.zeros((ROWS, part.width), jnp.float32)) for part in self.parts]

    def add_product(self, sums: list[Array], weights: Array, block: list[Any]) -> list[Array]:
        """sums + weights block, with the weights in registers."""
        weights = weights.astype(self.dtype)
        if self.interpret:
            return [x + _product(weights, y, part.width) for x, y, part in zip(sums, block, self.parts, strict=True)]

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


def _channels(part: Part, index: Array) -> Any:
    # A start that is no constant: what reaches behind the last channel is for the copy engine to leave out.
    return pl.ds(index * 0 + part.start, part.width)


def _matrix(x: Float[Array, "r c"]) -> Array:
    return plgpu.layout_cast(x, plgpu.Layout.WGMMA)


def row_vector(x: Float[Array, " r"]) -> Array:
    """A number a row, in the registers that hold the row."""
    return plgpu.layout_cast(x, plgpu.Layout.WGMMA.reduce(1))


def along(vector: Float[Array, " r"], axis: int, width: int = ROWS) -> Float[Array, "r c"]:
    """The vector, whose elements lie along the axis, as a matrix."""
    return jax.lax.broadcast_in_dim(vector, (ROWS, width), [axis])


def mask_columns(x: Float[Array, "r c"], step: int, tokens: int, value: float) -> Float[Array, "r c"]:
    """The value in columns of tokens that do not exist."""
    if (step + 1) * ROWS <= tokens:
        return x
    columns = plgpu.broadcasted_iota(jnp.int32, (ROWS, ROWS), 1, layout=plgpu.Layout.WGMMA)
    return jnp.where(columns < tokens - step * ROWS, x, value)


def inner(pairs: list[tuple[list[Any], list[Any]]]) -> list[Float[Array, "r c"]]:
    """a b^T of each pair of blocks, at once."""

    def run(*accumulators: Any) -> list[Array]:
        for accumulator, (a, b) in zip(accumulators, pairs, strict=True):
            for x, y in zip(a, b, strict=True):
                plgpu.wgmma(accumulator, x, y.transpose((1, 0)))
        return [accumulator[...] for accumulator in accumulators]

    return pl.run_scoped(run, *[plgpu.ACC((ROWS, ROWS), jnp.float32) for _ in pairs])


def _product(left: Array, right: Any, width: int) -> Float[Array, "r c"]:
    def run(accumulator: Any) -> Array:
        plgpu.wgmma(accumulator, left, right)
        return accumulator[...]

    return pl.run_scoped(run, plgpu.ACC((ROWS, width), jnp.float32))
