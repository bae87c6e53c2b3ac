"""Registers and barriers of Hopper's attention kernels: matrices, masks, index arithmetic."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from uvit_jax.models.kernels.backends import mosaic_gpu as plgpu
from uvit_jax.models.kernels.hopper_tiling import ROWS


def warpgroup_barrier() -> None:
    """Barrier without a fence: enough where warps only read shared memory.

    What they write there needs `commit_smem`. Pallas has no name for that barrier alone: it comes
    with a wait until at most 7 copies are in flight, which are never so many.
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


def dynamic_slice(start: Any, length: int, index: Array) -> Any:
    # A start that is no constant: what reaches behind the last token or channel is for the copy
    # engine to leave out.
    """Slice by a start that is not a constant; what is out of bounds is not copied."""
    return pl.ds(index * 0 + start, length)


def as_matrix(x: Float[Array, "r c"]) -> Array:
    """The matrix in the registers' order that matrix products take."""
    return plgpu.layout_cast(x, plgpu.Layout.WGMMA)


def along(vector: Float[Array, " n"], axis: int, width: int = ROWS) -> Float[Array, "r c"]:
    """The vector, along that axis, as a matrix of so many columns."""
    return jax.lax.broadcast_in_dim(vector, (ROWS, width), [axis])


def mask_columns(x: Float[Array, "r c"], tokens: int, value: float) -> Float[Array, "r c"]:
    """The value in all columns but the first `tokens`, those that exist."""
    if x.shape[1] <= tokens:
        return x
    columns = plgpu.broadcasted_iota(jnp.int32, x.shape, 1, layout=plgpu.Layout.WGMMA)
    return jnp.where(columns < tokens, x, value)


def register_product(left: Array, right: Any, width: int) -> Float[Array, "r c"]:
    """left right, summed in float32 from zero."""

    def run(accumulator: Any) -> Array:
        plgpu.wgmma(accumulator, left, right)
        return accumulator[...]

    return pl.run_scoped(run, plgpu.ACC((ROWS, width), jnp.float32))
