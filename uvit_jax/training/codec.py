"""An autoencoder on the mesh: each device codes its part of a batch, a few images at a time."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from uvit_jax.interop.autoencoder import Autoencoder
from uvit_jax.models.latents import Normalization
from uvit_jax.parallel.arrays import place
from uvit_jax.parallel.mesh import BATCH_AXES, replicated


@dataclasses.dataclass(frozen=True)
class Codec:
    """The map between images and the network's latents.

    Attributes:
      autoencoder: its pure functions and parameters.
      mesh: the devices.
      batch_size: images that a device codes at a time, which bounds its memory.
      normalization: between the autoencoder's latents and the network's.
    """

    autoencoder: Autoencoder
    mesh: Mesh
    batch_size: int
    normalization: Normalization | None = None

    @functools.cached_property
    def params(self) -> Any:
        """The autoencoder's parameters, whole on every device."""
        return place(self.autoencoder.params, replicated(self.mesh))

    @property
    def kind(self) -> str:
        """The output of `encode`: "moments" or "latents"."""
        return "moments" if self.autoencoder.has_variance else "latents"

    def encode(self, params: Any, images: Float[Array, "b h w c"]) -> Float[Array, "b i j m"]:
        """The autoencoder's moments or latents of images in [-1, 1]; called under jit."""
        return self._in_parts(self.autoencoder.encode)(params, images)

    def decode(self, params: Any, x: Float[Array, "b i j z"]) -> Float[Array, "b h w c"]:
        """Images, about [-1, 1], of the network's latents; called under jit."""
        z = x if self.normalization is None else self.normalization.denormalize(x)
        return self._in_parts(self.autoencoder.decode)(params, z)

    @functools.cached_property
    def decoder(self) -> Callable[[Any, Array], Array]:
        """`decode`, compiled once per codec."""
        return jax.jit(self.decode)

    def _in_parts(self, function: Callable[[Any, Array], Array]) -> Callable[[Any, Array], Array]:
        def part(params: Any, x: Array) -> Array:
            images: Array = jax.lax.map(
                lambda one: function(params, one[None])[0],
                x,
                batch_size=min(self.batch_size, len(x)),
            )
            return images

        batch = PartitionSpec(BATCH_AXES)
        return jax.shard_map(
            part,
            mesh=self.mesh,
            in_specs=(PartitionSpec(), batch),
            out_specs=batch,
            check_vma=False,
        )
