"""Sizes of Hopper's attention kernels: blocks of tokens, parts of channels, tunings."""

import dataclasses
import math
from typing import Any

from jax.experimental import pallas as pl

LOG2_E = math.log2(math.e)
ROWS = 64  # tokens of a block: the rows of a warpgroup's matrix product
COLUMNS = 16  # a product is as narrow as a block's tokens let it be, in multiples of these


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Sizes that a kernel's speed depends on, never its result.

    Attributes:
      programs: programs on each multiprocessor, best as many as its registers and shared memory
        hold.
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
    """Channels `start` to `start + width` of a head: 16, 32 or 64, a swizzled row."""

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
class Sizes:
    """Sizes that the kernels for one shape share.

    interpret: for Pallas's interpreter, which keeps the two views of a block apart and starts no
      product from a sum.
    """

    tokens: int
    heads: int
    head_dim: int
    dtype: Any
    tiling: Tiling
    interpret: bool

    @property
    def parts(self) -> tuple[Part, ...]:
        """Channel blocks of one head."""
        return parts_of(self.head_dim)

    @property
    def blocks(self) -> int:
        """Number of token blocks; the last may be partial."""
        return pl.cdiv(self.tokens, ROWS)

    @property
    def whole(self) -> int:
        """Number of token blocks all of whose tokens exist."""
        return self.tokens // ROWS

    @property
    def rest(self) -> int:
        """Number of tokens behind the whole blocks."""
        return self.tokens % ROWS

    def columns(self, step: int) -> int:
        """Tokens of a block that a step of `walk` computes with; the last block may need few."""
        return min(ROWS, pl.cdiv(self.tokens - step * ROWS, COLUMNS) * COLUMNS)

    @property
    def slots(self) -> int:
        """Blocks of a kind that shared memory holds."""
        return min(max(self.tiling.stages, 2), self.blocks)

    @property
    def padded(self) -> int:
        """Number of tokens, rounded up to whole blocks."""
        return self.blocks * ROWS

    @property
    def scale(self) -> float:
        """Scale of the logits for exp2: log2(e) / sqrt(head_dim)."""
        return LOG2_E / math.sqrt(self.head_dim)
