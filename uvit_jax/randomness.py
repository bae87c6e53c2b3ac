"""A stream for each use of randomness: no two of them share numbers at any seed."""

import enum
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Key


class Stream(enum.IntEnum):
    """Purposes of random numbers. A value is part of the meaning of a seed: none ever changes."""

    INIT = 1  # the first weights
    STEP = 2  # a training step: times, noises, dropped conditions, latents drawn from moments
    SAMPLE = 3  # a sample: its initial noise and all that is drawn on its way
    EPOCH = 4  # the order of the examples in an epoch
    LABEL = 0x1AB  # the example of a data set whose label a sample has
    IMAGE = 0x1AC  # the example of a data set whose captions a sample has
    CAPTION = 0x1AD  # which of an image's captions a sample has
    TRAIN_CAPTION = 0x63617074  # which of its captions a visit of an example shows
    FLIP = 0x666C6970  # if a visit of an example shows its mirror image


def stream_key(seed: Any, stream: Stream, impl: str | None = None) -> Key[Array, ""]:
    """JAX's key of a stream; seed: an integer from 0 to 2^32 - 1, or a traced one."""
    return jax.random.fold_in(jax.random.key(seed, impl=impl), stream)


def seed_sequence(seed: int, stream: Stream, *numbers: int) -> np.random.SeedSequence:
    """NumPy's entropy of (seed, stream, numbers): for `default_rng`, or for words of its own."""
    return np.random.SeedSequence([seed, stream, *numbers])
