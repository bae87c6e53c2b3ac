"""Bias and exact GELU of the MLP as one operation that keeps only its input."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from uvit_jax.models.fused import gelu_triton
from uvit_jax.models.fused.norm import Implementation


def bias_gelu(
    u: Float[Array, "b t f"], bias: Float[Array, " f"], *, implementation: Implementation
) -> Float[Array, "b t f"]:
    """g = GELU(u + bias), the exact GELU z Phi(z), computed in float32 and rounded to u's dtype.

    It keeps u for its own backward pass (one kernel: reads dg and u, writes du, sums the bias's gradient). The product
    after it needs g for its weight's gradient. Two ways to have it there: let it be kept (no work, the most memory), or
    name u "fc1" with `checkpoint_name` and save it by a `jax.checkpoint` policy, so that g is computed again by the
    forward kernel (one read and one write more).

    Args:
      u: bfloat16 or float32.
      bias: float32.
      implementation: "xla", "triton", or "interpret", Triton's kernels by Pallas's interpreter, for tests.
    """
    return _bias_gelu(u, bias, implementation)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _bias_gelu(u, bias, implementation):
    if implementation == "xla":
        return bias_gelu_xla(u, bias)
    flat = u.reshape(-1, u.shape[-1])
    return gelu_triton.bias_gelu_forward(flat, bias, interpret=implementation == "interpret").reshape(u.shape)


def _bias_gelu_fwd(u, bias, implementation):
    return _bias_gelu(u, bias, implementation), (u, bias)


def _bias_gelu_bwd(implementation, saved, dg):
    u, bias = saved
    if implementation == "xla":
        du, dbias = bias_gelu_gradients_xla(dg, u, bias)
    else:
        flat = functools.partial(jnp.reshape, shape=(-1, u.shape[-1]))
        du, dbias = gelu_triton.bias_gelu_backward(flat(dg), flat(u), bias, interpret=implementation == "interpret")
    return du.reshape(u.shape), dbias.astype(bias.dtype)


_bias_gelu.defvjp(_bias_gelu_fwd, _bias_gelu_bwd)


def bias_gelu_xla(u: Float[Array, "*b f"], bias: Float[Array, " f"]) -> Float[Array, "*b f"]:
    """GELU(u + bias) in plain XLA: what the Triton kernel is held to."""
    return jax.nn.gelu(u.astype(jnp.float32) + bias, approximate=False).astype(u.dtype)


def bias_gelu_gradients_xla(
    dg: Float[Array, "*b f"], u: Float[Array, "*b f"], bias: Float[Array, " f"]
) -> tuple[Float[Array, "*b f"], Float[Array, " f"]]:
    """(du, the bias's gradient) in plain XLA: GELU'(z) = Phi(z) + z phi(z)."""
    z = u.astype(jnp.float32) + bias
    slope = jax.scipy.stats.norm.cdf(z) + z * jax.scipy.stats.norm.pdf(z)
    du = dg.astype(jnp.float32) * slope
    return du.astype(u.dtype), du.sum(tuple(range(u.ndim - 1)))
