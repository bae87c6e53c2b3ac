"""Blocks of a matrix inside Triton's attention kernels: loads, stores and products of them.

Triton's arrays have powers of two, the network's have not: 72 channels are held as 64 and 16 (8 of
them masked), 258 tokens are four blocks of 64 and one of 16 (14 of them masked).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jaxtyping import Array

from uvit_jax.models.kernels.backends import triton as plgpu

SMALLEST = 16  # of a matrix product's sides on tensor cores


@dataclasses.dataclass(frozen=True)
class Block:
    """`size` elements (a power of two) from `start` on, of which `valid` exist."""

    start: int | Array
    size: int
    valid: int | Array

    @property
    def masked(self) -> bool:
        """True if some elements do not exist, or may not."""
        return not isinstance(self.valid, int) or self.valid < self.size

    @property
    def mask(self) -> Array:
        """`[size]`, True for elements that exist."""
        return jnp.arange(self.size) < self.valid


def cut(length: int, size: int, smallest: int = SMALLEST) -> tuple[int, tuple[Block, ...]]:
    """Number of whole blocks of `size` in a length, and one or two smaller blocks for the rest."""
    whole, rest = divmod(length, size)
    start = whole * size
    if rest == 0:
        return whole, ()
    one = max(smallest, pl.next_power_of_2(rest))
    large = one // 2
    if large < smallest or large >= rest:
        return whole, (Block(start, one, rest),)
    small = max(smallest, pl.next_power_of_2(rest - large))
    if large + small >= one:
        return whole, (Block(start, one, rest),)
    return whole, (Block(start, large, large), Block(start + large, small, rest - large))


def channels(head_dim: int) -> tuple[Block, ...]:
    """Blocks of a head's channels: 72 is 64 and 16."""
    whole, tail = cut(head_dim, 128)
    return (*(Block(128 * i, 128, 128) for i in range(whole)), *tail)


def walk_columns(step: Callable[[Block, Any], Any], carry: Any, tokens: int, columns: int) -> Any:
    """carry = step(block, carry) for all blocks of columns, whole ones in a loop, then the rest."""
    whole, tail = cut(tokens, columns)
    if whole == 1:
        carry = step(Block(0, columns, columns), carry)
    elif whole:
        carry = jax.lax.fori_loop(
            0, whole, lambda i, c: step(Block(i * columns, columns, columns), c), carry
        )
    for block in tail:
        carry = step(block, carry)
    return carry


# A matrix [block, head_dim] is held as a tuple of arrays, one for each block of channels.
Matrix = tuple[Array, ...]


def load(ref: Any, index: tuple[int, ...], rows: Block, head_dim: int) -> Matrix:
    """ref[rows, *index, :], with zeros where rows or channels do not exist."""
    parts = []
    for part in channels(head_dim):
        view = ref.at[
            (pl.ds(rows.start, rows.size), *map(np.int32, index), pl.ds(part.start, part.size))
        ]
        mask = _mask(rows, part)
        parts.append(plgpu.load(view) if mask is None else plgpu.load(view, mask=mask, other=0.0))
    return tuple(parts)


def store(ref: Any, index: tuple[int, ...], rows: Block, head_dim: int, values: Matrix) -> None:
    """ref[rows, *index, :] = values, where rows and channels exist."""
    for part, value in zip(channels(head_dim), values, strict=True):
        view = ref.at[
            (pl.ds(rows.start, rows.size), *map(np.int32, index), pl.ds(part.start, part.size))
        ]
        plgpu.store(view, value.astype(ref.dtype), mask=_mask(rows, part))


def load_vector(ref: Any, rows: Block) -> Array:
    """ref[rows], with zeros where they do not exist."""
    view = ref.at[pl.ds(rows.start, rows.size)]
    return plgpu.load(view, mask=rows.mask, other=0.0) if rows.masked else plgpu.load(view)


def store_vector(ref: Any, rows: Block, values: Array) -> None:
    """ref[rows] = values, where they exist."""
    plgpu.store(
        ref.at[pl.ds(rows.start, rows.size)], values, mask=rows.mask if rows.masked else None
    )


def _mask(rows: Block, part: Block) -> Array | None:
    """`[rows, channels]`, True for elements that exist; None where all do."""
    shape = (rows.size, part.size)
    if rows.masked and part.masked:
        return rows.mask[:, None] & part.mask[None]
    if rows.masked:
        return jnp.broadcast_to(rows.mask[:, None], shape)
    return jnp.broadcast_to(part.mask[None], shape) if part.masked else None


def _dot(a: Array, b: Array, contract: int) -> Array:
    """The product over a's last axis and the given axis of b, summed in float32."""
    # Triton's default for float32 operands would be tf32.
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    dims = (((1,), (contract,)), ((), ()))
    return jax.lax.dot_general(a, b, dims, precision=precision, preferred_element_type=jnp.float32)


def inner(a: Matrix, b: Matrix) -> Array:
    """a b^T, `[rows of a, rows of b]`."""
    first, *rest = (_dot(x, y, 1) for x, y in zip(a, b, strict=True))
    return sum(rest, first)


def add_product(acc: Matrix, weights: Array, b: Matrix) -> Matrix:
    """acc + weights b."""
    return tuple(x + _dot(weights.astype(y.dtype), y, 0) for x, y in zip(acc, b, strict=True))


def zeros(rows: Block, head_dim: int) -> Matrix:
    """Sums to start from, float32."""
    return tuple(jnp.zeros((rows.size, part.size), jnp.float32) for part in channels(head_dim))
