"""What Hopper's attention kernels are made of: blocks of tokens in shared memory, their ways in and
out, products.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from uvit_jax.models.kernels.pallas_mosaic_gpu import multiprocessors, plgpu

Sums = list[Array]  # of a block, a part each
LOG2_E = math.log2(math.e)
ROWS = 64  # tokens of a block: the rows of a warpgroup's matrix product
INTERPRETED = 3  # programs in the interpreter
WARPS = 4  # of a warpgroup
COLUMNS = 16  # of a product that is as narrow as a block's tokens let it be, or a multiple of them


@dataclasses.dataclass(frozen=True)
class Tiling:
    """What a kernel's speed, never its result, depends on.

    programs: on each multiprocessor; best as many as its registers and shared memory hold.
    stages: blocks of a kind in flight or in use.
    """

    programs: int
    stages: int = 2


@dataclasses.dataclass(frozen=True)
class Tuning:
    """The tilings of the two kernels."""

    forward: Tiling
    backward: Tiling


# The fastest found, by `benchmarks/attention.py` on an H100; registers allow two programs.
TUNING = Tuning(Tiling(2), Tiling(2, 3))


@dataclasses.dataclass(frozen=True)
class Part:
    """Channels `start` to `start + width` of a head: 16, 32 or 64, as wide as a swizzled row of
    shared memory.
    """

    start: int
    width: int


def parts_of(head_dim: int) -> tuple[Part, ...]:
    """The parts that a head's channels are held in: 72 are 64 and 16, of which 8 do not exist."""
    whole, rest = divmod(head_dim, 64)
    tail = (
        [Part(64 * whole, next(width for width in (16, 32, 64) if width >= rest))] if rest else []
    )
    return (*(Part(64 * i, 64) for i in range(whole)), *tail)


