"""Placement of a network over a mesh: constraints that keep the partitioner to the rules."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from uvit_jax.parallel.mesh import BATCH_AXES, batch_parts
from uvit_jax.parallel.sharding import Rules, partition_spec, path_name

_EXAMPLES = PartitionSpec(BATCH_AXES)
_HIDDEN = PartitionSpec(BATCH_AXES, None, "tensor")


@dataclasses.dataclass(frozen=True)
class MeshPlacement:
    """Placement of a network's arrays on a mesh (`models.placement.Placement`).

    Examples are split over data and fsdp, heads and hidden channels over tensor, and nothing else.
    Left alone, the partitioner may as well split the channels of every token over fsdp, because
    parameters are, and move activations instead of parameters.

    Parameters that are split over fsdp are all-gathered (ZeRO-3, arXiv:1910.02054) block by block,
    in the dtype they are computed with; their gradients are reduce-scattered.

    Attributes:
      mesh: axes data, fsdp and tensor.
      rules: how parameters are split, a tuple.
    """

    mesh: Mesh
    rules: Rules

    @property
    def platform(self) -> str:
        """Platform of the devices: "cpu", "gpu" or "tpu"."""
        return self.mesh.devices.flat[0].platform

    @property
    def single_device(self) -> bool:
        """True if the mesh is of one device."""
        return self.mesh.devices.size == 1

    @property
    def gathers(self) -> bool:
        """True if parameters are split over fsdp."""
        return self.mesh.shape["fsdp"] > 1

    @property
    def splits_channels(self) -> bool:
        """True if hidden channels are split over tensor."""
        return self.mesh.shape["tensor"] > 1

    def stacked(self, params: Any) -> Any:
        """Splits the stacked parameters of equal layers, `[layers, ...]` each, as one layer's."""

        def constrain(path: tuple, leaf: Array) -> Array:
            spec = self._spec(path, leaf.shape[1:])
            return self._constrain(leaf, PartitionSpec(None, *spec))

        return jax.tree_util.tree_map_with_path(constrain, params)

    def weights(self, params: Any, dtype: str) -> Any:
        """All-gathers parameters that fsdp splits, in `dtype`; others are returned as they are."""

        def gather(path: tuple, leaf: Array) -> Array:
            spec = self._spec(path, leaf.shape)
            if "fsdp" not in spec:
                return leaf
            whole = PartitionSpec(*(None if axis == "fsdp" else axis for axis in spec))
            if path_name(path).endswith("embedding"):
                # A lookup table: a scatter into parts of it would first reshuffle the rows. It
                # stays in float32, in which the many gradients of a frequent row are summed.
                return self._constrain(leaf, whole)
            return _gather(
                leaf, dtype, NamedSharding(self.mesh, spec), NamedSharding(self.mesh, whole)
            )

        return jax.tree_util.tree_map_with_path(gather, params) if self.gathers else params

    def _spec(self, path: tuple, shape: tuple[int, ...]) -> PartitionSpec:
        return partition_spec(path_name(path), shape, self.mesh, self.rules) or PartitionSpec()

    def tokens(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """Splits examples; tokens and channels stay whole."""
        return self._constrain(x, _EXAMPLES)

    def hidden(self, x: Float[Array, "b t f"]) -> Float[Array, "b t f"]:
        """Splits examples and channels."""
        return self._constrain(x, _HIDDEN)

    def of_one_device(self, examples: Any, heads: int) -> tuple[Any, int]:
        """Largest numbers of examples and heads that `attend` gives to one device."""
        return -(-examples // batch_parts(self.mesh)), -(-heads // self.mesh.shape["tensor"])

    def attend(
        self, kernel: Callable[[Array], Array], qkv: Float[Array, "b t 3 h k"]
    ) -> Float[Array, "b t h k"]:
        """Runs a kernel, opaque to the partitioner, on each device's own examples and heads."""
        packed, heads = (
            PartitionSpec(BATCH_AXES, None, None, "tensor"),
            PartitionSpec(BATCH_AXES, None, "tensor"),
        )
        return self._map(kernel, (packed,), heads)(qkv)

    def attend_planes(
        self, kernel: Callable[[Array], Array], planes: Float[Array, "3 b t c"]
    ) -> Float[Array, "b t c"]:
        """Runs a kernel as `attend` does, on heads side by side in the last axis.

        The tensor axis splits that axis between heads, never within one.
        """
        return self._map(kernel, (PartitionSpec(None, BATCH_AXES, None, "tensor"),), _HIDDEN)(
            planes
        )

    def rows(self, kernel: Callable[[tuple, tuple], Any], streams: tuple, weights: tuple) -> Any:
        """Runs a kernel on each device's own examples; weights' gradients are all-reduced."""
        return self._map(kernel, (_EXAMPLES, PartitionSpec()), _EXAMPLES)(streams, weights)

    def columns(
        self,
        kernel: Callable[[Array, Array], Array],
        x: Float[Array, "b t f"],
        bias: Float[Array, " f"],
    ) -> Float[Array, "b t f"]:
        """Runs a kernel on each device's own examples and hidden channels."""
        return self._map(kernel, (_HIDDEN, PartitionSpec("tensor")), _HIDDEN)(x, bias)

    def _map(self, kernel: Callable, in_specs: tuple, out_specs: Any) -> Callable:
        # A kernel contains no collective, so there is no replication to check.
        return jax.shard_map(
            kernel, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )

    def _constrain(self, x: Array, spec: PartitionSpec) -> Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))


def _gather(weight: Array, dtype: str, split: NamedSharding, whole: NamedSharding) -> Array:
    """All-gathers a weight after its cast, which halves the bytes in bfloat16."""

    def forward(_: None, weight: Array) -> Array:
        return jax.lax.with_sharding_constraint(
            jax.lax.with_sharding_constraint(weight.astype(dtype), split), whole
        )

    def transpose(_: None, gradient: Array) -> Array:
        # The constraint's own transpose would all-reduce the whole gradient first.
        return jax.lax.with_sharding_constraint(gradient, split).astype(jnp.float32)

    # Experimental in JAX: the only way to choose a transpose and keep jvp, which custom_vjp lacks.
    return jax.custom_derivatives.linear_call(forward, transpose, None, weight)
