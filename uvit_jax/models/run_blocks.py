"""Ways to run the blocks: one after the other, rematerialised, or as a scan over stacked layers.

All give the numbers of the loop in `UViT.plain`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from uvit_jax.models.blocks import Block
from uvit_jax.models.kernels import fused
from uvit_jax.models.kernels.compute import Compute
from uvit_jax.models.kernels.fused import Unsummed
from uvit_jax.models.uvit_config import UViTConfig


def run_blocks(
    config: UViTConfig,
    compute: Compute,
    blocks: tuple[Sequence[Block], Block, Sequence[Block]],
    h: Float[Array, "b t d"],
    time: Float[Array, "b d"] | None,
) -> Unsummed:
    """The stream after the in, middle and out blocks, its last sum left to the final norm."""
    in_blocks, mid_block, out_blocks = blocks
    with_skips = config.skip != "none"
    if config.remat == "none" and not config.scan_blocks and not compute.placement.gathers:
        return _chained(compute, [*in_blocks, mid_block], out_blocks, h, time, with_skips)
    run: Callable = _scanned if config.scan_blocks else _unrolled
    h, outputs = run(compute, config.remat, in_blocks, h, None, time)
    h, _ = _unrolled(compute, config.remat, [mid_block], h, None, time)
    h, _ = run(compute, config.remat, out_blocks, h, outputs if with_skips else None, time)
    return Unsummed(h)


def _chained(
    compute: Compute,
    down: Sequence[Block],
    up: Sequence[Block],
    h: Float[Array, "b t d"],
    time: Array | None,
    with_skips: bool,
) -> Unsummed:
    """Runs blocks where nothing is recomputed: each norm takes the last sum of the block before.

    The blocks of `down` after the first fork the stream they begin with; the last fork goes to the
    first of `up`.
    """
    x, skips = Unsummed(h), []
    for i, block in enumerate(down):
        if i and with_skips:
            x, start = _traced_once(compute, fused.forking_block, block)(x, time)
            skips.append(start)
        else:
            x = _traced_once(compute, fused.unsummed_block, block)(x, None, time)
    for block in up:
        skip = skips.pop() if skips else None
        x = _traced_once(compute, fused.unsummed_block, block)(x, skip, time)
    return x


def _unrolled(
    compute: Compute,
    remat: str,
    blocks: Sequence[Block],
    h: Array,
    skips: list[Array] | None,
    time: Array | None,
) -> tuple[Array, list[Array]]:
    """The last output and every output; the last of `skips` is used first."""
    outputs: list[Array] = []
    for i, block in enumerate(blocks):
        skip = None if skips is None else skips[-1 - i]
        h = _traced_once(compute, fused.block, block, remat)(h, skip, time)
        outputs.append(h)
    return h, outputs


def _scanned(
    compute: Compute,
    remat: str,
    blocks: Sequence[Block],
    h: Array,
    skips: Array | None,
    time: Array | None,
) -> tuple[Array, Array | None]:
    """`_unrolled` as one `lax.scan` over stacked parameters; skips and outputs are stacked, too."""
    if not blocks:
        return h, None
    # Blocks that take a skip run backwards over the stack of skips, so their parameters are stacked
    # last block first.
    order = blocks if skips is None else blocks[::-1]
    graphdef = nnx.split(blocks[0])[0]
    layers = [nnx.to_pure_dict(nnx.split(block)[1]) for block in order]
    stacked = compute.placement.stacked(jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers))
    apply = _rematerialised(_apply(compute, fused.block, graphdef), compute, remat, scanned=True)

    def body(h, layer):
        params, skip = layer
        h = apply(params, h, skip, time)
        return h, h if skips is None else None

    return jax.lax.scan(body, h, (stacked, skips), reverse=skips is not None)


def _traced_once(compute: Compute, run: Callable, block: Block, remat: str = "none") -> Callable:
    """`run(compute, block, ...)` as the same function of parameters for all blocks of a structure.

    JAX therefore traces, differentiates and lowers it once, not once a layer.
    """
    graphdef, state = nnx.split(block)
    return functools.partial(_shared(compute, run, graphdef, remat), nnx.to_pure_dict(state))


@functools.cache
def _shared(compute: Compute, run: Callable, graphdef: nnx.GraphDef, remat: str) -> Callable:
    apply = _apply(compute, run, graphdef)
    return jax.jit(_rematerialised(apply, compute, remat, scanned=False))


def _apply(compute: Compute, run: Callable, graphdef: nnx.GraphDef) -> Callable:
    def apply(params: Any, *inputs: Any) -> Any:
        params = compute.placement.weights(params, compute.dtype)
        return run(compute, nnx.merge(graphdef, params), *inputs)

    return apply


def _rematerialised(fn: Callable, compute: Compute, remat: str, *, scanned: bool) -> Callable:
    """One block whose backward pass recomputes what `remat` does not save (UViTConfig.remat).

    Weights that were all-gathered are never saved, but all-gathered again.
    """
    if remat == "none" and not compute.placement.gathers:
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
    return jax.checkpoint(fn, policy=saved[remat], prevent_cse=not scanned)


def _all_but_gathered(primitive: Any, *_: Any, **__: Any) -> bool:
    # A gathered weight is what a linear call gives, or a slice of that; other slices cost nothing
    # to repeat. Names of primitives are private to jax: `save_anything_except_these_names` would
    # keep the gathered array under the primitive that made it, before it has its name.
    return primitive.name not in ("linear_call", "sharding_constraint", "slice", "squeeze")
