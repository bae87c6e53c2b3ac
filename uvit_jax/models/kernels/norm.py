"""Residual add, bias and LayerNorm of the stream as one operation with one backward pass."""

import functools
import operator
from typing import Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from uvit_jax.models.kernels import backends, norm_triton
from uvit_jax.models.kernels.recomputed import recomputed
from uvit_jax.models.layers import EPSILON

Implementation = Literal["xla", "triton", "interpret"]

# A program holds whole rows in registers; no model here is nearly as wide.
MAX_WIDTH = 8192


def resolve(dtype: DTypeLike, d: int, platform: str) -> Literal["xla", "triton"]:
    """Implementation for "auto": Triton's on a GPU in bfloat16 for rows it can hold, or XLA's."""
    fits = backends.triton is not None and jnp.dtype(dtype) == jnp.bfloat16 and 1 <= d <= MAX_WIDTH
    return "triton" if platform in ("gpu", "cuda") and fits else "xla"


def add_norm(
    x: Float[Array, "b t d"],
    y: Float[Array, "b t d"] | None,
    bias: Float[Array, " d"] | None,
    scale: Float[Array, " d"],
    shift: Float[Array, " d"],
    *,
    implementation: Implementation,
    ways: int = 1,
) -> tuple[Float[Array, "b t d"], ...]:
    """(r, h): r = x + (y + bias), as often as `ways`, and h = LayerNorm(r) scale + shift.

    Both are in the stream's dtype.

    The sum is taken in float32 and rounded once. The kernels leave it to XLA as part of the product
    that y is, with the bias in the stream's dtype; where y is not a product they first round
    y + bias.

    The LayerNorm (eps 1e-5, variance in two passes, float32) is that of the rounded r, so nothing
    but r and two numbers a row is kept for the backward pass, which reads dr, dh and r once and
    writes dx once. Go on with r, not with x: a gradient that reaches x past this function is one
    more add.

    Under `jax.checkpoint` the kept arrays carry the names "residual" (r) and "norm_statistics"
    (mean, 1 / std). Inside `shard_map` the kernels take `check_vma=False`; outside, XLA can't
    partition them (nor any Pallas kernel).

    Args:
      x: the stream, bfloat16 or float32.
      y: what is added to it, in the same dtype; None for LayerNorm alone.
      bias: of the product that made y (or x), float32; None for none. With neither y nor bias, r is
        x.
      scale, shift: the LayerNorm's, float32.
      implementation: "xla", "triton", or "interpret", Triton's kernels by Pallas's interpreter, for
        tests.
      ways: 1, or 2 for a stream that goes two: the gradients of its two r are then added in the one
        backward pass.
    """
    if implementation == "xla":
        return _add_norm_xla(x, y, bias, scale, shift, ways)
    return _add_norm(x, y, bias, scale, shift, implementation == "interpret", y is not None, ways)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def _add_norm(x, y, bias, scale, shift, interpret, has_y, ways):
    return _add_norm_fwd(x, y, bias, scale, shift, interpret, has_y, ways)[0]


def _add_norm_fwd(x, y, bias, scale, shift, interpret, has_y, ways):
    # Named before the LayerNorm reads it: a policy that keeps r needs no y to compute h again.
    r = checkpoint_name(_sum_in_product(x, y, bias), "residual")
    rows = r.reshape(-1, r.shape[-1])
    h, mean, rstd = norm_triton.norm_forward(rows, scale, shift, interpret=interpret)
    mean, rstd = checkpoint_name(
        (mean.reshape(r.shape[:-1]), rstd.reshape(r.shape[:-1])), "norm_statistics"
    )
    return (*[r] * ways, h.reshape(r.shape)), (r, mean, rstd, bias, scale, shift)


def _add_norm_bwd(interpret, has_y, ways, saved, gradients):
    r, mean, rstd, bias, scale, shift = saved
    dr, *ds, dh = gradients
    rows = functools.partial(jnp.reshape, shape=(-1, r.shape[-1]))
    dx, sums = norm_triton.norm_backward(
        rows(dr),
        rows(ds[0]) if ds else None,
        rows(dh),
        rows(r),
        mean.reshape(-1),
        rstd.reshape(-1),
        scale,
        with_bias=bias is not None,
        interpret=interpret,
    )
    dx = dx.reshape(r.shape)
    dscale, dshift = sums[0].astype(scale.dtype), sums[1].astype(shift.dtype)
    dbias = None if bias is None else sums[2].astype(bias.dtype)
    return dx, dx if has_y else None, dbias, dscale, dshift


