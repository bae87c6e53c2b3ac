"""Gradients of self-attention on packed queries, keys and values for Hopper GPUs.

Tasks, memory and masks are those of `attention_hopper.py`.
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

from uvit_jax.models.kernels.backends import kernel_jit
from uvit_jax.models.kernels.backends import mosaic_gpu as plgpu
from uvit_jax.models.kernels.hopper_blocks import Locate, Program
from uvit_jax.models.kernels.hopper_registers import along, mask_columns, remainder
from uvit_jax.models.kernels.hopper_tiling import ROWS, Tiling

QUERIES = 0  # the kind of task that owns queries; the other owns keys and values


@kernel_jit("tiling", "interpret")
def backward(
    qkv: Float[Array, "b t 3 h k"],
    out: Float[Array, "b t h k"],
    lse: Float[Array, "b h t2"],
    d_out: Float[Array, "b t h k"],
    tiling: Tiling,
    *,
    interpret: bool = False,
) -> Float[Array, "b t 3 h k"]:
    """Gradient with respect to qkv, from the results of `forward` (arXiv:2307.08691, Algorithm 2).

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
    """One program: its `count` tasks and the arrays and memory given to it.

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
        """Fetches queries and d_out, or keys and values, and the vectors of their tokens."""
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
        """lse and delta of the first tokens in the slot, along that axis of a matrix."""
        layout, span = plgpu.Layout.WGMMA.reduce(1 - axis), pl.ds(0, length)
        lse, delta = (plgpu.load(self.vectors.at[slot, i, span], layout=layout) for i in range(2))
        return lse, delta

    def _await(self, slot: Any) -> None:
        plgpu.barrier_wait(self.ready.at[slot])

    def _products(self, step: int, slot: Any, own: Array, minus_delta: Array) -> list[Array]:
        """Logits of owned rows and the slot's tokens, and the weights' gradient less delta."""
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
