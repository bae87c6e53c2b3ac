"""A network's dtype, kernels and placement: how it is computed, not what."""

import dataclasses

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from uvit_jax.errors import say_once
from uvit_jax.models.kernels import norm
from uvit_jax.models.kernels.products import SPECIAL, product
from uvit_jax.models.placement import ONE_DEVICE, Placement
from uvit_jax.models.uvit_config import UViTConfig


@dataclasses.dataclass(frozen=True)
class Compute:
    """Dtype, kernels and placement of the blocks.

    Attributes:
      dtype: name of the dtype of activations and of products that are not in 8 bits.
      fp8: True for forward products in 8 bits.
      special: tokens in front that are not patches; `fp8` takes its scale from them, too.
      attention: `UViTConfig.attention`.
      kernels: `UViTConfig.kernels`.
      placement: where the arrays are.
    """

    dtype: str = "float32"
    fp8: bool = False
    special: int = SPECIAL
    attention: str = "auto"
    kernels: str = "auto"
    placement: Placement = ONE_DEVICE

    @classmethod
    def of(cls, config: UViTConfig, placement: Placement) -> "Compute":
        """Takes from a config what concerns its computation."""
        return cls(
            dtype=config.compute_dtype,
            fp8=config.fp8,
            special=config.num_extra_tokens,
            attention=config.attention,
            kernels=config.kernels,
            placement=placement,
        )

    def product(
        self, x: Float[Array, "*b k"], kernel: Float[Array, "k n"], parts: int = 1
    ) -> Float[Array, "*b n"]:
        """`products.product` in 8 bits or in x's dtype."""
        return product(x, kernel, fp8=self.fp8, special=self.special, parts=parts)

    def implementation(self, d: int) -> norm.Implementation:
        """Implementation of norms, residual sums and GELU for tokens of width d."""
        return resolve_kernels(self.kernels, self.dtype, d, self.placement.platform)


def resolve_kernels(name: str, dtype: DTypeLike, d: int, platform: str) -> norm.Implementation:
    """Implementation for a name.

    "auto" and "triton" are Triton's kernels on a GPU in bfloat16, XLA's own operations elsewhere;
    "triton" logs once that it falls back.
    """
    found = "xla" if name == "xla" else norm.resolve(dtype, d, platform)
    if name == "triton" and found == "xla":
        say_once(
            "kernels = triton falls back to xla: the kernels take bfloat16 on platform gpu, not "
            f"{jnp.dtype(dtype).name} on {platform}"
        )
    return found
