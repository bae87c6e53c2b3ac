"""Bias and exact GELU of the MLP as one operation that keeps only its input, and the product that follows it."""

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
    after it needs g for its weight's gradient. Three ways to have it there: let it be kept (no work, the most memory);
    name u "fc1" with `checkpoint_name` and save it by a `jax.checkpoint` policy, so that g is computed again by the
    forward kernel (one read and one write more); or call `bias_gelu_linear`, whose backward kernel writes g along
    (one write more).

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
    du, dbias, _ = _gradients(dg, u, bias, implementation, with_output=False)
    return du, dbias.astype(bias.dtype)


_bias_gelu.defvjp(_bias_gelu_fwd, _bias_gelu_bwd)


def bias_gelu_linear(
    u: Float[Array, "b t f"], bias: Float[Array, " f"], kernel: Float[Array, "f d"], *, implementation: Implementation
) -> Float[Array, "b t d"]:
    """GELU(u + bias) @ kernel, keeping u but not the GELU's output, which the backward pass's kernel writes again.

    Args:
      u: bfloat16 or float32.
      bias: float32.
      kernel: in u's dtype; its gradient comes in the same.
      implementation: as in `bias_gelu`.
    """
    return _bias_gelu_linear(u, bias, kernel, implementation)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _bias_gelu_linear(u, bias, kernel, implementation):
    return _bias_gelu(u, bias, implementation) @ kernel


def _bias_gelu_linear_fwd(u, bias, kernel, implementation):
    return _bias_gelu_linear(u, bias, kernel, implementation), (u, bias, kernel)


def _bias_gelu_linear_bwd(implementation, saved, dy):
    u, bias, kernel = saved
    dg = jnp.einsum("btd,fd->btf", dy, kernel)
    du, dbias, g = _gradients(dg, u, bias, implementation, with_output=True)
    return du, dbias.astype(bias.dtype), jnp.einsum("btf,btd->fd", g, dy).astype(kernel.dtype)


_bias_gelu_linear.defvjp(_bias_gelu_linear_fwd, _bias_gelu_linear_bwd)


def _gradients(dg, u, bias, implementation, *, with_output):
    """du, the bias's gradient and, with_output, GELU(u + bias)."""
    if implementation == "xla":
        return *bias_gelu_gradients_xla(dg, u, bias), bias_gelu_xla(u, bias) if with_output else None
    flat = functools.partial(jnp.reshape, shape=(-1, u.shape[-1]))
    du, dbias, g = gelu_triton.bias_gelu_backward(
        flat(dg), flat(u), bias, with_output=with_output, interpret=implementation == "interpret"
    )
    return du.reshape(u.shape), dbias, None if g is None else g.reshape(u.shape)


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