_add_norm.defvjp(_add_norm_fwd, _add_norm_bwd)


@functools.partial(jax.custom_jvp, nondiff_argnums=(5,))
def _add_norm_xla(x, y, bias, scale, shift, ways):
    r, h, _, _ = _streams_xla(x, y, bias, scale, shift)
    return (*[r] * ways, h)


@_add_norm_xla.defjvp
def _add_norm_xla_jvp(ways, primals, tangents):
    """Tangents of every order in either mode.

    The tangent of r stays float32 till it is whole, so that the transpose rounds the sum of all
    gradients that reach r once.
    """
    r, h, mean, rstd = _streams_xla(*primals)
    *streams, dscale, dshift = tangents
    dr = _sum_wide(*streams)
    dh = norm_tangent(r, mean, rstd, primals[3], dr, dscale, dshift)
    return (*[r] * ways, h), (*(dr.astype(r.dtype) for _ in range(ways)), dh)


def _streams_xla(x, y, bias, scale, shift):
    """r, h, mean and 1 / std, under their checkpoint names."""
    r = checkpoint_name(_sum_xla(x, y, bias), "residual")
    h, mean, rstd = norm_xla(r, scale, shift)
    mean, rstd = checkpoint_name((mean, rstd), "norm_statistics")
    return r, h, mean, rstd


@recomputed
def norm_tangent(r, mean, rstd, scale, dr, dscale, dshift):
    """dh of LayerNorm(r) scale + shift, dr in float32."""
    mean, rstd = mean[..., None], rstd[..., None]
    normed = (_wide(r) - mean) * rstd
    centered = dr - dr.mean(axis=-1, keepdims=True)
    dnormed = rstd * (centered - normed * (normed * dr).mean(axis=-1, keepdims=True))
    return (dnormed * scale + normed * dscale + dshift).astype(r.dtype)


def norm_xla(
    r: Float[Array, "*b d"], scale: Float[Array, " d"], shift: Float[Array, " d"]
) -> tuple[Float[Array, "*b d"], Float[Array, "*b"], Float[Array, "*b"]]:
    """(h, mean, 1 / std) in plain XLA: the reference of the Triton kernel."""
    wide = _wide(r)
    mean = wide.mean(axis=-1)
    centered = wide - mean[..., None]
    rstd = jax.lax.rsqrt(jnp.square(centered).mean(axis=-1) + EPSILON)
    h = centered * rstd[..., None] * scale + shift
    return h.astype(r.dtype), mean, rstd


def residual_add(
    x: Float[Array, "b t d"],
    y: Float[Array, "b t d"],
    bias: Float[Array, " d"] | None,
    *,
    implementation: Implementation,
) -> Float[Array, "b t d"]:
    """r = x + (y + bias) as `add_norm` has it: for a stream that no LayerNorm reads next.

    XLA adds, whatever the implementation; the kernel sums the bias's gradient over the rows.
    """
    if implementation == "xla":
        return _sum_xla(x, y, bias)
    return _residual_add(x, y, bias, implementation == "interpret")


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _residual_add(x, y, bias, interpret):
    return _sum_in_product(x, y, bias)


def _sum_xla(x, y, bias):
    return _sum_wide(x, y, bias).astype(x.dtype)


def _sum_wide(x, y, bias):
    """x + (y + bias) in float32, leaving out what is None."""
    there = [_wide(a) for a in (bias, y, x) if a is not None]
    return functools.reduce(operator.add, there)


def _wide(x):
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _sum_in_product(x, y, bias):
    """The sum as XLA fuses it into the product that y (or x) is (`parallel/compiler.py`).

    cuBLASLt then adds x and the bias, in the stream's dtype, to sums in float32, and rounds once. A
    stream of three axes would do as well, but XLA writes the sum over it, after a copy if the
    backward pass keeps x.
    """
    if y is None and bias is None:
        return x
    rows = [a.reshape(-1, x.shape[-1]) for a in (x, y) if a is not None]
    if bias is not None:
        rows[-1] = rows[-1] + bias.astype(x.dtype)
    return functools.reduce(operator.add, rows).reshape(x.shape)


def _residual_add_fwd(x, y, bias, interpret):
    return _sum_in_product(x, y, bias), bias


def _residual_add_bwd(interpret, bias, dr):
    if bias is None:
        return dr, dr, None
    dbias = norm_triton.row_sums(dr.reshape(-1, dr.shape[-1]), interpret=interpret)
    return dr, dr, dbias.astype(bias.dtype)


_residual_add.defvjp(_residual_add_fwd, _residual_add_bwd)
