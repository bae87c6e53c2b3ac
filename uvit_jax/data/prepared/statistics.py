"""Mean and standard deviation of each channel of a data set, from sums that shards add up."""

import dataclasses
import math
from typing import Any

import numpy as np
from jaxtyping import Num

# Relative error of the mean square that float64 sums may have; neighbouring float16 values differ
# by 2e-7 of it.
_ROUNDING = 1e-12
# The least deviation of latents drawn from moments, whose logvar is clipped to [-30, 20].
LEAST_DRAWN_STD = math.exp(-15)


@dataclasses.dataclass(frozen=True)
class ChannelSums:
    """Sums of each channel, in float64: the count of values, the values, their squares."""

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
        """The mean of each channel."""
        return tuple(total / self.count for total in self.total)

    @property
    def std(self) -> tuple[float, ...]:
        """The population's deviation of each channel; 0 for a channel that never varies."""
        powers = [square / self.count for square in self.squares]
        variances = [power - mean**2 for power, mean in zip(powers, self.mean, strict=True)]
        # Of a constant, the difference is what rounding left.
        pairs = zip(variances, powers, strict=True)
        return tuple(
            float(np.sqrt(variance)) if variance > _ROUNDING * power else 0.0
            for variance, power in pairs
        )


def channel_sums(kind: str, arrays: Num[np.ndarray, "n h w c"]) -> ChannelSums:
    """The channel sums of stored arrays of this kind.

    "pixels" (bytes) count as values in [-1, 1], "latents" as they are, "moments" as latents drawn
    from them.

    Of a latent z = mean + exp(logvar / 2) noise, E[z^2] is mean^2 + exp(logvar), logvar clipped to
    [-30, 20].
    """
    if kind == "pixels":
        counts = [
            np.bincount(arrays[..., channel].ravel(), minlength=256)
            for channel in range(arrays.shape[-1])
        ]
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
