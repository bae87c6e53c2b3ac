"""Self-attention that reads q, k and v from one array, by the kernel that fits."""

import functools
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import InconclusiveDimensionOperation
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from uvit_jax.errors import say_once
from uvit_jax.models.kernels import (
    attention_hopper,
    attention_hopper_backward,
    attention_mosaic,
    attention_triton,
    backends,
    hopper_tiling,
)
from uvit_jax.models.kernels.attention_triton import Tuning

# The batch is a symbol in a program that is exported for any batch.
Shape = tuple[Any, ...]
Implementation = Literal["triton", "hopper", "mosaic", "cudnn", "xla"]
# Nothing was measured beyond these. A long loop wants other tilings, and copies around cuDNN's
# kernel cost little there.
MAX_TOKENS, MAX_HEAD_DIM = 1024, 128
_HALVES = ("bfloat16", "float16")
# More channels of a head were never tried on a GPU.
MAX_HEAD_DIM_HOPPER = 80
# A row's logits are held in registers; tokens behind the last whole block share one with as many
# more.
MAX_TOKENS_HOPPER, MAX_REST_HOPPER = (
    4 * hopper_tiling.ROWS + hopper_tiling.ROWS // 2,
    hopper_tiling.ROWS // 2,
)
# TPU's kernel holds an example on the chip: a v4 has 16 MiB. Its code grows with heads and the
# square of the tokens.
MAX_TOKENS_MOSAIC, MAX_VMEM_MOSAIC = 512, 16 * 2**20


def why_not_triton(shape: Shape, dtype: DTypeLike, platform: str) -> str | None:
    """Reason why the Triton kernel can't take qkv of shape `[b, t, 3, h, k]`; None if it can."""
    if backends.triton is None:
        return "this version of jax has no Triton backend of Pallas"
    return _misfit("Triton", shape, dtype, platform, wanted="gpu", halves=_HALVES, most=MAX_TOKENS)


def why_not_hopper(shape: Shape, dtype: DTypeLike, platform: str) -> str | None:
    """Reason why Hopper's kernel can't take qkv of shape `[b, t, 3, h, k]`; None if it can."""
    if backends.mosaic_gpu is None:
        return (
            "this version of jax has no Mosaic backend for GPUs that the Hopper kernel is "
            "written for"
        )
    if platform == "gpu" and not backends.on_hopper():
        return "the Hopper kernel runs on GPUs of compute capability 9"
    _, tokens, _, _, head_dim = shape
    if head_dim > MAX_HEAD_DIM_HOPPER:
        return f"the Hopper kernel takes a head_dim up to {MAX_HEAD_DIM_HOPPER}, not {head_dim}"
    if tokens % hopper_tiling.ROWS > MAX_REST_HOPPER:
        return (
            f"the Hopper kernel takes whole blocks of {hopper_tiling.ROWS} tokens and up to "
            f"{MAX_REST_HOPPER} more, not {tokens}"
        )
    return _misfit(
        "Hopper", shape, dtype, platform, wanted="gpu", halves=_HALVES, most=MAX_TOKENS_HOPPER
    )


def why_not_mosaic(shape: Shape, dtype: DTypeLike, platform: str) -> str | None:
    """Reason why TPU's kernel can't take q, k, v of shape `[b, t, 3, h, k]`; None if it can."""
    halves = ("bfloat16",)
    if reason := _misfit(
        "Mosaic", shape, dtype, platform, wanted="tpu", halves=halves, most=MAX_TOKENS_MOSAIC
    ):
        return reason
    _, tokens, _, heads, head_dim = shape
    needed = attention_mosaic.vmem_bytes(tokens, heads, head_dim, 2)
    if needed > MAX_VMEM_MOSAIC:
        return (
            f"the Mosaic kernel takes up to {MAX_VMEM_MOSAIC / 2**20:.0f} MiB of on-chip memory, "
            f"not the {needed / 2**20:.1f} MiB of {tokens} tokens with {heads} heads of {head_dim}"
        )
    return None


