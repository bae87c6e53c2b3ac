"""Shardings of a tree of arrays over a mesh, by rules on the arrays' paths."""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from uvit_jax.errors import counted, say_once

# (pattern of an array's path, mesh axis or None for each of its dimensions). A pattern ends with $:
# optimizer moments and EMA have their parameter's path at the end of their own.
Rules = Sequence[tuple[str, tuple[str | None, ...]]]
# Elements from which an array of two or more dimensions that no rule names is worth a warning:
# 256 KiB in float32.
LARGE = 2**16


def path_name(path: tuple) -> str:
    """A pytree path as "in_blocks/0/attn/qkv/kernel"."""
    return "/".join(
        str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path
    )


def partition_spec(
    path: str, shape: tuple[int, ...], mesh: Mesh, rules: Rules
) -> PartitionSpec | None:
    """PartitionSpec by the first rule that matches path and number of dimensions; None without one.

    A dimension that its axis does not divide (the 3 channels of an image) stays whole.
    """
    for pattern, axes in rules:
        if re.search(pattern, path) and len(axes) == len(shape):
            return PartitionSpec(
                *(
                    axis if axis and n % mesh.shape[axis] == 0 else None
                    for axis, n in zip(axes, shape, strict=True)
                )
            )
    return None


def tree_shardings(tree: Any, mesh: Mesh, rules: Rules) -> Any:
    """NamedSharding of every array (or ShapeDtypeStruct) of a tree, by its path.

    An array that no rule names stays whole on every device. If it is large and the rules could
    split it over this mesh, that is logged once.
    """
    unnamed: list[str] = []

    def sharding(path: tuple, leaf: Any) -> NamedSharding:
        spec = partition_spec(path_name(path), leaf.shape, mesh, rules)
        if spec is None and len(leaf.shape) > 1 and math.prod(leaf.shape) >= LARGE:
            unnamed.append(f"{path_name(path)} {tuple(leaf.shape)}")
        return NamedSharding(mesh, PartitionSpec() if spec is None else spec)

    shardings = jax.tree_util.tree_map_with_path(sharding, tree)
    axes = {axis for _, axes in rules for axis in axes if axis}
    if unnamed and any(mesh.shape[axis] > 1 for axis in axes):
        say_once(
            f"{counted(len(unnamed), 'large array')} matched by no sharding rule, whole on every "
            f"device: {unnamed[0]}{', ...' if len(unnamed) > 1 else ''}"
        )
    return shardings
