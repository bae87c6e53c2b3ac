"""The train step's map from stored examples (pixels, moments, latents) to x0."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Num

from uvit_jax.models.latents import Normalization, sample_moments

# inputs(frozen, stored, key) -> x0; frozen are the parameters of an autoencoder, or nothing.
Inputs = Callable[[Any, Num[Array, "b h w c"], Key[Array, ""]], Float[Array, "b i j z"]]


def pixels(
    frozen: Any, stored: Num[Array, "b h w c"], key: Key[Array, ""]
) -> Float[Array, "b h w c"]:
    """Images in [-1, 1]: bytes are divided by 127.5 and lowered by 1, floats are there already."""
    x = stored.astype(jnp.float32)
    return x / 127.5 - 1 if stored.dtype == jnp.uint8 else x


def latents(kind: str, normalization: Normalization) -> Inputs:
    """Normalized latents: drawn anew from stored "moments", or the stored "latents" themselves."""

    def inputs(
        frozen: Any, stored: Num[Array, "b h w c"], key: Key[Array, ""]
    ) -> Float[Array, "b h w z"]:
        if kind == "moments":
            return sample_moments(stored, key, normalization)
        return normalization.normalize(stored.astype(jnp.float32))

    return inputs


def encoded(
    encode: Callable[[Any, Array], Array], kind: str, normalization: Normalization
) -> Inputs:
    """Latents of stored pixels, encoded in the step.

    `encode(frozen, images)` gives "moments" or "latents", as `kind` says.
    """
    finish = latents(kind, normalization)

    def inputs(
        frozen: Any, stored: Num[Array, "b h w c"], key: Key[Array, ""]
    ) -> Float[Array, "b i j z"]:
        images = pixels(frozen, stored, key)
        # The encoder is frozen: without this the backward pass would keep its activations.
        return jax.lax.stop_gradient(finish(None, encode(frozen, images), key))

    return inputs
