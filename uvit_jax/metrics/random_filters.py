"""The built-in feature network ("own"): fixed random filters, so nothing is downloaded."""

import hashlib
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from uvit_jax.errors import UserError
from uvit_jax.metrics.feature_network import FeatureNetwork

NAME = "own features v1"
PREFIX = "own_feature_"

_FILTERS, _HIDDEN = 16, 64
_GRID, _DEEP_GRID = 4, 2
_LEVELS = 2
_LEAST_SIDE = 8
# Larger images are halved to this side before the deep filters, unless they are narrow.
_DEEP_SIDE = 32
_WIDTH = _GRID**2 * 3 + _LEVELS * _FILTERS + _DEEP_GRID**2 * _HIDDEN


def random_filters() -> FeatureNetwork:
    """The built-in network: 336 features of an image of at least 8x8 pixels.

    They are colours (means over a 4x4 grid), fine texture (root mean square of 16 random zero-mean
    3x3 filters, at full and half size, which shows noise and blur) and shapes (two further layers
    of random filters with ReLUs, means over a 2x2 grid). The distance of random features orders
    runs on one data set. It cannot be compared with another network's.
    """
    params = _params()
    digest = hashlib.sha256(
        b"".join(np.ascontiguousarray(array).tobytes() for array in params.values())
    ).hexdigest()
    return FeatureNetwork(
        name=NAME,
        sha256=digest,
        prefix=PREFIX,
        widths={"pool": _WIDTH},
        settings={"resize": "none", "dtype": "float32"},
        params=params,
        apply=_apply,
    )


def _params() -> dict[str, np.ndarray]:
    texture = _draw(1, (3, 3, 3, _FILTERS))
    texture -= texture.mean((0, 1), keepdims=True)
    texture /= np.sqrt(np.sum(texture**2, (0, 1, 2)))
    second = _draw(2, (3, 3, _FILTERS, _HIDDEN)) * np.sqrt(2 / (9 * _FILTERS))
    third = _draw(3, (3, 3, _HIDDEN, _HIDDEN)) * np.sqrt(2 / (9 * _HIDDEN))
    return {
        "texture": texture.astype(np.float32),
        "second": second.astype(np.float32),
        "third": third.astype(np.float32),
    }


def _draw(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform numbers of variance 1, from the raw words that no version of NumPy changes."""
    words = np.random.PCG64(seed).random_raw(int(np.prod(shape)))
    uniform = (words >> np.uint64(11)).astype(np.float64) / 2.0**53 - 0.5
    return np.asarray(uniform.reshape(shape) * np.sqrt(12))


def _apply(
    params: Mapping[str, Array], images: UInt8[Array, "b h w c"], kinds: Sequence[str]
) -> dict[str, Float[Array, "b d"]]:
    if min(images.shape[1:3]) < _LEAST_SIDE:
        raise UserError(
            f"the images are {images.shape[1]}x{images.shape[2]}, expected at least "
            f"{_LEAST_SIDE}x{_LEAST_SIDE} for {NAME}"
        )
    x = images.astype(jnp.float32) / 127.5 - 1
    if x.shape[-1] == 1:
        x = jnp.repeat(x, 3, axis=-1)
    features = [_grid_means(x, _GRID)]
    level = x
    for _ in range(_LEVELS):
        response = _convolve(level, params["texture"], padding="VALID")
        # 1e-4 hides the rounding by which flat images would differ.
        features.append(jnp.sqrt(1e-4 + jnp.mean(response**2, (1, 2))))
        level = _halve(level)
    while max(x.shape[1:3]) > _DEEP_SIDE and min(x.shape[1:3]) >= 2 * _LEAST_SIDE:
        x = _halve(x)
    h = jax.nn.relu(_convolve(x, params["texture"]))
    h = jax.nn.relu(_convolve(h, params["second"], stride=2))
    h = jax.nn.relu(_convolve(h, params["third"], stride=2))
    features.append(_grid_means(h, _DEEP_GRID))
    return {kind: jnp.concatenate(features, axis=-1) for kind in kinds}


def _convolve(x: Array, kernel: Array, *, stride: int = 1, padding: str = "SAME") -> Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=jax.lax.Precision.HIGHEST,
    )


def _halve(x: Array) -> Array:
    """Means of 2x2 pixels; an odd last row or column is dropped."""
    n, h, w, c = x.shape
    return x[:, : h // 2 * 2, : w // 2 * 2].reshape(n, h // 2, 2, w // 2, 2, c).mean((2, 4))


def _grid_means(x: Array, cells: int) -> Array:
    """Means over each cell of a grid of cells x cells, for images of any size."""
    rows, columns = (
        [(i * side // cells, (i + 1) * side // cells) for i in range(cells)]
        for side in x.shape[1:3]
    )
    means = [
        x[:, top:bottom, left:right].mean((1, 2)) for top, bottom in rows for left, right in columns
    ]
    return jnp.concatenate(means, axis=-1)