def _misfit(
    kernel: str,
    shape: Shape,
    dtype: DTypeLike,
    platform: str,
    *,
    wanted: str,
    halves: tuple[str, ...],
    most: int,
) -> str | None:
    """Reason why a kernel can't take platform, dtype, head_dim or tokens; None if it can."""
    _, tokens, _, _, head_dim = shape
    if platform != wanted:
        return f"the {kernel} kernel runs on platform {wanted}, not {platform}"
    if jnp.dtype(dtype).name not in halves:
        return f"the {kernel} kernel takes {' and '.join(halves)}, not {jnp.dtype(dtype).name}"
    if head_dim % 8 or head_dim > MAX_HEAD_DIM:
        return (
            f"the {kernel} kernel takes a head_dim that is a multiple of 8 up to "
            f"{MAX_HEAD_DIM}, not {head_dim}"
        )
    if tokens > most:
        return f"the {kernel} kernel takes up to {most} tokens, not {tokens}"
    return None


def why_not_cudnn(shape: Shape, dtype: DTypeLike, platform: str) -> str | None:
    """Reason why cuDNN can't take q, k and v of shape `[b, t, 3, h, k]`; None if it can."""
    if platform != "gpu" or jnp.dtype(dtype).name not in _HALVES:
        return (
            f"cuDNN's kernel takes bfloat16 and float16 on platform gpu, not "
            f"{jnp.dtype(dtype).name} on {platform}"
        )
    head_dim = shape[-1]
    if head_dim % 8 or head_dim > MAX_HEAD_DIM:  # of every GPU; Hopper's takes 256
        return (
            f"cuDNN's kernel takes a head_dim that is a multiple of 8 up to {MAX_HEAD_DIM}, "
            f"not {head_dim}"
        )
    return None


def resolve(name: str, shape: Shape, dtype: DTypeLike, platform: str) -> Implementation:
    """Kernel for a name, where a device has q, k and v of this shape `[b, t, 3, h, k]`.

    "auto" is the first that fits of Hopper's (for a batch that fills a GPU) and Triton's on a GPU,
    Mosaic's on a TPU, cuDNN's on a GPU in half precision (the only one it has) and XLA's. The name
    of one that doesn't fit means "auto", which is logged once.
    """
    if name == "xla":
        return "xla"
    batch, _, _, heads, _ = shape
    found: dict[Implementation, str | None] = {
        "hopper": why_not_hopper(shape, dtype, platform),
        "triton": why_not_triton(shape, dtype, platform),
        "mosaic": why_not_mosaic(shape, dtype, platform),
        "cudnn": why_not_cudnn(shape, dtype, platform),
    }
    fitting = (
        kernel
        for kernel, reason in found.items()
        if reason is None and (kernel != "hopper" or _fills(batch * heads))
    )
    best: Implementation = next(fitting, "xla")
    if name == "auto":
        return best
    reason = found[cast(Implementation, name)]
    if reason is None:
        return cast(Implementation, name)
    say_once(f"attention = {name} falls back to {best}: {reason}")
    return best


def _fills(heads: Any) -> bool:
    """True if Hopper's programs, which take whole heads, keep a GPU busy with so many heads in all.

    With fewer of them than programs Triton's, a block each, should end earlier. A number that is
    not known yet, of a program exported for any batch (`jax.export.symbolic_shape`), counts as few:
    Triton's take all of them well.
    """
    wanted = hopper_tiling.TUNING.forward.programs * backends.multiprocessors()
    try:
        return bool(heads >= wanted)
    except InconclusiveDimensionOperation:
        return False


