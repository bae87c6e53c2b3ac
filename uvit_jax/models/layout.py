"""How the network's arrays lie over devices, as far as the network must know: told from outside, nothing on one."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Float

Kernel = Callable[[Array, Array, Array], Array]


@runtime_checkable
class Layout(Protocol):
    """Where activations are split, and when split parameters are brought together."""

    @property
    def platform(self) -> str:
        """The devices': "cpu", "gpu" or "tpu"."""
        ...

    @property
    def gathers(self) -> bool:
        """Whether `weights` moves anything, so that the backward pass had better do it again than keep the result."""
        ...

    def stacked(self, params: Any) -> Any:
        """The same parameters, one array for all layers `[layers, ...]`, split as each layer's are."""
        ...

    def weights(self, params: Any, dtype: str) -> Any:
        """Parameters as they are computed with: those that are split for memory alone in `dtype` and whole."""
        ...

    def tokens(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """The residual stream between blocks."""
        ...

    def hidden(self, x: Float[Array, "b t f"]) -> Float[Array, "b t f"]:
        """The hidden channels of an MLP."""
        ...

    def attend(
        self,
        kernel: Kernel,
        query: Float[Array, "b t h k"],
        key: Float[Array, "b t h k"],
        value: Float[Array, "b t h k"],
    ) -> Float[Array, "b t h k"]:
        """The attention kernel, run by each device on its own examples and heads."""
        ...


@dataclasses.dataclass(frozen=True)
class OneDevice:
    """The layout of a network that lies on one device, or wherever its arguments are."""

    @property
    def platform(self) -> str:
        """That of the default device."""
        return jax.default_backend()

    @property
    def gathers(self) -> bool:
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
        """As they are."""
        return x

    def attend(
        self,
        kernel: Kernel,
        query: Float[Array, "b t h k"],
        key: Float[Array, "b t h k"],
        value: Float[Array, "b t h k"],
    ) -> Float[Array, "b t h k"]:
        """The kernel on everything."""
        return kernel(query, key, value)


ONE_DEVICE = OneDevice()
