"""Sharding hooks that a network calls; `OneDevice` does nothing, `MeshPlacement` applies a mesh."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float

Kernel = Callable[[Array], Array]


@runtime_checkable
class Placement(Protocol):
    """Where activations are split over devices, and when split parameters are all-gathered."""

    @property
    def platform(self) -> str:
        """Platform of the devices: "cpu", "gpu" or "tpu"."""
        ...

    @property
    def single_device(self) -> bool:
        """True if everything is on one device."""
        ...

    @property
    def gathers(self) -> bool:
        """True if `weights` all-gathers, which the backward pass then repeats to save memory."""
        ...

    @property
    def splits_channels(self) -> bool:
        """True if a product's sum over channels needs an all-reduce (tensor parallelism)."""
        ...

    def stacked(self, params: Any) -> Any:
        """Parameters stacked over layers `[layers, ...]`, split as each layer's are."""
        ...

    def weights(self, params: Any, dtype: str) -> Any:
        """Parameters to compute with: those split for memory alone are all-gathered in `dtype`."""
        ...

    def tokens(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """The residual stream between blocks."""
        ...

    def hidden(self, x: Float[Array, "b t f"]) -> Float[Array, "b t f"]:
        """The hidden channels of an MLP."""
        ...

    def of_one_device(self, examples: Any, heads: int) -> tuple[Any, int]:
        """Examples and heads that `attend` gives to a device.

        Examples are a symbol in a program that is exported for any batch.
        """
        ...

    def attend(self, kernel: Kernel, qkv: Float[Array, "b t 3 h k"]) -> Float[Array, "b t h k"]:
        """The attention kernel, run by each device on its own examples and heads."""
        ...

    def attend_planes(
        self, kernel: Kernel, planes: Float[Array, "3 b t c"]
    ) -> Float[Array, "b t c"]:
        """`attend` with heads side by side in the last axis."""
        ...

    def rows(self, kernel: Callable[[tuple, tuple], Any], streams: tuple, weights: tuple) -> Any:
        """`kernel(streams, weights)`, run by each device on its own examples.

        Streams are `[b, t, d]` (or None) and so are the results; weights are whole.
        """
        ...

    def columns(
        self,
        kernel: Callable[[Array, Array], Array],
        x: Float[Array, "b t f"],
        bias: Float[Array, " f"],
    ) -> Float[Array, "b t f"]:
        """`kernel(x, bias)`, run by each device on its own examples and hidden channels."""
        ...


@dataclasses.dataclass(frozen=True)
class OneDevice:
    """Placement of a network on one device, or wherever its arguments are."""

    @property
    def platform(self) -> str:
        """Platform of the default device, `jax.default_device`'s where it is set."""
        # jax.config has no public type of its fields; jax.typing may give it one.
        default = jax.config.jax_default_device  # type: ignore[attr-defined]
        if isinstance(default, jax.Device):
            return default.platform
        return default or jax.default_backend()

    @property
    def single_device(self) -> bool:
        """True: no mesh is known."""
        return True

    @property
    def gathers(self) -> bool:
        """False: nothing is split."""
        return False

    @property
    def splits_channels(self) -> bool:
        """False: nothing is split."""
        return False

    def stacked(self, params: Any) -> Any:
        """The same parameters."""
        return params

    def weights(self, params: Any, dtype: str) -> Any:
        """The same parameters."""
        return params

    def tokens(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """The same stream."""
        return x

    def hidden(self, x: Float[Array, "b t f"]) -> Float[Array, "b t f"]:
        """The same channels."""
        return x

    def of_one_device(self, examples: Any, heads: int) -> tuple[Any, int]:
        """All examples and heads."""
        return examples, heads

    def attend(self, kernel: Kernel, qkv: Float[Array, "b t 3 h k"]) -> Float[Array, "b t h k"]:
        """The kernel on everything."""
        return kernel(qkv)

    def attend_planes(
        self, kernel: Kernel, planes: Float[Array, "3 b t c"]
    ) -> Float[Array, "b t c"]:
        """The kernel on everything."""
        return kernel(planes)

    def rows(self, kernel: Callable[[tuple, tuple], Any], streams: tuple, weights: tuple) -> Any:
        """The kernel on everything."""
        return kernel(streams, weights)

    def columns(
        self,
        kernel: Callable[[Array, Array], Array],
        x: Float[Array, "b t f"],
        bias: Float[Array, " f"],
    ) -> Float[Array, "b t f"]:
        """The kernel on everything."""
        return kernel(x, bias)


def stream(placement: Placement, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
    """The residual stream, or what is added to it, in its place; on a GPU as rows in memory.

    XLA would at times order a whole network's stream by examples in memory, for the sake of one sum
    over them, and transpose between that and every product.
    """
    return _row_major(placement.tokens(x), placement.platform)


def hidden(placement: Placement, x: Float[Array, "b t f"]) -> Float[Array, "b t f"]:
    """The hidden channels of an MLP, placed as `stream`."""
    return _row_major(placement.hidden(x), placement.platform)


def _row_major(x: Array, platform: str) -> Array:
    if platform != "gpu":
        return x
    # As rows, so that sums of the stream and a product stay sums of rows: see `_sum_in_product` in
    # kernels/norm.py. The constraint is experimental in jax; it goes when XLA keeps rows by itself.
    return with_layout_constraint(x.reshape(-1, x.shape[-1]), Layout((0, 1))).reshape(x.shape)


ONE_DEVICE = OneDevice()
