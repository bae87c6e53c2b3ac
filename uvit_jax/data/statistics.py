"""Mean and standard deviation of each channel of a data set, from sums that shards add up."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Num

from uvit_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ChannelSums:
    """Sums over values of each channel: how many, of themselves and of their squares, in float64."""

    count: int
    total: tuple[float, ...]
    squares: tuple[float, ...]

    def __add__(self, other: "ChannelSums") -> "ChannelSums":
        return ChannelSums(
            self.count + other.count,
            tuple(a + b for a, b in zip(self.total, other.total, strict=True)),
            tuple(a + b for a, b in zip(self.squares, other.squares, strict=True)),
        )

    @property
    def mean(self) -> tuple[float, ...]:
        """Of each channel."""
        return tuple(total / self.count for total in self.total)

    @property
    def std(self) -> tuple[float, ...]:
        """Of each channel, of the whole population.

        Raises:
          UserError: for a channel that never varies, which no scale brings to unit variance.
        """
        variances = [square / self.count - mean**2 for square, mean in zip(self.squares, self.mean, strict=True)]
        for channel, variance in enumerate(variances):
            if not variance > 0:
                raise UserError(
                    f"channel {channel} has variance {variance:g} over the whole data set, expected above 0"
                )
        return tuple(float(np.sqrt(variance)) for variance in variances)


def channel_sums(kind: str, arrays: Num[np.ndarray, "n h w c"]) -> ChannelSums:
    """The sums of stored arrays: "pixels" (bytes) as values in [-1, 1]; "latents"; or of latents drawn from "moments".

    Of a latent z = mean + exp(logvar / 2) noise, E[z^2] is mean^2 + exp(logvar), logvar clipped to [-30, 20].
    """
    if kind == "pixels":
        counts = [np.bincount(arrays[..., channel].ravel(), minlength=256) for channel in range(arrays.shape[-1])]
        levels = np.arange(256) / 127.5 - 1
        return _of([(count.sum(), count @ levels, count @ levels**2) for count in counts])
    values = arrays.astype(np.float64)
    if kind == "moments":
        values, logvar = np.split(values, 2, axis=-1)
        extra = np.exp(np.clip(logvar, -30, 20))
    else:
        extra = np.zeros(())
    squares = values**2 + extra
    pixels = values[..., 0].size
    axes = (0, 1, 2)
    return _of([(pixels, *sums) for sums in zip(values.sum(axes), squares.sum(axes), strict=True)])


def _of(channels: list[tuple[Any, Any, Any]]) -> ChannelSums:
    counts, totals, squares = zip(*channels, strict=True)
    return ChannelSums(int(counts[0]), tuple(map(float, totals)), tuple(map(float, squares)))
