"""Decoding of latents too large for one pass: in tiles, blended where they overlap."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from uvit_jax.errors import UserError
from uvit_jax.models.frozen.autoencoder_layers import AnyArray


def decode_tiled(
    decode: Callable[[Array], Array],
    z: Float[AnyArray, "b i j z"],
    *,
    tile: int = 64,
    overlap: int = 16,
) -> Float[Array, "b h w c"]:
    """Images of latents that are too large for one pass, in tiles blended linearly.

    Latents of one tile give `decode(z)` itself. With more, attention and GroupNorm see one tile at
    a time: memory is that of one tile, and the image is not quite `decode(z)`. Call it under `jit`:
    outside, every call compiles its loop.

    Args:
      decode: `[b, i, j, z] -> [b, f i, f j, c]` for a fixed f, as the autoencoders' `decode`.
      z: latents `[b, i, j, z]`.
      tile: side of a tile in latent pixels.
      overlap: latent pixels that neighbouring tiles share, at least.

    Raises:
      UserError: for an overlap outside 1..tile-1.
    """
    if not 1 <= overlap < tile:
        raise UserError(
            f"overlap is {overlap}, expected 1 to {tile - 1}, less than a tile of {tile}"
        )
    z = jnp.asarray(z)
    b, i, j, c = z.shape
    if max(i, j) <= tile:
        return decode(z)
    shape = (b, min(tile, i), min(tile, j), c)
    image = jax.eval_shape(decode, jax.ShapeDtypeStruct(shape, z.dtype))
    factor = image.shape[1] // shape[1]
    rows, row_weights = _tiles(i, shape[1], overlap, factor)
    columns, column_weights = _tiles(j, shape[2], overlap, factor)

    def add(canvas, position):
        row, column = position
        y, x = rows[row], columns[column]
        part = decode(jax.lax.dynamic_slice(z, (0, y, x, 0), shape))
        weights = row_weights[row][:, None, None] * column_weights[column][:, None]
        corner = (0, factor * y, factor * x, 0)
        part = weights * part + jax.lax.dynamic_slice(canvas, corner, part.shape)
        return jax.lax.dynamic_update_slice(canvas, part, corner), None

    positions = np.indices((len(rows), len(columns))).reshape(2, -1).T
    canvas = jnp.zeros((b, factor * i, factor * j, image.shape[3]), jnp.float32)
    return jax.lax.scan(add, canvas, positions)[0]


def _tiles(length: int, tile: int, overlap: int, factor: int) -> tuple[Array, Array]:
    """Starts of tiles along one axis `[n]`, and weights of their pixels `[n, factor * tile]`.

    At each pixel the weights add up to 1.
    """
    number = 1 if length <= tile else math.ceil((length - overlap) / (tile - overlap))
    starts = np.linspace(0, length - tile, number).round().astype(int)
    inwards = np.arange(factor * tile) + 0.5
    ramp = np.minimum(np.minimum(inwards, inwards[::-1]) / (factor * overlap), 1)
    pixels = factor * starts[:, None] + np.arange(factor * tile)
    total = np.bincount(pixels.ravel(), np.tile(ramp, number))
    return jnp.asarray(starts), jnp.asarray(ramp / total[pixels], jnp.float32)
