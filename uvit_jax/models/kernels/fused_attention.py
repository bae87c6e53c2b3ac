"""The attention layer of `models/attention.py` by the kernel that fits hardware and shape."""

import functools
import math

import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from uvit_jax.models.attention import Attention
from uvit_jax.models.kernels.attention import mosaic_attention, packed_attention, resolve
from uvit_jax.models.kernels.compute import Compute
from uvit_jax.models.layers import bias_of, broadcast_like
from uvit_jax.models.placement import stream

# Implementations whose own backward passes name what they keep.
_NAME_THEIR_OWN = ("triton", "hopper")


def attention(
    compute: Compute, layer: Attention, x: Float[Array, "b t d"]
) -> tuple[Float[Array, "b t d"], Float[Array, " d"]]:
    """The projected product and the bias that `layer(x)` is the sum of."""
    b, t, _ = x.shape
    kernel, placement = layer.proj.kernel[...], compute.placement
    heads, head_dim, d = kernel.shape
    examples, own_heads = placement.of_one_device(b, heads)
    own = examples, t, 3, own_heads, head_dim
    implementation = resolve(compute.attention, own, compute.dtype, placement.platform)
    if implementation == "mosaic":
        attend = functools.partial(mosaic_attention, head_dim=head_dim)
        out = placement.attend_planes(attend, _planes(compute, layer, x))
    else:
        attend = functools.partial(packed_attention, implementation=implementation)
        out = placement.attend(attend, _packed(compute, layer, x))
    if implementation not in _NAME_THEIR_OWN:
        out = checkpoint_name(out, "attention")
    if compute.fp8:
        out, flat = out.reshape(b, t, heads * head_dim), kernel.reshape(-1, d)
        product = compute.product(out, flat)
    elif implementation == "mosaic":
        product = out @ kernel.astype(compute.dtype).reshape(-1, d)
    else:
        product = jnp.einsum("bthk,hkd->btd", out, kernel.astype(compute.dtype))
    return stream(placement, product), bias_of(layer.proj)


def _packed(
    compute: Compute, layer: Attention, x: Float[Array, "b t d"]
) -> Float[Array, "b t 3 h k"]:
    """Queries, keys and values of every head."""
    if not compute.fp8 and layer.qkv.bias is None:
        return layer.qkv(x)
    kernel = layer.qkv.kernel[...]
    if compute.fp8:
        flat = compute.product(x, kernel.reshape(kernel.shape[0], -1))
        packed = flat.reshape(*x.shape[:2], *kernel.shape[1:])
    else:
        packed = jnp.einsum("btd,dshk->btshk", x, kernel.astype(compute.dtype))
    return packed if layer.qkv.bias is None else packed + broadcast_like(bias_of(layer.qkv), packed)


def _planes(
    compute: Compute, layer: Attention, x: Float[Array, "b t d"]
) -> Float[Array, "3 b t c"]:
    """Queries, keys and values with the heads side by side, by a product that writes them so.

    An axis for each head, or one of three within a token, would be padded to tiles on a TPU, and
    copied.
    """
    if compute.fp8:
        packed = _packed(compute, layer, x)
        return jnp.moveaxis(packed.reshape(*packed.shape[:3], math.prod(packed.shape[3:])), 2, 0)
    weight = layer.qkv.kernel[...].astype(compute.dtype)
    planes = jnp.einsum("btd,dsc->sbtc", x, weight.reshape(*weight.shape[:2], -1))
    if layer.qkv.bias is None:
        return planes
    return planes + broadcast_like(bias_of(layer.qkv).reshape(3, 1, 1, -1), planes)
