"""Latents as the network takes them: drawn from their moments, of zero mean and unit variance."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from uvit_jax.errors import UserError

AnyArray = Array | np.ndarray


@dataclasses.dataclass(frozen=True)
class Normalization:
    """x = scale * (z - shift) per channel: z the autoencoder's latent, x the network's.

    Attributes:
      shift: one number for each channel of the latents.
      scale: one positive number for each channel.
    """

    shift: tuple[float, ...]
    scale: tuple[float, ...]

    def __post_init__(self):
        if not self.scale or len(self.shift) != len(self.scale):
            raise UserError(
                f"the normalization has {len(self.shift)} shifts and {len(self.scale)} scales, "
                "expected one of each for every channel"
            )
        for i, (shift, scale) in enumerate(zip(self.shift, self.scale, strict=True)):
            if not math.isfinite(shift):
                raise UserError(f"the shift of channel {i} is {shift}, expected a finite number")
            if not (math.isfinite(scale) and scale > 0):
                raise UserError(f"the scale of channel {i} is {scale}, expected a positive number")

    @classmethod
    def constant(cls, scale: float, channels: int, *, shift: float = 0.0) -> "Normalization":
        """The same scale (0.18215: Stable Diffusion's) and shift for every channel."""
        return cls((float(shift),) * channels, (float(scale),) * channels)

    @classmethod
    def from_statistics(cls, mean: Sequence[float], std: Sequence[float]) -> "Normalization":
        """Normalization to zero mean and unit variance, from means and deviations per channel.

        A channel that never varies, of deviation 0, is brought to zero mean alone.

        Raises:
          UserError: for a standard deviation that is negative or not finite, or different numbers
            of channels.
        """
        for i, deviation in enumerate(std):
            if not (math.isfinite(deviation) and deviation >= 0):
                raise UserError(
                    f"the standard deviation of channel {i} is {deviation}, expected a number "
                    f"from 0 up"
                )
        return cls(tuple(float(m) for m in mean), tuple(1 / float(s) if s else 1.0 for s in std))

    @property
    def channels(self) -> int:
        """Channels of the latents."""
        return len(self.scale)

    def normalize(self, z: Float[AnyArray, "*b h w z"]) -> Float[Array, "*b h w z"]:
        """scale * (z - shift) in float32, for z of any precision.

        Raises:
          UserError: for another number of channels.
        """
        shift, scale = self._arrays(z)
        return (jnp.asarray(z, jnp.float32) - shift) * scale

    def denormalize(self, x: Float[AnyArray, "*b h w z"]) -> Float[Array, "*b h w z"]:
        """x / scale + shift in float32: the input of an autoencoder's `decode`.

        Raises:
          UserError: for another number of channels.
        """
        shift, scale = self._arrays(x)
        return jnp.asarray(x, jnp.float32) / scale + shift

    def _arrays(self, z: AnyArray) -> tuple[np.ndarray, np.ndarray]:
        if z.shape[-1] != self.channels:
            raise UserError(
                f"latents have {z.shape[-1]} channels, expected {self.channels} as their "
                f"normalization has"
            )
        return np.asarray(self.shift, np.float32), np.asarray(self.scale, np.float32)


def sample_moments(
    moments: Float[AnyArray, "*b h w m"], key: Key[Array, ""], normalization: Normalization
) -> Float[Array, "*b h w z"]:
    """Normalised latents drawn from stored moments, in float32.

    x = scale * (mean + exp(logvar / 2) noise - shift).

    Args:
      moments: mean and logvar, one after the other along the channels; logvar is clipped to [-30,
        20] here, as latent diffusion's DiagonalGaussianDistribution does.
      key: a key of its own for this draw.
      normalization: of half as many channels as the moments have.

    Raises:
      UserError: for another number of channels.
    """
    if moments.shape[-1] != 2 * normalization.channels:
        raise UserError(
            f"moments have {moments.shape[-1]} channels, expected {2 * normalization.channels}: "
            f"mean and logvar of {normalization.channels}"
        )
    mean, logvar = jnp.split(jnp.asarray(moments, jnp.float32), 2, axis=-1)
    noise = jax.random.normal(key, mean.shape, jnp.float32)
    return normalization.normalize(mean + jnp.exp(jnp.clip(logvar, -30.0, 20.0) / 2) * noise)
