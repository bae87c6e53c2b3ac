"""How the network's arrays lie over devices, as far as the network must know: told from outside,
nothing on one.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
from jax.experimental.layout import Layout as DeviceLayout
from jax.experimental.layout import with_layout_constraint
from jaxtyping import Array, Float

Kernel = Callable[[Array], Array]


@runtime_checkable
class Layout(Protocol):
    """Where activations are split, and when split parameters are brought together."""

    @property
    def platform(self) -> str:
        """The devices': "cpu", "gpu" or "tpu"."""
        ...

    @property
    def alone(self) -> bool:
        """Whether there is no other device."""
        ...

    @property
    def gathers(self) -> bool:
        """Whether `weights` moves anything, so that the backward pass had better do it again than
        keep the result.
        """
        ...

    @property
    def splits_channels(self) -> bool:
        """Whether the channels of a product are split over devices, and brought together after it."""
        ...

    def stacked(self, params: Any) -> Any:
        """The same parameters, one array for all layers `[layers, ...]`, split as each layer's are."""
        ...

    def weights(self, params: Any, dtype: str) -> Any:
        """Parameters as they are computed with: those that are split for memory alone in `dtype`
        and whole.
        """
        ...

    def tokens(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """The residual stream between blocks."""
        ...

    def hidden(self, x: Float[Array, "b t f"]) -> Float[Array, "b t f"]:
        """The hidden channels of an MLP."""
        ...

    def of_one_device(self, examples: Any, heads: int) -> tuple[Any, int]:
        """How many of these examples and heads `attend` gives to a device; of a program that is
        exported for any batch, examples are a symbol.
        """
        ...

    def attend(self, kernel: Kernel, qkv: Float[Array, "b t 3 h k"]) -> Float[Array, "b t h k"]:
        """The attention kernel, run by each device on its own examples and heads."""
        ...

    def attend_planes(
        self, kernel: Kernel, planes: Float[Array, "3 b t c"]
    ) -> Float[Array, "b t c"]:
        """As `attend`, with heads side by side in the last axis."""
        ...

    def rows(self, kernel: Callable[[tuple, tuple], Any], streams: tuple, weights: tuple) -> Any:
        """`kernel(streams, weights)` by each device on its own examples: streams `[b, t, d]` (or
        None), weights whole; it gives streams.
        """
        ...

    def columns(
        self,
        kernel: Callable[[Array, Array], Array],
        x: Float[Array, "b t f"],
        bias: Float[Array, " f"],
    ) -> Float[Array, "b t f"]:
        """`kernel(x, bias)` by each device on its own examples and hidden channels."""
        ...


@dataclasses.dataclass(frozen=True)
class OneDevice:
    """The layout of a network that lies on one device, or wherever its arguments are."""

    @property
    def platform(self) -> str:
        """That of the default device, `jax.default_device`'s where it is set."""
        default = jax.config.jax_default_device  # type: ignore[attr-defined]
        if isinstance(default, jax.Device):
            return default.platform
        return default or jax.default_backend()

    @property
    def alone(self) -> bool:
        """As far as is known."""
        return True

    @property
    def gathers(self) -> bool:
        """Nothing is split."""
        return False

    @property
    def splits_channels(self) -> bool:
        """Nothing is split."""
        return False

    def stacked(self, params: Any) -> Any:
        """As they are."""
        return params

    def weights(self, params: Any, dtype: str) -> Any:
        """As they are."""
        return params

    def tokens(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """As it is."""
        return x

    def hidden(self, x: Float[Array, "b t f"]) -> Float[Array, "b t f"]:
        """As it is."""
        return x

    def of_one_device(self, examples: Any, heads: int) -> tuple[Any, int]:
        """All of them."""
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


def stream(layout: Layout, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
    """The residual stream, or what is added to it, as the layout has it; on a GPU with the last
    axis the fastest.

    XLA would at times lay out a whole network's stream by examples, for the sake of one sum over
    them, and transpose between that and every product.
    """
    return _row_major(layout.tokens(x), layout.platform)


def hidden(layout: Layout, x: Float[Array, "b t f"]) -> Float[Array, "b t f"]:
    """The hidden channels of an MLP, as `stream`."""
    return _row_major(layout.hidden(x), layout.platform)


def _row_major(x: Array, platform: str) -> Array:
    if platform != "gpu":
        return x
    # As rows, so that sums of the stream and a product stay sums of rows: see `_sum_in_product` in
    # kernels/norm.py.
    return with_layout_constraint(x.reshape(-1, x.shape[-1]), DeviceLayout((0, 1))).reshape(x.shape)


ONE_DEVICE = OneDevice()
