"""Resizing as two matrix products, with the weights of the libraries behind published FIDs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64

from uvit_jax.errors import UserError, check_choice

KINDS = ("bilinear", "bilinear_tf1", "bicubic_antialias")
# Kinds of `resize_matrix` for Inception-v3's input, by the library whose FID each gives.
RESIZES = {"pytorch-fid": "bilinear", "tf1": "bilinear_tf1", "clean": "bicubic_antialias"}


@functools.cache
def resize_matrix(size_in: int, size_out: int, kind: str) -> Float64[np.ndarray, "o i"]:
    """Weights `[size_out, size_in]` of the pixels of a row; every row sums to 1; read-only.

    Args:
      size_in: pixels along the input's side.
      size_out: pixels along the output's side.
      kind: one of
        - "bilinear": PyTorch's `interpolate(mode="bilinear", align_corners=False)`: two pixels,
        without antialiasing;
        - "bilinear_tf1": TensorFlow 1's `resize_bilinear` without `align_corners`: the same between
          other points, as pixel d out is at d * size_in / size_out of the pixels in (no half-pixel
          centres);
        - "bicubic_antialias": Pillow's BICUBIC: Keys' kernel with a = -0.5, as many times wider as
        the image shrinks.

    Raises:
      UserError: for another kind, or a size below 1.
    """
    check_choice("kind", kind, KINDS)
    for name, size in (("size_in", size_in), ("size_out", size_out)):
        if size < 1:
            raise UserError(f"{name} is {size}, expected at least 1")
    matrix = _MATRICES[kind](size_in, size_out)
    matrix.setflags(write=False)  # all callers share it
    return matrix


def resize(x: Float[Array, "b h w c"], size: tuple[int, int], kind: str) -> Float[Array, "b i j c"]:
    """The images at the size (height, width), float32, not clipped.

    Kinds and errors are `resize_matrix`'s.
    """
    x = x.astype(jnp.float32)
    rows, columns = (
        jnp.asarray(resize_matrix(before, after, kind), jnp.float32)
        for before, after in zip(x.shape[1:3], size, strict=True)
    )
    # In bfloat16 or TF32 the product would be off by a level of 256.
    product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    return product("jw,biwc->bijc", columns, product("ih,bhwc->biwc", rows, x))


def _bilinear(size_in: int, size_out: int) -> np.ndarray:
    return _between((np.arange(size_out) + 0.5) * size_in / size_out - 0.5, size_in)


def _bilinear_tf1(size_in: int, size_out: int) -> np.ndarray:
    return _between(np.arange(size_out) * size_in / size_out, size_in)


def _between(positions: np.ndarray, size_in: int) -> np.ndarray:
    """Linear interpolation at these positions among pixels 0, 1, ..., clamped: `[out, size_in]`."""
    distance = np.abs(np.clip(positions, 0, size_in - 1)[:, None] - np.arange(size_in))
    return np.maximum(1 - distance, 0)


def _bicubic_antialias(size_in: int, size_out: int) -> np.ndarray:
    scale = size_in / size_out
    width = max(scale, 1.0)
    centers = (np.arange(size_out) + 0.5) * scale
    weights = _keys((np.arange(size_in) + 0.5 - centers[:, None]) / width)
    return weights / weights.sum(axis=1, keepdims=True)


def _keys(x: np.ndarray, a: float = -0.5) -> np.ndarray:
    """The cubic convolution kernel (Keys 1981), zero from 2 on."""
    x = np.abs(x)
    inner = ((a + 2) * x - (a + 3)) * x**2 + 1
    outer = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x < 1, inner, np.where(x < 2, outer, 0.0))


_MATRICES = {
    "bilinear": _bilinear,
    "bilinear_tf1": _bilinear_tf1,
    "bicubic_antialias": _bicubic_antialias,
}
