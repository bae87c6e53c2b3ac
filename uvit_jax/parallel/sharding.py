"""The rules that give every parameter, optimizer moment and EMA weight its place on the mesh."""

import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# (pattern of a parameter's path, what splits each of its dimensions); the first that matches holds.
# Optimizer moments and EMA have their parameter's path at the end of their own. Tensor parallelism
# splits heads and the MLP's hidden channels, so a block needs two reductions: after the attention's
# projection and after fc2. Vectors stay whole.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"attn/qkv/kernel$", ("fsdp", None, "tensor", None)),  # [d, 3, heads, head_dim]
    (r"attn/qkv/bias$", (None, "tensor", None)),  # [3, heads, head_dim]
    (r"attn/proj/kernel$", ("tensor", None, "fsdp")),  # [heads, head_dim, d]
    (r"mlp/fc1/kernel$", ("fsdp", "tensor")),  # [d, hidden]
    (r"mlp/fc1/bias$", ("tensor",)),
    (r"mlp/fc2/kernel$", ("tensor", "fsdp")),  # [hidden, d]
    (r"skip/kernel$", (None, "fsdp", "tensor")),  # [2, d, d]
    (r"(label_embed/embedding|pos_embed)$", (None, "fsdp")),  # [rows, d]
    (r"head/kernel$", ("fsdp", None)),  # [d, patch]
    (r"(conv_before|conv_after|stages/\d+)/kernel$", (None, None, None, "fsdp")),  # [3, 3, c, c]
    (r"(proj|modulation|context_embed|linear|fc1|fc2)/kernel$", (None, "fsdp")),  # [in, d]
)


def path_name(path: tuple) -> str:
    """A pytree path as "in_blocks/0/attn/qkv/kernel"."""
    return "/".join(
        str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path
    )


def partition_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """The PartitionSpec of one array; a dimension its axis doesn't divide (the 3 channels of an
    image) stays whole.
    """
    for pattern, axes in RULES:
        if re.search(pattern, path) and len(axes) == len(shape):
            return PartitionSpec(
                *(
                    axis if axis and n % mesh.shape[axis] == 0 else None
                    for axis, n in zip(axes, shape, strict=True)
                )
            )
    return PartitionSpec()


def tree_shardings(tree: Any, mesh: Mesh) -> Any:
    """The NamedSharding of every array (or ShapeDtypeStruct) of a tree, by its path."""

    def sharding(path, leaf):
        return NamedSharding(mesh, partition_spec(path_name(path), leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(sharding, tree)
