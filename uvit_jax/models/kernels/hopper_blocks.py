"""Hopper's attention kernels, one program: blocks in shared memory, copies, products, launch."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from uvit_jax.models.kernels.backends import mosaic_gpu as plgpu
from uvit_jax.models.kernels.backends import multiprocessors
from uvit_jax.models.kernels.hopper_registers import (
    as_matrix,
    dynamic_slice,
    quotient,
    register_product,
    remainder,
    warpgroup_barrier,
)
from uvit_jax.models.kernels.hopper_tiling import ROWS, Part, Sizes

# (example, head, kind, block) of a program's task, by its number.
Locate = Callable[[Any], tuple[Any, Any, Any, Any]]
Sums = list[Array]  # of a block, one array a part
INTERPRETED = 3  # programs in the interpreter
WARPS = 4  # of a warpgroup


class Program(Sizes):
    """Memory, copies, products and launch of the kernels for one shape."""

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
        """Tokens of a span of a slot in the copy engine's view."""
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
        """Copies of tokens into a span of a slot; where is (example, first token, head)."""
        example, token, head = where

        def copy(memory: Any, part: Part) -> None:
            rows, channels = (
                dynamic_slice(token, span[1], head),
                dynamic_slice(part.start, part.width, head),
            )
            plgpu.copy_gmem_to_smem(source.at[example, rows, head, channels], memory, barrier)

        memories = self._copied(tiles, slot, span)
        return [functools.partial(copy, *each) for each in zip(memories, self.parts, strict=True)]

    def start(self, copies: Sequence[Callable[[], None]]) -> None:
        """Starts copies (some 30 instructions), each by a warp of its own."""

        def turn(warp: Array) -> None:
            for first in range(min(WARPS, len(copies))):

                @pl.when(warp == first)
                def mine(first: int = first) -> None:
                    for copy in copies[first::WARPS]:
                        copy()

        plgpu.warp_map(turn)

    def block(self, tiles: list[Any], slot: Any, span: tuple[int, int] = (0, ROWS)) -> list[Any]:
        """Tokens of a span of a slot in the view of matrix products."""
        return [(tile if self.interpret else tile[1]).at[slot, pl.ds(*span)] for tile in tiles]

    def write(
        self,
        tiles: list[Any],
        slot: Any,
        values: list[Array],
        target: Any,
        where: tuple[Any, Any, Any],
    ) -> None:
        """Starts to write a block out of shared memory, which stays in use until it was read."""
        example, token, head = where
        for memory, value in zip(self.block(tiles, slot), values, strict=True):
            memory[...] = value.astype(self.dtype)
        plgpu.commit_smem()
        for memory, part in zip(self._copied(tiles, slot, (0, ROWS)), self.parts, strict=True):
            rows, channels = (
                dynamic_slice(token, ROWS, head),
                dynamic_slice(part.start, part.width, head),
            )
            plgpu.copy_smem_to_gmem(memory, target.at[example, rows, head, channels])

    def zeros(self) -> Sums:
        """A block of sums."""
        return [as_matrix(jnp.zeros((ROWS, part.width), jnp.float32)) for part in self.parts]

    def add_products(
        self, sums: list[Sums], products: Sequence[Callable[[], tuple[int, Array, list[Any]]]]
    ) -> list[Sums]:
        """sums[i] + weights tokens, for each function's (i, weights, tokens).

        What a function computes overlaps with the products before it.
        """
        if self.interpret:
            sums = list(sums)
            for product in products:
                i, weights, block = product()
                weights = weights.astype(self.dtype)
                sums[i] = [
                    x + register_product(weights, y, part.width)
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
        """first + a b^T of each pair of blocks, at once; first is 0 where it is None."""

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
        return pl.run_state(add)([plgpu.ACC.init(as_matrix(x)) for x in begin])

    def among_zeros(self, weights: Array, before: int = 0) -> Array:
        """The weights of some tokens, with zeros before and after up to a whole block."""
        weights = weights.astype(self.dtype)
        widths = before, ROWS - before - weights.shape[1]
        zeros = [
            [as_matrix(jnp.zeros((ROWS, width), self.dtype))] if width else [] for width in widths
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
        """`use(step, slot)` for every block of a task, after its `fetch(task, step, slot)`.

        Args:
          more: True if this program has another task, whose first blocks are then fetched too;
            `begin` fetches those of the first.
        """
        for step in range(self.blocks):
            slot = remainder(task * self.blocks + step, self.slots)
            use(step, slot)
            warpgroup_barrier()  # all warps have done with the slot
            later = step + self.slots
            if later < self.blocks:
                fetch(task, later, slot)
            else:
                pl.when(more)(functools.partial(fetch, task + 1, later - self.blocks, slot))

    def begin(self, fetch: Callable[[Any, int, Any], None]) -> None:
        """Fetches the first blocks of the first task; see `walk`."""
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
                # Warps wait for each other at `warpgroup_barrier` and `commit_smem`.
                unsafe_no_auto_barriers=True,
                reduction_scratch_bytes=0,  # no sum or maximum is over a matrix's rows
            ),
        )

    def barriers(self, arrivals: int, number: int) -> Any:
        """Barriers that each wait for so many copies."""
        return plgpu.Barrier(num_arrivals=arrivals, num_barriers=number)
