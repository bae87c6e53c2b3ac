"""Self-attention that reads q, k and v from one array and writes one gradient, by the kernel that fits."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from uvit_jax.models.fused import attention_triton, pallas_triton
from uvit_jax.models.fused.attention_triton import Tuning
from uvit_jax.models.fused.fallback import say_once

Implementation = Literal["triton", "cudnn", "xla"]
# Beyond them nothing was measured; a long loop wants other tilings, and there copies around cuDNN's weigh little.
MAX_TOKENS, MAX_HEAD_DIM = 1024, 128


def why_not_triton(shape: tuple[int, ...], dtype: DTypeLike, platform: str) -> str | None:
    """Why qkv of this shape `[b, t, 3, h, k]` can't be given to the Triton kernel; None where it can."""
    _, tokens, _, _, head_dim = shape
    if not pallas_triton.AVAILABLE:
        return "this version of jax has no Triton backend of Pallas"
    if platform != "gpu":
        return f"the Triton kernel runs on platform gpu, not {platform}"
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        return f"the Triton kernel takes bfloat16 and float16, not {jnp.dtype(dtype).name}"
    if head_dim % 8 or head_dim > MAX_HEAD_DIM:
        return f"the Triton kernel takes a head_dim that is a multiple of 8 up to {MAX_HEAD_DIM}, not {head_dim}"
    if tokens > MAX_TOKENS:
        return f"the Triton kernel takes up to {MAX_TOKENS} tokens, not {tokens}"
    return None


def resolve(name: str, shape: tuple[int, ...], dtype: DTypeLike, platform: str) -> Implementation:
    """The kernel a name stands for with qkv of this shape `[b, t, 3, h, k]`.

    "auto" is Triton's where it fits, else cuDNN's on a GPU in half precision (the only one it has), else XLA's.
    "triton" and "cudnn" fall back in the same order where they don't fit, which is said once.
    """
    if name == "xla":
        return "xla"
    half = jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
    other: Implementation = "cudnn" if half and platform == "gpu" else "xla"
    if name == "cudnn":
        if other == "xla":
            say_once(
                f"attention = cudnn falls back to xla: cuDNN's kernel takes bfloat16 and float16 on platform gpu, not "
                f"{jnp.dtype(dtype).name} on {platform}"
            )
        return other
    reason = why_not_triton(shape, dtype, platform)
    if reason is None:
        return "triton"
    if name == "triton":
        say_once(f"attention = triton falls back to {other}: {reason}")
    return other


def packed_attention(qkv: Float[Array, "b t 3 h k"], *, implementation: Implementation) -> Float[Array, "b t h k"]:
    """softmax(q k^T / sqrt(k)) v of every head, softmax in float32, for any number of tokens.

    "triton" touches qkv and its gradient `[b, t, 3, h, k]` where they lie; "cudnn" and "xla" take slices of them.
    The name must come from `resolve`.
    """
    if implementation == "triton":
        return triton_attention(qkv, Tuning(), False)
    query, key, value = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
    if implementation == "xla" or qkv.shape[1] % 2 == 0:
        return jax.nn.dot_product_attention(query, key, value, implementation=implementation)
    # cuDNN's backward pass takes an even number of tokens: one more is added, which nothing attends to.
    b, tokens = qkv.shape[:2]
    query, key, value = (jnp.pad(a, ((0, 0), (0, 1), (0, 0), (0, 0))) for a in (query, key, value))
    lengths = jnp.full((b,), tokens, jnp.int32)
    out = jax.nn.dot_product_attention(
        query, key, value, query_seq_lengths=lengths, key_value_seq_lengths=lengths, implementation="cudnn"
    )
    return out[:, :tokens]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def triton_attention(qkv: Float[Array, "b t 3 h k"], tuning: Tuning, interpret: bool) -> Float[Array, "b t h k"]:
    """`packed_attention` by the Triton kernels with a given tuning; `interpret` runs them on any device, slowly."""
    return attention_triton.forward(qkv, tuning.forward, interpret=interpret)[0]


def _forward(
    qkv: Float[Array, "b t 3 h k"], tuning: Tuning, interpret: bool
) -> tuple[Float[Array, "b t h k"], tuple[Array, Array, Array]]:
    out, lse = attention_triton.forward(qkv, tuning.forward, interpret=interpret)
    # A rematerialisation policy that saves "attention" saves all that the kernel would be run again for.
    out, lse = checkpoint_name(out, "attention"), checkpoint_name(lse, "attention")
    return out, (qkv, out, lse)


def _backward(
    tuning: Tuning, interpret: bool, residuals: tuple[Array, Array, Array], d_out: Float[Array, "b t h k"]
) -> tuple[Float[Array, "b t 3 h k"]]:
    return (attention_triton.backward(*residuals, d_out, tuning, interpret=interpret),)


triton_attention.defvjp(_forward, _backward)
