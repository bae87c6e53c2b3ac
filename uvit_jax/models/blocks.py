"""The transformer block of U-ViT: a long skip coming in, attention, MLP, all on the residual
stream.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from uvit_jax.errors import say_once
from uvit_jax.models.attention import Attention
from uvit_jax.models.init import NORMAL_02
from uvit_jax.models.kernels import gelu
from uvit_jax.models.kernels import norm as fused
from uvit_jax.models.kernels.fp8 import SPECIAL
from uvit_jax.models.kernels.products import product
from uvit_jax.models.kernels.weight_gradient import gradient_parts
from uvit_jax.models.layers import linear, spread
from uvit_jax.models.placement import ONE_DEVICE, Layout, hidden, stream
from uvit_jax.models.uvit_config import UViTConfig
from uvit_jax.models.weights import bias_of, scale_of

# The residual stream, a product still to be added to it or nothing, and the product's bias or
# nothing: the norm that comes next adds all of it in its own pass.
Pending = tuple[Float[Array, "b t d"], Float[Array, "b t d"] | None, Float[Array, " d"] | None]


class SkipConcat(nnx.Module):
    """Linear(Concat(x, skip)) without the concatenation: x W_1 + skip W_2 + b, on the kernel `[2,
    d, d]`.

    The two products are left to be added with the bias, unless tensor parallelism has to bring
    their sum together.
    """

    def __init__(
        self,
        embed_dim: int,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
        layout: Layout = ONE_DEVICE,
        fp8: bool = False,
        special: int = SPECIAL,
    ):
        self.dtype, self.layout, self.fp8, self.special = dtype, layout, fp8, special
        self.kernel = nnx.Param(NORMAL_02(rngs.params(), (2, embed_dim, embed_dim), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((embed_dim,), jnp.float32))

    def __call__(self, x: Float[Array, "b t d"], skip: Float[Array, "b t d"]) -> Pending:
        kernel, bias = self.kernel[...], self.bias[...]
        multiply = functools.partial(product, fp8=self.fp8, special=self.special)
        first, second = (multiply(part, half) for part, half in ((x, kernel[0]), (skip, kernel[1])))
        if self.layout.splits_channels:
            return first + second, None, bias
        return first, stream(self.layout, second), bias


class SkipLinear(nnx.Module):
    """The paper's `add_then_linear`, Linear(x + skip), and `linear_then_add`, x + Linear(skip)."""

    def __init__(
        self,
        embed_dim: int,
        *,
        add_first: bool,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
        fp8: bool = False,
        special: int = SPECIAL,
    ):
        self.add_first, self.fp8, self.special = add_first, fp8, special
        self.linear = nnx.Linear(
            embed_dim, embed_dim, dtype=dtype, kernel_init=NORMAL_02, rngs=rngs
        )

    def __call__(self, x: Float[Array, "b t d"], skip: Float[Array, "b t d"]) -> Pending:
        kernel, bias = self.linear.kernel[...], bias_of(self.linear)
        multiply = functools.partial(product, fp8=self.fp8, special=self.special)
        return (
            (multiply(x + skip, kernel), None, bias)
            if self.add_first
            else (x, multiply(skip, kernel), bias)
        )


class SkipAdd(nnx.Module):
    """The paper's `add`: x + skip."""

    def __call__(self, x: Float[Array, "b t d"], skip: Float[Array, "b t d"]) -> Pending:
        return x, skip, None


def make_skip(
    kind: str,
    embed_dim: int,
    *,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
    layout: Layout = ONE_DEVICE,
    fp8: bool = False,
    special: int = SPECIAL,
) -> nnx.Module | None:
    """The module that merges a long skip into the stream, by `UViTConfig.skip`; None for "none"."""
    how: dict[str, Any] = {"dtype": dtype, "rngs": rngs, "fp8": fp8, "special": special}
    match kind:
        case "concat":
            return SkipConcat(embed_dim, layout=layout, **how)
        case "add_then_linear" | "linear_then_add":
            return SkipLinear(embed_dim, add_first=kind == "add_then_linear", **how)
        case "add":
            return SkipAdd()
    return None