def packed_attention(
    qkv: Float[Array, "b t 3 h k"], *, implementation: Literal["triton", "hopper", "cudnn", "xla"]
) -> Float[Array, "b t h k"]:
    """softmax(q k^T / sqrt(k)) v of every head, softmax in float32, for any number of tokens.

    "triton" and "hopper" read qkv and write its gradient `[b, t, 3, h, k]` in place; "cudnn" and
    "xla" take slices. The name must come from `resolve`; "mosaic" reads other arrays,
    `mosaic_attention`'s.
    """
    if implementation == "triton":
        return triton_attention(qkv, Tuning(), False)
    if implementation == "hopper":
        return hopper_attention(qkv, hopper_tiling.TUNING, False)
    query, key, value = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
    if implementation == "xla" or qkv.shape[1] % 2 == 0:
        return jax.nn.dot_product_attention(query, key, value, implementation=implementation)
    # cuDNN's backward pass takes an even number of tokens: one more is added, which nothing attends
    # to.
    b, tokens = qkv.shape[:2]
    query, key, value = (jnp.pad(a, ((0, 0), (0, 1), (0, 0), (0, 0))) for a in (query, key, value))
    lengths = jnp.full((b,), tokens, jnp.int32)
    out = jax.nn.dot_product_attention(
        query,
        key,
        value,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation="cudnn",
    )
    return out[:, :tokens]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def triton_attention(
    qkv: Float[Array, "b t 3 h k"], tuning: Tuning, interpret: bool
) -> Float[Array, "b t h k"]:
    """`packed_attention` by Triton's kernels; `interpret` runs them anywhere, slowly."""
    return attention_triton.forward(qkv, tuning.forward, interpret=interpret)[0]


def _forward(
    qkv: Float[Array, "b t 3 h k"], tuning: Tuning, interpret: bool
) -> tuple[Float[Array, "b t h k"], tuple[Array, Array, Array]]:
    out, lse = attention_triton.forward(qkv, tuning.forward, interpret=interpret)
    # A rematerialisation policy that saves "attention" saves all that the kernel would be run again
    # for.
    out, lse = checkpoint_name(out, "attention"), checkpoint_name(lse, "attention")
    return out, (qkv, out, lse)


def _backward(
    tuning: Tuning,
    interpret: bool,
    residuals: tuple[Array, Array, Array],
    d_out: Float[Array, "b t h k"],
) -> tuple[Float[Array, "b t 3 h k"]]:
    return (attention_triton.backward(*residuals, d_out, tuning, interpret=interpret),)


triton_attention.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def hopper_attention(
    qkv: Float[Array, "b t 3 h k"], tuning: hopper_tiling.Tuning, interpret: bool
) -> Float[Array, "b t h k"]:
    """`packed_attention` by Hopper's kernels with a tuning.

    `interpret` is for calls under Pallas's interpreter of GPUs' kernels.
    """
    return attention_hopper.forward(qkv, tuning.forward, interpret=interpret)[0]


def _hopper_forward(
    qkv: Float[Array, "b t 3 h k"], tuning: hopper_tiling.Tuning, interpret: bool
) -> tuple[Float[Array, "b t h k"], tuple[Array, Array, Array]]:
    out, lse = attention_hopper.forward(qkv, tuning.forward, interpret=interpret)
    out, lse = checkpoint_name(out, "attention"), checkpoint_name(lse, "attention")
    return out, (qkv, out, lse)


def _hopper_backward(
    tuning: hopper_tiling.Tuning,
    interpret: bool,
    residuals: tuple[Array, Array, Array],
    d_out: Float[Array, "b t h k"],
) -> tuple[Float[Array, "b t 3 h k"]]:
    return (
        attention_hopper_backward.backward(*residuals, d_out, tuning.backward, interpret=interpret),
    )


hopper_attention.defvjp(_hopper_forward, _hopper_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def mosaic_attention(
    planes: Float[Array, "3 b t c"], head_dim: int, interpret: bool = False
) -> Float[Array, "b t c"]:
    """softmax(q k^T / sqrt(head_dim)) v by TPU's kernels, softmax in float32, any number of tokens.

    The planes are queries, keys and values, c / head_dim heads side by side in each; `interpret`
    runs the kernels on any device. The backward pass reads the planes alone: a rematerialisation
    policy that keeps them and the result runs no kernel again.
    """
    return attention_mosaic.forward(planes, head_dim, interpret=interpret)


def _mosaic_forward(
    planes: Float[Array, "3 b t c"], head_dim: int, interpret: bool
) -> tuple[Array, Array]:
    return attention_mosaic.forward(planes, head_dim, interpret=interpret), planes


def _mosaic_backward(
    head_dim: int, interpret: bool, planes: Float[Array, "3 b t c"], d_out: Float[Array, "b t c"]
) -> tuple[Float[Array, "3 b t c"]]:
    return (attention_mosaic.backward(planes, d_out, head_dim, interpret=interpret),)


mosaic_attention.defvjp(_mosaic_forward, _mosaic_backward)
