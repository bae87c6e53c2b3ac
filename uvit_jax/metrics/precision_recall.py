"""Precision, recall, density and coverage, from balls to each sample's k-th neighbour."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from uvit_jax.errors import UserError
from uvit_jax.metrics.moments import check_features
from uvit_jax.parallel.batches import padded

_BLOCK_ENTRIES = 2**24  # entries of a block of the distance matrix: 128 MiB in float64
_MORE_CANDIDATES = 2  # candidates beyond k, so that rounding seldom hides the k-th neighbour
_PAIRS_AT_ONCE = 2**12


def precision_recall(
    real: Float[np.ndarray, "n d_real"], fake: Float[np.ndarray, "m d_fake"], k: int = 3
) -> tuple[float, float]:
    """Precision and recall of Eq. 1 and 2 of arXiv:1904.06991, each in [0, 1].

    Precision is the share of fake samples inside some real sample's ball, recall the share of real
    samples inside some fake sample's. A ball's radius is the distance to the k-th nearest other
    sample of its own set; its rim belongs to it.

    Args:
      real: features of real samples, a row a sample.
      fake: features of generated samples, of the same width.
      k: number of the neighbour.

    Raises:
      UserError: for sets of different widths, of fewer than k + 1 samples, or with NaN or infinity.
    """
    _check(real, fake, k)
    precise, recalled = np.zeros(len(fake), bool), np.zeros(len(real), bool)
    for rows, in_real, in_fake in _memberships(fake, real, _radii(fake, k), _radii(real, k)):
        precise[rows] = in_real.any(axis=1)
        recalled |= in_fake.any(axis=0)
    return float(precise.mean()), float(recalled.mean())


def density_coverage(
    real: Float[np.ndarray, "n d_real"], fake: Float[np.ndarray, "m d_fake"], k: int = 5
) -> tuple[float, float]:
    """Density and coverage of Eq. 3 and 4 of arXiv:2002.09797.

    Density is the mean number of real samples' balls around a fake sample, divided by k: 0 and up,
    about 1 for equal distributions. Coverage is the share of real samples' balls with a fake sample
    inside, in [0, 1]. Balls are those of `precision_recall`.

    Args:
      real: features of real samples, a row a sample.
      fake: features of generated samples, of the same width.
      k: number of the neighbour.

    Raises:
      UserError: for sets of different widths, fewer than k + 1 real samples or 1 fake sample, or
        NaN or infinity.
    """
    _check(real, fake, k, least_fake=1)
    balls, covered = 0, np.zeros(len(real), bool)
    none = np.full(len(fake), -np.inf)
    for _, in_real, _ in _memberships(fake, real, none, _radii(real, k)):
        balls += int(in_real.sum())
        covered |= in_real.any(axis=0)
    return balls / (k * len(fake)), float(covered.mean())


def _check(real: np.ndarray, fake: np.ndarray, k: int, least_fake: int | None = None) -> None:
    if k < 1:
        raise UserError(f"k is {k}, expected at least 1")
    for name, features, least in (("real", real, k + 1), ("fake", fake, least_fake or k + 1)):
        check_features(f"{name} features", features, real.shape[1])
        if len(features) < least:
            raise UserError(
                f"there are {len(features)} {name} samples, expected at least {least} for k = {k}"
            )


def _radii(features: np.ndarray, k: int) -> Float[np.ndarray, " n"]:
    """Squared distance of each sample to its k-th nearest other one.

    The device finds candidates; their distances are then computed from differences. Where rounding
    may have hidden a nearer sample (many samples close to each other and far from the centre), all
    samples that may be nearer become candidates.
    """
    count = min(k + _MORE_CANDIDATES, len(features) - 1)
    radii, others_from = np.empty(len(features)), np.empty(len(features))
    centred = features - features.mean(axis=0, dtype=np.float64)
    columns = _place(centred)
    for start, block in _blocks(centred, len(features)):
        rows = np.arange(start, min(start + len(block), len(features)))
        found = _on_device(partial(_nearest, count=count), block, columns, start)
        candidates, others_from[rows] = (result[: len(rows)] for result in found)
        distances = _exact(features, features, np.repeat(rows, count), candidates.ravel()).reshape(
            -1, count
        )
        radii[rows] = np.sort(distances, axis=1)[:, k - 1]
    hidden = np.flatnonzero(radii > np.maximum(others_from, 0))
    for start, block in _blocks(centred[hidden], len(features)):
        rows = hidden[start : start + len(block)]
        within = padded(radii[rows], len(block))
        [masks] = _on_device(_perhaps_within, block, columns, within)
        for row, mask in zip(rows, masks, strict=False):
            mask[row] = False
            candidates = np.flatnonzero(mask)
            distances = _exact(features, features, np.full(len(candidates), row), candidates)
            radii[row] = np.partition(distances, k - 1)[k - 1]
    return radii


def _memberships(
    fake: np.ndarray, real: np.ndarray, fake_radii: np.ndarray, real_radii: np.ndarray
) -> Iterator[tuple[slice, Bool[np.ndarray, "b n"], Bool[np.ndarray, "b n"]]]:
    """Yields for each block of fake samples: rows, masks row in real ball and real in its ball."""
    # Features near 0 have small squares, which round little.
    centre = real.mean(axis=0, dtype=np.float64)
    columns, column_radii = _place(real - centre), _place(real_radii)
    for start, block in _blocks(fake - centre, len(real)):
        rows = slice(start, min(start + len(block), len(fake)))
        count = rows.stop - start
        row_radii = padded(fake_radii[rows], len(block))
        result = _on_device(_compare, block, columns, row_radii, column_radii)
        in_real, close_real, in_fake, close_fake = (mask[:count] for mask in result)
        i, j = np.nonzero(close_real)
        in_real[i, j] = _exact(fake, real, start + i, j) <= real_radii[j]
        i, j = np.nonzero(close_fake)
        in_fake[i, j] = _exact(fake, real, start + i, j) <= fake_radii[start + i]
        yield rows, in_real, in_fake


def _exact(
    x: np.ndarray, y: np.ndarray, i: np.ndarray, j: np.ndarray
) -> Float[np.ndarray, " pairs"]:
    """|x_i - y_j|^2 of listed pairs from differences: equal pairs give the same bits."""
    squared = np.empty(len(i))
    for start in range(0, len(i), _PAIRS_AT_ONCE):
        pairs = slice(start, start + _PAIRS_AT_ONCE)
        difference = x[i[pairs]].astype(np.float64) - y[j[pairs]]
        squared[pairs] = np.sum(difference**2, axis=1)
    return squared


def _blocks(features: np.ndarray, columns: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (number of the first row, rows) of blocks of one size, the last padded with zeros."""
    size = max(1, min(_BLOCK_ENTRIES // columns, len(features)))
    for start in range(0, len(features), size):
        yield start, padded(features[start : start + size], size)


def _place(array: np.ndarray) -> Array:
    """A float64 array on the default device; not on a TPU, which emulates float64, but its CPU."""
    device = jax.local_devices()[0]
    if device.platform == "tpu":
        with contextlib.suppress(RuntimeError):  # where JAX_PLATFORMS leaves out the CPU
            device = jax.local_devices(backend="cpu")[0]
    with jax.enable_x64(True):
        return jnp.asarray(jax.device_put(array, device))


def _on_device(
    program: Callable[..., tuple[Array, ...]],
    block: np.ndarray,
    *arguments: Array | np.ndarray | int,
) -> list[np.ndarray]:
    """Runs the program on a block in float64, whatever precision is the default outside."""
    with jax.enable_x64(True):
        return [np.array(result) for result in program(_place(block), *arguments)]


def _squared_distances(
    rows: Float[Array, "b d"], columns: Float[Array, "n d"]
) -> tuple[Float[Array, "b n"], Float[Array, "b n"]]:
    """All |x - y|^2 by one matrix product, and an upper bound of their rounding errors."""
    squares = jnp.sum(rows**2, axis=1)[:, None] + jnp.sum(columns**2, axis=1)[None]
    product = jnp.matmul(rows, columns.T, precision="highest")
    slack = 2 * (rows.shape[1] + 2) * np.finfo(rows.dtype).eps * squares
    return jnp.maximum(squares - 2 * product, 0), slack


@partial(jax.jit, static_argnames="count")
def _nearest(
    rows: Float[Array, "b d"], columns: Float[Array, "n d"], start: int | Array, *, count: int
) -> tuple[Int[Array, "b k"], Float[Array, " b"]]:
    """The `count` nearest columns of each row, and a lower bound of the distances to all others.

    Nearest first; column `start` + row, the row itself, is left out. The bound allows for rounding.
    """
    distances, slack = _squared_distances(rows, columns)
    row = jnp.arange(len(rows))
    found = [start + row]
    for _ in range(count):
        distances = distances.at[row, found[-1]].set(jnp.inf, mode="drop")
        found.append(jnp.argmin(distances, axis=1))
    others = distances.at[row, found[-1]].set(jnp.inf, mode="drop") - slack
    return jnp.stack(found[1:], axis=1), jnp.min(others, axis=1)


@jax.jit
def _perhaps_within(
    rows: Float[Array, "b d"], columns: Float[Array, "n d"], radii: Float[Array, " b"]
) -> tuple[Bool[Array, "b n"]]:
    """True where a column's distance may be the row's radius or less."""
    distances, slack = _squared_distances(rows, columns)
    return (distances - slack <= radii[:, None],)


@jax.jit
def _compare(
    rows: Float[Array, "b d"],
    columns: Float[Array, "n d"],
    row_radii: Float[Array, " b"],
    column_radii: Float[Array, " n"],
) -> tuple[Bool[Array, "b n"], Bool[Array, "b n"], Bool[Array, "b n"], Bool[Array, "b n"]]:
    """Rows inside columns' balls, pairs too close to the rim to decide, and both the other way."""
    distances, slack = _squared_distances(rows, columns)
    from_columns, from_rows = distances - column_radii[None], distances - row_radii[:, None]
    return (
        from_columns < -slack,
        jnp.abs(from_columns) <= slack,
        from_rows < -slack,
        jnp.abs(from_rows) <= slack,
    )
