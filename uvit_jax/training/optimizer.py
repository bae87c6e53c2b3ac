"""AdamW as torch defines it, with the official warm-up."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from uvit_jax.training.optimizer_config import OptimizerConfig


def learning_rate(
    config: OptimizerConfig, step: Int[Array, ""] | int, total_steps: int
) -> Float[Array, ""] | np.floating:
    """The rate of the update after `step` earlier ones: an array for an array, NumPy's for an int.

    With an int nothing runs on the devices, where it would wait for the queued steps.
    """
    xp = np if isinstance(step, int) else jnp
    rate: Array | np.floating = xp.float32(config.lr)
    if config.warmup_steps:
        rate = rate * xp.minimum(step / config.warmup_steps, 1.0)
    if config.decay == "cosine":
        progress = (step - config.warmup_steps) / max(total_steps - config.warmup_steps, 1)
        rate = rate * 0.5 * (1 + xp.cos(math.pi * xp.clip(progress, 0, 1)))
    return rate


def make_optimizer(config: OptimizerConfig, total_steps: int) -> optax.GradientTransformation:
    """AdamW with torch's semantics (arXiv:1711.05101).

    p -= lr (m / (sqrt(v) + eps) + weight_decay p). Its state is AdamW's own whether gradients are
    clipped or not, so that a resumed run may change that.
    """
    adamw = _array_by_array(
        optax.adamw(
            lambda step: learning_rate(config, step, total_steps),
            b1=config.betas[0],
            b2=config.betas[1],
            eps=config.eps,
            weight_decay=config.weight_decay,
        )
    )
    if not config.grad_clip:
        return adamw
    clip = optax.clip_by_global_norm(config.grad_clip)

    def update(
        grads: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        clipped, _ = clip.update(grads, optax.EmptyState())
        updated: tuple[optax.Updates, optax.OptState] = adamw.update(clipped, state, params)
        return updated

    return optax.GradientTransformation(adamw.init, update)


def _array_by_array(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same updates and state of an optimizer of one array at a time, traced once a shape.

    It rules out optimizers that look at several arrays or at their names, as optax's masks do.
    """
    # Two things speak for it. U-ViT-H has 355 arrays of 12 shapes: without it, tracing and lowering
    # a step takes 1.7 s of CPU time in place of 1.3 s, of 10.5 s before XLA. And on a CPU XLA fuses
    # the update otherwise without it, so that a run's weights differ in their last bits.
    update_one = jax.jit(optimizer.update)

    def update(
        grads: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        like_grads: Any = jax.tree.structure(grads)  # jax's stubs have no == of structures

        def is_tree_of_all(node: Any) -> bool:
            return bool(like_grads == jax.tree.structure(node))

        # A state is made of trees like the parameters' (the moments) and of arrays for all of them
        # (the count).
        nodes, around = jax.tree.flatten(state, is_leaf=is_tree_of_all)
        leaves = jax.tree.leaves(grads)
        columns = [
            jax.tree.leaves(node) if is_tree_of_all(node) else [node] * len(leaves)
            for node in nodes
        ]
        states = [jax.tree.unflatten(around, row) for row in zip(*columns, strict=True)]
        updated = [
            update_one(*each) for each in zip(leaves, states, jax.tree.leaves(params), strict=True)
        ]
        rows = [jax.tree.leaves(new_state) for _, new_state in updated]
        new_nodes = [
            jax.tree.unflatten(like_grads, column) if is_tree_of_all(node) else column[0]
            for node, column in zip(nodes, zip(*rows, strict=True), strict=True)
        ]
        return jax.tree.unflatten(like_grads, [leaf for leaf, _ in updated]), jax.tree.unflatten(
            around, new_nodes
        )

    return optax.GradientTransformation(optimizer.init, update)
