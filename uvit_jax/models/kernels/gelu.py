"""Bias and exact GELU of the MLP as one operation that keeps only its input."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from uvit_jax.models.kernels import gelu_triton
from uvit_jax.models.kernels.norm import Implementation
from uvit_jax.models.kernels.recomputed import recomputed

# Beyond it Phi is 0 or 1 to the last bit, in float64 too, and infinity times 0 does not arise.
FAR = 40.0


def bias_gelu(
    u: Float[Array, "b t f"], bias: Float[Array, " f"], *, implementation: Implementation
) -> Float[Array, "b t f"]:
    """g = GELU(u + bias), the exact GELU z Phi(z), computed in float32 and rounded to u's dtype.

    It keeps u for its own backward pass (one kernel: reads dg and u, writes du, sums the bias's
    gradient). The product after it needs g for its weight's gradient. Two ways to have it there:
    let it be kept (no work, the most memory), or name u "fc1" with `checkpoint_name` and save it by
    a `jax.checkpoint` policy, so that g is computed again by the forward kernel (one read and one
    write more).

    Args:
      u: bfloat16 or float32.
      bias: float32.
      implementation: "xla", "triton", or "interpret", Triton's kernels by Pallas's interpreter, for
        tests.
    """
    if implementation == "xla":
        return bias_gelu_xla(u, bias)
    return _bias_gelu(u, bias, implementation == "interpret")


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _bias_gelu(u, bias, interpret):
    flat = u.reshape(-1, u.shape[-1])
    return gelu_triton.bias_gelu_forward(flat, bias, interpret=interpret).reshape(u.shape)


def _bias_gelu_fwd(u, bias, interpret):
    return _bias_gelu(u, bias, interpret), (u, bias)


def _bias_gelu_bwd(interpret, saved, dg):
    u, bias = saved
    flat = functools.partial(jnp.reshape, shape=(-1, u.shape[-1]))
    du, dbias = gelu_triton.bias_gelu_backward(flat(dg), flat(u), bias, interpret=interpret)
    return du.reshape(u.shape), dbias.astype(bias.dtype)


_bias_gelu.defvjp(_bias_gelu_fwd, _bias_gelu_bwd)


@jax.custom_jvp
def bias_gelu_xla(u: Float[Array, "*b f"], bias: Float[Array, " f"]) -> Float[Array, "*b f"]:
    """GELU(u + bias) in plain XLA: the reference of the Triton kernel.

    It has derivatives of every order in either mode. The sums in float32 that its gradients are
    stay float32 till they are whole, and nothing but u is kept for them.
    """
    # -inf times Phi(-inf) would be NaN.
    z = jnp.maximum(_input(u, bias), -FAR)
    return jax.nn.gelu(z, approximate=False).astype(u.dtype)


@bias_gelu_xla.defjvp
def _bias_gelu_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    return bias_gelu_xla(*primals), _tangent(*primals, *tangents)


@recomputed
def _tangent(u: Array, bias: Array, du: Array, dbias: Array) -> Array:
    """GELU'(z) dz with GELU'(z) = Phi(z) + z phi(z)."""
    z = jnp.clip(_input(u, bias), -FAR, FAR)
    slope = jax.scipy.stats.norm.cdf(z) + z * jax.scipy.stats.norm.pdf(z)
    return (slope * _input(du, dbias)).astype(du.dtype)


def _input(u: Array, bias: Array) -> Array:
    return u.astype(jnp.promote_types(u.dtype, jnp.float32)) + bias