@dataclasses.dataclass(frozen=True)
class Program:
    """What the kernels for one shape share.

    interpret: for Pallas's interpreter, which keeps the two views of a block apart and knows no sum
      that a product starts from.
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
    def whole(self) -> int:
        """Blocks all of whose tokens exist."""
        return self.tokens // ROWS

    @property
    def rest(self) -> int:
        """Tokens behind those."""
        return self.tokens % ROWS

    def columns(self, step: int) -> int:
        """Tokens of a block that a step of `walk` computes with: few of the last one's, if few of
        them exist.
        """
        return min(ROWS, pl.cdiv(self.tokens - step * ROWS, COLUMNS) * COLUMNS)

    @property
    def slots(self) -> int:
        """Blocks of a kind in shared memory."""
        return min(max(self.tiling.stages, 2), self.blocks)

    @property
    def padded(self) -> int:
        """Tokens of whole blocks."""
        return self.blocks * ROWS

    @property
    def scale(self) -> float:
        """Of the logits, to base 2."""
        return LOG2_E / math.sqrt(self.head_dim)

    def tiles(self, slots: int, rows: int = ROWS) -> list[Any]:
        """Shared memory for so many rows in each slot, a part each, in two views.

        As it is copied, rows of a part; and as matrix products take it, tiles of 8 rows of a part.
        Both are the same bytes: a swizzled tile is eight swizzled rows. The copy engine has no
        tiles of 8 rows in 258.
        """

        def memory(part: Part) -> Any:
            shape = (slots, rows, part.width)
            if self.interpret:
                return plgpu.SMEM(shape, self.dtype)
            swizzle = plgpu.SwizzleTransform(part.width * jnp.dtype(self.dtype).itemsize)
            tiling = plgpu.TilingTransform((8, part.width))
            return plgpu.RefUnion(
                plgpu.SMEM(shape, self.dtype, transforms=(swizzle,)),
                plgpu.SMEM(shape, self.dtype, transforms=(tiling, swizzle)),
            )

        return [memory(part) for part in self.parts]

    def _copied(self, tiles: list[Any], slot: Any, span: tuple[int, int]) -> list[Any]:
        """Tokens of a span of a slot as the copy engine takes them."""
        return [(tile if self.interpret else tile[0]).at[slot, pl.ds(*span)] for tile in tiles]

    def copies(
        self,
        tiles: list[Any],
        slot: Any,
        source: Any,
        where: tuple[Any, Any, Any],
        barrier: Any,
        span: tuple[int, int] = (0, ROWS),
    ) -> list[Callable[[], None]]:
        """Of tokens into a span of a slot, to be given to `start`: where is (example, first token,
        head).
        """
        example, token, head = where

        def copy(memory: Any, part: Part) -> None:
            rows, channels = _from(token, span[1], head), _from(part.start, part.width, head)
            plgpu.copy_gmem_to_smem(source.at[example, rows, head, channels], memory, barrier)

        memories = self._copied(tiles, slot, span)
        return [functools.partial(copy, *each) for each in zip(memories, self.parts, strict=True)]

    def start(self, copies: Sequence[Callable[[], None]]) -> None:
        """Starts copies, each by a warp of its own while the others go on: it takes some 30
        instructions.
        """

        def turn(warp: Array) -> None:
            for first in range(min(WARPS, len(copies))):

                @pl.when(warp == first)
                def mine(first: int = first) -> None:
                    for copy in copies[first::WARPS]:
                        copy()

        plgpu.warp_map(turn)

    def block(self, tiles: list[Any], slot: Any, span: tuple[int, int] = (0, ROWS)) -> list[Any]:
        """Tokens of a span of a slot as matrix products take them."""
        return [(tile if self.interpret else tile[1]).at[slot, pl.ds(*span)] for tile in tiles]

    def write(
        self,
        tiles: list[Any],
        slot: Any,
        values: list[Array],
        target: Any,
        where: tuple[Any, Any, Any],
    ) -> None:
        """Starts to write a block out of shared memory, which nothing else uses until the write has
        read it.
        """
        example, token, head = where
        for memory, value in zip(self.block(tiles, slot), values, strict=True):
            memory[...] = value.astype(self.dtype)
        plgpu.commit_smem()
        for memory, part in zip(self._copied(tiles, slot, (0, ROWS)), self.parts, strict=True):
            rows, channels = _from(token, ROWS, head), _from(part.start, part.width, head)
            plgpu.copy_smem_to_gmem(memory, target.at[example, rows, head, channels])

    def zeros(self) -> Sums:
        """A block of sums."""
        return [_matrix(jnp.zeros((ROWS, part.width), jnp.float32)) for part in self.parts]

    def add_products(
        self, sums: list[Sums], products: Sequence[Callable[[], tuple[int, Array, list[Any]]]]
    ) -> list[Sums]:
        """sums[i] + weights tokens for each product, a function that returns i, weights in
        registers and tokens.

        What a function computes overlaps with the products before it.
        """
        if self.interpret:
            sums = list(sums)
            for product in products:
                i, weights, block = product()
                weights = weights.astype(self.dtype)
                sums[i] = [
                    x + _product(weights, y, part.width)
                    for x, y, part in zip(sums[i], block, self.parts, strict=True)
                ]
            return sums

        def run(accumulators: list[list[Any]]) -> None:
            for product in products:
                i, weights, block = product()
                weights = weights.astype(self.dtype)
                for accumulator, part in zip(accumulators[i], block, strict=True):
                    plgpu.wgmma(accumulator, weights, part)

        return pl.run_state(run)([[plgpu.ACC.init(x) for x in each] for each in sums])

    def inner(
        self, pairs: Sequence[tuple[list[Any], list[Any]]], first: Sequence[Array | None]
    ) -> list[Float[Array, "r c"]]:
        """first + a b^T of each pair of blocks, at once; where there is no first, 0."""

        def add(accumulators: Sequence[Any]) -> None:
            for accumulator, (a, b) in zip(accumulators, pairs, strict=True):
                for x, y in zip(a, b, strict=True):
                    plgpu.wgmma(accumulator, x, y.transpose((1, 0)))

        def product(*accumulators: Any) -> list[Array]:
            add(accumulators)
            return [accumulator[...] for accumulator in accumulators]

        shapes = [(ROWS, b[0].shape[0]) for _, b in pairs]
        if self.interpret:
            products = pl.run_scoped(product, *[plgpu.ACC(shape, jnp.float32) for shape in shapes])
            return [y if x is None else x + y for x, y in zip(first, products, strict=True)]
        begin = [
            jnp.zeros(shape, jnp.float32) if x is None else x
            for x, shape in zip(first, shapes, strict=True)
        ]
        return pl.run_state(add)([plgpu.ACC.init(_matrix(x)) for x in begin])

    def among_zeros(self, weights: Array, before: int = 0) -> Array:
        """The weights of some tokens, with zeros for those before and after in a block: products
        sum over blocks.
        """
        weights = weights.astype(self.dtype)
        widths = before, ROWS - before - weights.shape[1]
        zeros = [
            [_matrix(jnp.zeros((ROWS, width), self.dtype))] if width else [] for width in widths
        ]
        spans = [*zeros[0], weights, *zeros[1]]
        return jnp.concatenate(spans, axis=1) if len(spans) > 1 else weights

    def walk(
        self,
        fetch: Callable[[Any, int, Any], None],
        use: Callable[[int, Any], None],
        task: Any,
        more: Any,
    ) -> None:
        """`use(step, slot)` for every block of a task, each `slots` steps after its `fetch(task,
        step, slot)`.

        more: whether this program has another task, whose first blocks are then fetched too;
          `begin` fetches those of the first.
        """
        for step in range(self.blocks):
            slot = remainder(task * self.blocks + step, self.slots)
            use(step, slot)
            together()  # all warps have done with the slot
            later = step + self.slots
            if later < self.blocks:
                fetch(task, later, slot)
            else:
                pl.when(more)(functools.partial(fetch, task + 1, later - self.blocks, slot))

    def begin(self, fetch: Callable[[Any, int, Any], None]) -> None:
        """See `walk`."""
        for step in range(self.slots):
            fetch(0, step, step)

    def launch(
        self,
        name: str,
        body: Callable[..., None],
        batch: int,
        kinds: int,
        outputs: list[Any],
        scratch: list[Any],
        *,
        side_by_side: bool = True,
    ) -> Callable[..., Any]:
        """A kernel as a function of its inputs, under the name in a profile.

        Its programs take turns at the tasks, one for each block of each head and kind, blocks of a
        head side by side so that what they read in common is in the cache. `body(locate, count,
        refs)` runs those of one program, of which `locate(number)` says (example, head, kind,
        block).
        """
        turn = 1 if side_by_side else self.blocks  # tasks that a program takes in turn
        turns = batch * self.heads * kinds * self.blocks // turn
        programs = min(
            turns, INTERPRETED if self.interpret else self.tiling.programs * multiprocessors()
        )

        def kernel(*refs: Any) -> None:
            program = jax.lax.axis_index("programs")

            def locate(number: Any) -> tuple[Any, Any, Any, Any]:
                number = program * 0 + number
                index = (quotient(number, turn) * programs + program) * turn + remainder(
                    number, turn
                )
                found = []
                for size in (self.blocks, kinds, self.heads):
                    found.append(remainder(index, size))
                    index = quotient(index, size)
                block, kind, head = found
                return index, head, kind, block

            body(locate, quotient(turns - program + programs - 1, programs) * turn, refs)
            plgpu.wait_smem_to_gmem(0)

        kernel.__name__ = name
        return plgpu.kernel(
            kernel,
            out_type=outputs,
            scratch_types=scratch,
            grid=(programs,),
            grid_names=("programs",),
            compiler_params=plgpu.CompilerParams(
                approx_math=True,
                lowering_semantics=plgpu.LoweringSemantics.Lane,
                unsafe_no_auto_barriers=True,  # `together` and `commit_smem` are where warps wait for each other
                reduction_scratch_bytes=0,  # no sum or maximum is over a matrix's rows
            ),
        )

    def barriers(self, arrivals: int, number: int) -> Any:
        """Each waits for so many copies."""
        return plgpu.Barrier(num_arrivals=arrivals, num_barriers=number)


def together() -> None:
    """Waits for the other warps, which have read shared memory; what they write there needs
    `commit_smem`.

    Pallas has no name for that barrier alone: it comes with a wait until at most 7 copies are on
    their way, which are never so many.
    """
    plgpu.wait_smem_to_gmem(7, wait_read_only=True)


def remainder(index: Any, size: int) -> Array:
    """index mod size, neither negative."""
    return (
        jax.lax.rem(index, jnp.int32(size))
        if isinstance(index, jax.Array)
        else jnp.int32(index % size)
    )


def quotient(index: Array, size: int) -> Array:
    """index / size rounded down, neither negative."""
    return jax.lax.div(index, jnp.int32(size))


def _from(start: Any, length: int, index: Array) -> Any:
    # A start that is no constant: what reaches behind the last token or channel is for the copy
    # engine to leave out.
    return pl.ds(index * 0 + start, length)


def _matrix(x: Float[Array, "r c"]) -> Array:
    return plgpu.layout_cast(x, plgpu.Layout.WGMMA)


def along(vector: Float[Array, " n"], axis: int, width: int = ROWS) -> Float[Array, "r c"]:
    """The vector, whose elements lie along the axis, as a matrix of so many columns."""
    return jax.lax.broadcast_in_dim(vector, (ROWS, width), [axis])


def mask_columns(x: Float[Array, "r c"], tokens: int, value: float) -> Float[Array, "r c"]:
    """The value in all columns but the first ones, those of tokens that exist."""
    if x.shape[1] <= tokens:
        return x
    columns = plgpu.broadcasted_iota(jnp.int32, x.shape, 1, layout=plgpu.Layout.WGMMA)
    return jnp.where(columns < tokens, x, value)


def _product(left: Array, right: Any, width: int) -> Float[Array, "r c"]:
    def run(accumulator: Any) -> Array:
        plgpu.wgmma(accumulator, left, right)
        return accumulator[...]

    return pl.run_scoped(run, plgpu.ACC((ROWS, width), jnp.float32))