class AddNorm(nnx.Module):
    """r = x + (y + bias) and h = LayerNorm(r) (eps 1e-5, statistics in float32), in one pass where
    kernels fit.

    With `adaptive`, h is the AdaLN of the time: (y_s, y_b), a linear projection of the time
    embedding, in place of the learned scale and shift (the paper's ablation of how time enters); it
    starts as the plain LayerNorm, y_s = 1 and y_b = 0 on average.
    """

    def __init__(
        self,
        embed_dim: int,
        *,
        adaptive: bool,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
        kernels: str = "auto",
        layout: Layout = ONE_DEVICE,
    ):
        self.dtype, self.kernels, self.layout = dtype, kernels, layout
        affine = not adaptive
        self.norm = nnx.LayerNorm(embed_dim, use_scale=affine, use_bias=affine, rngs=rngs)
        self.modulation = (
            nnx.Linear(embed_dim, 2 * embed_dim, dtype=dtype, kernel_init=NORMAL_02, rngs=rngs)
            if adaptive
            else None
        )

    def __call__(
        self,
        x: Float[Array, "b t d"],
        y: Float[Array, "b t d"] | None,
        bias: Float[Array, " d"] | None,
        time: Float[Array, "b d"] | None,
    ) -> tuple[Float[Array, "b t d"], Float[Array, "b t d"]]:
        r, h = self._streams((x, y), bias, time, ways=1)
        return r, h

    def fork(
        self,
        x: Float[Array, "b t d"],
        y: Float[Array, "b t d"] | None,
        bias: Float[Array, " d"] | None,
        time: Float[Array, "b d"] | None,
    ) -> tuple[Float[Array, "b t d"], Float[Array, "b t d"], Float[Array, "b t d"]]:
        """(r, r, h) for a stream that goes two ways: their gradients are added in the norm's one
        backward pass.
        """
        r, again, h = self._streams((x, y), bias, time, ways=2)
        return r, again, h

    def _streams(
        self, streams: tuple, bias: Array | None, time: Array | None, *, ways: int
    ) -> list[Array]:
        d = streams[0].shape[-1]
        implementation = resolve_kernels(self.kernels, self.dtype, d, self.layout.platform)
        kernel = functools.partial(_add_norm, ways)
        add_norm = functools.partial(_rows, self.layout, implementation, kernel)
        if self.modulation is None or time is None:
            *r, h = add_norm(streams, (bias, scale_of(self.norm), bias_of(self.norm)))
        else:
            *r, h = add_norm(streams, (bias, jnp.ones(d), jnp.zeros(d)))
            scale, shift = jnp.split(linear(self.modulation, time)[:, None], 2, axis=-1)
            h = h * (1 + spread(scale, h)) + spread(shift, h)
        return [stream(self.layout, x) for x in (*r, h)]


def resolve_kernels(name: str, dtype: DTypeLike, d: int, platform: str) -> fused.Implementation:
    """What "auto" stands for: Triton's kernels on a GPU in bfloat16, XLA's own elsewhere; "triton"
    falls back too.
    """
    found = "xla" if name == "xla" else fused.resolve(dtype, d, platform)
    if name == "triton" and found == "xla":
        say_once(
            "kernels = triton falls back to xla: the kernels take bfloat16 on platform gpu, not "
            f"{jnp.dtype(dtype).name} on {platform}"
        )
    return found


def _rows(
    layout: Layout,
    implementation: fused.Implementation,
    kernel: Callable,
    streams: tuple,
    weights: tuple,
) -> Any:
    """XLA partitions its own operations; a kernel that it can't see inside of is run by each device
    on its rows.
    """
    bound = functools.partial(kernel, implementation)
    return (
        bound(streams, weights) if implementation == "xla" else layout.rows(bound, streams, weights)
    )


def _add_norm(
    ways: int, implementation: fused.Implementation, streams: tuple, weights: tuple
) -> tuple[Array, ...]:
    return fused.add_norm(*streams, *weights, implementation=implementation, ways=ways)


def _residual_add(implementation: fused.Implementation, streams: tuple, weights: tuple) -> Array:
    return fused.residual_add(*streams, *weights, implementation=implementation)


