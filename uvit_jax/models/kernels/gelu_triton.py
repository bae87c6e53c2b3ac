"""Triton kernels: bias and exact GELU in one pass, their gradients and the bias's in another."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from uvit_jax.models.kernels.backends import kernel_jit
from uvit_jax.models.kernels.tiles import Grid, Tuning, launch, load, load_block, make_grid, store

# The fastest seen on an H100 (benchmarks/kernels.py).
FORWARD = Tuning(rows=8, cols=512, warps=8)
BACKWARD = Tuning(rows=8, cols=256, warps=4, programs=132 * 16)

# The normal distribution's lower tail is Phi(-a) = exp(-a^2 / 2) t (c_1 + t (c_2 + ...)), t = 1 /
# (1 + P a), the form of Abramowitz and Stegun 7.1.26. P and c are our own fit of six terms to
# scipy's erfcx. In exact arithmetic Phi is off by at most 3.5e-8; computed in float32, by 2.5e-7,
# and of itself by 1e-6 for a up to 3, by 2e-4 up to 6 and by 4e-3 (a rounding to bfloat16) up to
# 12.9, where it leaves float32's range.
P = 0.2809
TAIL = (
    0.11696226894855499,
    0.0678802952170372,
    0.2674930989742279,
    -0.23252665996551514,
    0.3860175907611847,
    -0.10582660883665085,
)
HALF_LOG2_E = 0.7213475204444817
INV_SQRT_2PI = 0.3989422804014327
# Beyond it the tail is 0 in float32; infinity times that would be NaN.
FAR = 40.0


@kernel_jit("tuning", "interpret")
def bias_gelu_forward(
    u: Float[Array, "n f"],
    bias: Float[Array, " f"],
    *,
    tuning: Tuning = FORWARD,
    interpret: bool = False,
) -> Float[Array, "n f"]:
    """GELU(u + bias)."""
    [g] = launch(
        _forward_kernel,
        make_grid(u.shape, tuning),
        [u, bias],
        [jax.ShapeDtypeStruct(u.shape, u.dtype)],
        name="bias_gelu_forward",
        warps=tuning.warps,
        interpret=interpret,
        flops=20 * u.size,
    )
    return g


@kernel_jit("tuning", "interpret")
def bias_gelu_backward(
    dg: Float[Array, "n f"],
    u: Float[Array, "n f"],
    bias: Float[Array, " f"],
    *,
    tuning: Tuning = BACKWARD,
    interpret: bool = False,
) -> tuple[Float[Array, "n f"], Float[Array, " f"]]:
    """(du, the bias's gradient in float32)."""
    grid = make_grid(u.shape, tuning)
    du, partial = launch(
        _backward_kernel,
        grid,
        [dg, u, bias],
        [
            jax.ShapeDtypeStruct(u.shape, u.dtype),
            jax.ShapeDtypeStruct((grid.strides, u.shape[1]), jnp.float32),
        ],
        name="bias_gelu_backward",
        warps=tuning.warps,
        interpret=interpret,
        flops=26 * u.size,
    )
    return du, jnp.sum(partial, axis=0)


def tail(z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(Phi(-|z|), exp(-z^2 / 2)) of the normal distribution, elementwise in float32."""
    bell = jnp.exp2(z * z * -HALF_LOG2_E)
    t = 1.0 / (1.0 + P * jnp.abs(z))
    series = jnp.full_like(t, TAIL[-1])
    for c in TAIL[-2::-1]:
        series = series * t + c
    return series * t * bell, bell


def _forward_kernel(grid: Grid, u_ref: Any, bias_ref: Any, g_ref: Any) -> None:
    [cols] = grid.columns()
    bias = load(bias_ref.at[cols], grid.col_mask(cols))[None]

    def body(rows: jax.Array, carry: tuple[()]) -> tuple[()]:
        mask = grid.mask(rows, cols)
        z = load_block(u_ref, rows, cols, mask) + bias
        # z Phi(z) without the cancellation of 1 + erf for negative z.
        g = jnp.maximum(z, 0.0) - jnp.minimum(jnp.abs(z), FAR) * tail(z)[0]
        store(g_ref.at[rows[:, None], cols[None]], g, mask)
        return carry

    grid.walk(body, ())


def _backward_kernel(
    grid: Grid, dg_ref: Any, u_ref: Any, bias_ref: Any, du_ref: Any, partial_ref: Any
) -> None:
    [cols] = grid.columns()
    bias = load(bias_ref.at[cols], grid.col_mask(cols))[None]

    def body(rows: jax.Array, total: jax.Array) -> jax.Array:
        mask = grid.mask(rows, cols)
        z = load_block(u_ref, rows, cols, mask) + bias
        dg = load_block(dg_ref, rows, cols, mask)
        q, bell = tail(z)
        rise = jnp.minimum(jnp.abs(z), FAR) * bell * INV_SQRT_2PI
        du = dg * jnp.where(z >= 0, 1.0 - q + rise, q - rise)
        store(du_ref.at[rows[:, None], cols[None]], du, mask)
        return total + du

    total = grid.walk(body, jnp.zeros((grid.rows, grid.cols), jnp.float32))
    store(partial_ref.at[pl.program_id(1), cols], jnp.sum(total, axis=0), grid.col_mask(cols))
