"""U-ViT: a plain ViT whose tokens are time, condition and noisy patches, with long skips
(arXiv:2209.12152).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Num

from uvit_jax.errors import UserError
from uvit_jax.models.blocks import AddNorm, Block, Pending
from uvit_jax.models.embeddings import (
    PATCH_EMBEDS,
    TimeMLP,
    conv3x3,
    sincos_2d,
    timestep_embedding,
    unpatchify,
)
from uvit_jax.models.init import NORMAL_02
from uvit_jax.models.layers import convolution, linear, lookup, spread
from uvit_jax.models.placement import ONE_DEVICE, Layout
from uvit_jax.models.uvit_config import UViTConfig

__all__ = ["UViT", "UViTConfig"]

AnyArray = jax.Array | np.ndarray


class UViT(nnx.Module):
    """The network: `model(x, t, label=None, context=None)` predicts noise (or whatever it was
    trained to).

    Its parameters are float32 and are one block's arrays after another's whatever
    `config.scan_blocks` says, so a checkpoint serves both ways of running. `layout` says how they
    and the activations lie over devices.
    """

    def __init__(self, config: UViTConfig, *, rngs: nnx.Rngs, layout: Layout = ONE_DEVICE):
        self.config, self.layout = config, layout
        dtype, d, half = jnp.dtype(config.compute_dtype), config.embed_dim, config.depth // 2
        self.patch_embed = PATCH_EMBEDS[config.patch_embed](
            config.patch_size, config.in_channels, d, dtype=dtype, rngs=rngs
        )
        self.time_mlp = (
            TimeMLP(d, dtype=dtype, kernel_init=NORMAL_02, rngs=rngs) if config.time_mlp else None
        )
        self.label_embed = (
            nnx.Embed(
                config.num_classes,
                d,
                dtype=dtype,
                embedding_init=nnx.initializers.normal(1.0),
                rngs=rngs,
            )
            if config.num_classes
            else None
        )
        self.context_embed = (
            nnx.Linear(config.context_dim, d, dtype=dtype, kernel_init=NORMAL_02, rngs=rngs)
            if config.context_dim
            else None
        )
        self.pos_embed = (
            nnx.Param(NORMAL_02(rngs.params(), (config.num_tokens, d), jnp.float32))
            if config.pos_embed == "learned"
            else None
        )
        block = functools.partial(Block, config, dtype=dtype, rngs=rngs, layout=layout)
        self.in_blocks = nnx.List(block(takes_skip=False) for _ in range(half))
        self.mid_block = block(takes_skip=False)
        self.out_blocks = nnx.List(block(takes_skip=True) for _ in range(half))
        self.norm = AddNorm(
            d,
            adaptive=config.time == "adaln",
            dtype=dtype,
            rngs=rngs,
            kernels=config.kernels,
            layout=layout,
        )
        self.conv_before = (
            conv3x3(d, d, dtype=dtype, rngs=rngs) if config.conv == "before" else None
        )
        self.head = nnx.Linear(
            d,
            config.patch_size**2 * config.in_channels,
            dtype=dtype,
            kernel_init=NORMAL_02,
            rngs=rngs,
        )
        self.conv_after = (
            conv3x3(config.in_channels, config.in_channels, dtype=dtype, rngs=rngs)
            if config.conv == "after"
            else None
        )

    def __call__(
        self,
        x: Float[AnyArray, "b h w c"],
        t: Num[AnyArray, " b"],
        label: Int[AnyArray, " b"] | None = None,
        context: Float[AnyArray, "b l k"] | None = None,
    ) -> Float[Array, "b h w c"]:
        """The network's prediction for noisy images, in float32.

        Args:
          x: noisy images or latents `[b, h, w, c]`.
          t: the network's own time, 0..1000 (a schedule's `model_time`), `[b]`.
          label: ids `[b]` in 0..num_classes-1; given exactly when the model has labels.
          context: text states `[b, context_length, context_dim]`; given exactly when the model has
            text.

        Raises:
          UserError: for a shape that is not the config's, a condition missing or too many, a label
            outside the table (checked where the label's value is known, that is outside `jit`).
        """
        config = self.config
        self._check_inputs(x, t, label, context)
        dtype = jnp.dtype(config.compute_dtype)
        time = timestep_embedding(jnp.asarray(t), config.embed_dim).astype(dtype)
        if self.time_mlp is not None:
            time = self.time_mlp(time)

        tokens = []
        if self.label_embed is not None:
            tokens.append(lookup(self.label_embed, jnp.asarray(label), dtype)[:, None])
        if config.time == "token":
            tokens.append(time[:, None])
        if self.context_embed is not None:
            tokens.append(linear(self.context_embed, jnp.asarray(context)))
        tokens.append(self.patch_embed(jnp.asarray(x)))
        h = jnp.concatenate(tokens, axis=1)
        h = self.layout.tokens(h + spread(self._positions(), h))

        adaln_time = time if config.time == "adaln" else None
        pending = self._run_blocks(h, adaln_time)

        h = self.norm(*pending, adaln_time)[1][:, config.num_extra_tokens :]
        if self.conv_before is not None:
            grid = h.reshape(h.shape[0], *config.grid, config.embed_dim)
            h = convolution(self.conv_before, grid).reshape(h.shape)
        image = unpatchify(linear(self.head, h), config.grid, config.patch_size)
        if self.conv_after is not None:
            image = convolution(self.conv_after, image)
        return image.astype(jnp.float32)

    def _positions(self) -> Float[Array, "t d"]:
        """The position embedding of all tokens."""
        if self.pos_embed is not None:
            return self.pos_embed[...]
        patches = sincos_2d(self.config.grid, self.config.embed_dim)
        return jnp.pad(patches, ((self.config.num_extra_tokens, 0), (0, 0)))

    def _run_blocks(self, h: Float[Array, "b t d"], time: Float[Array, "b d"] | None) -> Pending:
        """In, middle and out blocks; block i's output goes to block depth + 1 - i (counted from 1)."""
        config, in_blocks, out_blocks = self.config, list(self.in_blocks), list(self.out_blocks)
        if config.remat == "none" and not config.scan_blocks and not self.layout.gathers:
            return _chained(
                [*in_blocks, self.mid_block], out_blocks, h, time, with_skips=config.skip != "none"
            )
        run: Callable = _scanned if config.scan_blocks else _unrolled
        how = (config.remat, config.compute_dtype, self.layout)
        h, skips = run(in_blocks, h, None, time, *how)
        if config.skip == "none":
            skips = None
        h, _ = _unrolled([self.mid_block], h, None, time, *how)
        h, _ = run(out_blocks, h, skips, time, *how)
        return h, None, None

    def _check_inputs(
        self, x: AnyArray, t: AnyArray, label: AnyArray | None, context: AnyArray | None
    ) -> None:
        config = self.config
        if tuple(x.shape[1:]) != config.sample_shape:
            raise UserError(
                f"x has shape {tuple(x.shape)}, expected (batch, "
                f"{', '.join(map(str, config.sample_shape))})"
            )
        rows = x.shape[0]
        if np.shape(t) != (rows,):
            raise UserError(
                f"t has shape {np.shape(t)}, expected ({rows},), a time for each row of x"
            )
        for name, value, wanted in (
            ("label", label, bool(config.num_classes)),
            ("context", context, bool(config.context_dim)),
        ):
            if (value is not None) != wanted:
                raise UserError(
                    f"{name} was {'missing' if wanted else 'given'}, but {_condition_of(config)}"
                )
        if context is not None and np.shape(context) != (
            rows,
            config.context_length,
            config.context_dim,
        ):
            raise UserError(
                f"context has shape {np.shape(context)}, "
                f"expected ({rows}, {config.context_length}, {config.context_dim})"
            )
        if label is not None and np.shape(label) != (rows,):
            raise UserError(
                f"label has shape {np.shape(label)}, expected ({rows},), an id for each row of x"
            )
        if label is not None and not jnp.issubdtype(jnp.asarray(label).dtype, jnp.integer):
            raise UserError(f"label is of {jnp.asarray(label).dtype}, expected integers")
        if label is not None and not isinstance(label, jax.core.Tracer):
            check_labels(label, config.num_classes)


def _condition_of(config: UViTConfig) -> str:
    if config.num_classes:
        return (
            f"this model is conditioned on a label (num_classes = {config.num_classes}) and "
            f"nothing else"
        )
    if config.context_dim:
        return (
            f"this model is conditioned on a text context (context_dim = {config.context_dim}) "
            f"and nothing else"
        )
    return "this model is unconditional (num_classes = 0, context_dim = 0)"


def check_labels(labels: AnyArray, num_classes: int) -> None:
    """Raises a UserError that names the first label outside 0..num_classes-1."""
    values = np.asarray(labels)
    outside = values[(values < 0) | (values >= num_classes)]
    if outside.size:
        raise UserError(
            f"label {outside.flat[0]} is outside the table, expected 0 to {num_classes - 1}"
        )


def _chained(
    down: list[Block],
    up: list[Block],
    h: Float[Array, "b t d"],
    time: Array | None,
    *,
    with_skips: bool,
) -> Pending:
    """Blocks one after another where nothing is recomputed: each norm adds up what the block before
    it left.

    The blocks of `down` after the first fork the stream they begin with; the last fork goes to the
    first of `up`.
    """
    pending: Pending = h, None, None
    skips: list[Array] = []
    for i, block in enumerate(down):
        if i and with_skips:
            pending, start = _traced_once(block, "fork")(pending, time)
            skips.append(start)
        else:
            pending = _traced_once(block, "after")(pending, None, time)
    for block in up:
        pending = _traced_once(block, "after")(pending, skips.pop() if skips else None, time)
    return pending


def _traced_once(block: Block, method: str, **how: Any) -> Callable:
    """A block's method, the same function of parameters for all blocks of a structure, which JAX
    therefore traces, differentiates and lowers once, not once a layer (for how, see `_shared`).
    """
    graphdef, state = nnx.split(block)
    return functools.partial(_shared(graphdef, method, **how), nnx.to_pure_dict(state))


@functools.cache
def _shared(
    graphdef: nnx.GraphDef,
    method: str,
    *,
    remat: str = "none",
    dtype: str = "float32",
    layout: Layout = ONE_DEVICE,
) -> Callable:
    apply = _apply(graphdef, dtype, layout, method)
    return jax.jit(_remat(apply, remat, scanned=False, gathers=layout.gathers))


def _remat(fn: Callable, policy: str, *, scanned: bool, gathers: bool) -> Callable:
    """Makes the backward pass of one block recompute what `policy` does not save
    (UViTConfig.remat).

    Weights that were brought together from other devices are never saved, but brought together
    again.
    """
    if policy == "none" and not gathers:
        return fn
    policies = jax.checkpoint_policies
    saved = {
        "none": _all_but_gathered,
        "full": policies.nothing_saveable,
        "matmuls": policies.save_from_both_policies(
            policies.dots_with_no_batch_dims_saveable,
            policies.save_only_these_names("attention", "residual"),
        ),
    }
    # Inside a scan XLA can't merge the recomputation with the forward pass, so the guard against
    # that may go.
    return jax.checkpoint(fn, policy=saved[policy], prevent_cse=not scanned)


def _all_but_gathered(primitive: Any, *_: Any, **__: Any) -> bool:
    # A gathered weight is what a linear call gives, or a slice of that. Other slices cost nothing
    # to repeat.
    return primitive.name not in ("linear_call", "sharding_constraint", "slice", "squeeze")


def _apply(
    graphdef: nnx.GraphDef, dtype: str, layout: Layout, method: str = "__call__"
) -> Callable:
    def apply(params: Any, *inputs: Any) -> Any:
        return getattr(nnx.merge(graphdef, layout.weights(params, dtype)), method)(*inputs)

    return apply


def _unrolled(
    blocks: list[Block],
    h: Array,
    skips: list[Array] | None,
    time: Array | None,
    remat: str,
    dtype: str,
    layout: Layout,
) -> tuple[Array, list[Array]]:
    """Runs blocks one after another; returns the last output and every output. The last of `skips`
    is used first.
    """
    outputs: list[Array] = []
    for i, block in enumerate(blocks):
        apply = _traced_once(block, "__call__", remat=remat, dtype=dtype, layout=layout)
        h = apply(h, None if skips is None else skips[-1 - i], time)
        outputs.append(h)
    return h, outputs


def _scanned(
    blocks: list[Block],
    h: Array,
    skips: Array | None,
    time: Array | None,
    remat: str,
    dtype: str,
    layout: Layout,
) -> tuple[Array, Array | None]:
    """What `_unrolled` does, as one `lax.scan` over the blocks' stacked parameters; skips and
    outputs are stacked.
    """
    if not blocks:
        return h, None
    # Blocks that take a skip run backwards over the stack of skips, so their parameters are stacked
    # last block first.
    order = blocks if skips is None else blocks[::-1]
    graphdef = nnx.split(blocks[0])[0]
    layers = [nnx.to_pure_dict(nnx.split(block)[1]) for block in order]
    stacked = layout.stacked(jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers))
    apply = _remat(_apply(graphdef, dtype, layout), remat, scanned=True, gathers=layout.gathers)

    def body(h, layer):
        params, skip = layer
        h = apply(params, h, skip, time)
        return h, h if skips is None else None

    return jax.lax.scan(body, h, (stacked, skips), reverse=skips is not None)