class MLP(nnx.Module):
    """Linear D -> ratio D, exact GELU, Linear back; the last bias is left to who adds the product."""

    def __init__(
        self,
        embed_dim: int,
        hidden_dim: int,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
        kernels: str = "auto",
        layout: Layout = ONE_DEVICE,
        fp8: bool = False,
        special: int = SPECIAL,
    ):
        self.dtype, self.kernels, self.layout, self.fp8, self.special = (
            dtype,
            kernels,
            layout,
            fp8,
            special,
        )
        self.fc1 = nnx.Linear(embed_dim, hidden_dim, dtype=dtype, kernel_init=NORMAL_02, rngs=rngs)
        self.fc2 = nnx.Linear(hidden_dim, embed_dim, dtype=dtype, kernel_init=NORMAL_02, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b t d"]
    ) -> tuple[Float[Array, "b t d"], Float[Array, " d"]]:
        implementation = resolve_kernels(
            self.kernels, self.dtype, x.shape[-1], self.layout.platform
        )
        u = hidden(self.layout, self._product(x, self.fc1))
        kernel = functools.partial(gelu.bias_gelu, implementation=implementation)
        arrays = u, bias_of(self.fc1)
        g = hidden(
            self.layout,
            kernel(*arrays) if implementation == "xla" else self.layout.columns(kernel, *arrays),
        )
        return stream(self.layout, self._product(g, self.fc2)), bias_of(self.fc2)

    def _product(self, x: Float[Array, "b t k"], linear: nnx.Linear) -> Float[Array, "b t n"]:
        kernel, parts = linear.kernel[...], 1
        # Over several devices each partial sum would be brought together by itself.
        if self.layout.alone and x.dtype.itemsize == 2:
            parts = gradient_parts(x.shape[0] * x.shape[1], kernel.shape, self.layout.platform)
        return product(x, kernel, fp8=self.fp8, special=self.special, parts=parts)


class Block(nnx.Module):
    """x = merge(x, skip) where a skip arrives; x += attention(LN(x)); x += MLP(LN(x))."""

    def __init__(
        self,
        config: UViTConfig,
        *,
        takes_skip: bool,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
        layout: Layout = ONE_DEVICE,
    ):
        d = config.embed_dim
        self.dtype, self.kernels, self.layout = dtype, config.kernels, layout
        how: dict[str, Any] = {"dtype": dtype, "rngs": rngs, "layout": layout}
        bits: dict[str, Any] = {"fp8": config.fp8, "special": config.num_extra_tokens}
        norm = functools.partial(
            AddNorm, d, adaptive=config.time == "adaln", kernels=config.kernels, **how
        )
        self.skip = make_skip(config.skip, d, **bits, **how) if takes_skip else None
        self.norm1 = norm()
        self.attn = Attention(
            d,
            config.num_heads,
            qkv_bias=config.qkv_bias,
            implementation=config.attention,
            **bits,
            **how,
        )
        self.norm2 = norm()
        self.mlp = MLP(d, int(d * config.mlp_ratio), kernels=config.kernels, **bits, **how)

    def __call__(
        self,
        x: Float[Array, "b t d"],
        skip: Float[Array, "b t d"] | None,
        time: Float[Array, "b d"] | None,
    ) -> Float[Array, "b t d"]:
        return self.complete(self.after((x, None, None), skip, time))

    def after(
        self, pending: Pending, skip: Float[Array, "b t d"] | None, time: Float[Array, "b d"] | None
    ) -> Pending:
        """What the block leaves to be added up by whatever comes next."""
        return self._after_norm(*self.norm1(*self._merged(pending, skip), time), time)

    def fork(
        self, pending: Pending, time: Float[Array, "b d"] | None
    ) -> tuple[Pending, Float[Array, "b t d"]]:
        """`after` of a block that takes no skip, and the stream it began with, to be the skip of a
        later one.
        """
        x, start, h = self.norm1.fork(*self._merged(pending, None), time)
        return self._after_norm(x, h, time), start

    def complete(self, pending: Pending) -> Float[Array, "b t d"]:
        """The sum of what is pending."""
        x, y, bias = pending
        if y is None and bias is None:
            return stream(self.layout, x)
        implementation = resolve_kernels(
            self.kernels, self.dtype, x.shape[-1], self.layout.platform
        )
        return stream(
            self.layout, _rows(self.layout, implementation, _residual_add, (x, y), (bias,))
        )

    def _merged(self, pending: Pending, skip: Float[Array, "b t d"] | None) -> Pending:
        if self.skip is not None:
            pending = self.skip(self.complete(pending), skip)
        x, y, bias = pending
        return stream(self.layout, x), y, bias

    def _after_norm(
        self, x: Float[Array, "b t d"], h: Float[Array, "b t d"], time: Array | None
    ) -> Pending:
        x, h = self.norm2(x, *self.attn.product(h), time)
        return x, *self.mlp(h)
