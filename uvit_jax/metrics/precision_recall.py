"""Precision, recall, density and coverage: who lies within reach of whose nearest neighbours."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from uvit_jax.errors import UserError
from uvit_jax.metrics.moments import check_features

_BLOCK_ENTRIES = 2**24  # of a block of the distance matrix: 128 MiB in float64
_MORE_CANDIDATES = 2  # beyond k, so that rounding among the nearest seldom hides the k-th
_PAIRS_AT_ONCE = 2**12


def precision_recall(
    real: Float[np.ndarray, "n d_real"], fake: Float[np.ndarray, "m d_fake"], k: int = 3
) -> tuple[float, float]:
    """Precision and recall of Eq. 1 and 2 of arXiv:1904.06991, each in [0, 1].

    Precision is the share of fake samples inside some real sample's ball, recall that of real
    samples inside some fake sample's. A ball reaches to the k-th nearest other sample of its own
    set, and holds its rim.

    Raises:
      UserError: sets of different widths, of fewer than k + 1 samples, or with NaN or infinity.
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
    """Density (0 and up, about 1 for equal distributions) and coverage (in [0, 1]) of Eq. 3 and 4
    of arXiv:2002.09797.

    Density is the number of real samples' balls that a fake sample lies in, on average and over k;
    coverage the share of real samples' balls with a fake sample inside. Balls as in
    `precision_recall`.

    Raises:
      UserError: sets of different widths, of fewer than k + 1 samples (fake: none), or with NaN or
        infinity.
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

    The device finds candidates, whose distances are then taken from their differences. Where
    rounding may have hidden a nearer sample (many of them close to each other and far from the
    centre), all that may be nearer are candidates.
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
        within = np.pad(radii[rows], (0, len(block) - len(rows)))
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
    """For block after block of fake samples: which they are, in which real balls they lie, and
    which real samples lie in theirs.
    """
    centre = real.mean(
        axis=0, dtype=np.float64
    )  # the closer to 0 the features lie, the less their squares round
    columns, column_radii = _place(real - centre), _place(real_radii)
    for start, block in _blocks(fake - centre, len(real)):
        rows = slice(start, min(start + len(block), len(fake)))
        count = rows.stop - start
        row_radii = np.pad(fake_radii[rows], (0, len(block) - count))
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
    """|x_i - y_j|^2 of listed pairs from their differences: equal pairs give equal numbers, to the
    bit.
    """
    squared = np.empty(len(i))
    for start in range(0, len(i), _PAIRS_AT_ONCE):
        pairs = slice(start, start + _PAIRS_AT_ONCE)
        difference = x[i[pairs]].astype(np.float64) - y[j[pairs]]
        squared[pairs] = np.sum(difference**2, axis=1)
    return squared


def _blocks(features: np.ndarray, columns: int) -> Iterator[tuple[int, np.ndarray]]:
    """(number of the first row, rows): all of one size, the last filled up with zeros, so that one
    program is made.
    """
    size = max(1, min(_BLOCK_ENTRIES // columns, len(features)))
    for start in range(0, len(features), size):
        rows = features[start : start + size]
        yield start, np.pad(rows, ((0, size - len(rows)), (0, 0)))


def _place(array: np.ndarray) -> jax.Array:
    """In float64 on the default device, or on the host where that is a TPU, which emulates float64."""
    device = jax.local_devices()[0]
    if device.platform == "tpu":
        with contextlib.suppress(RuntimeError):  # where JAX_PLATFORMS leaves the processor out
            device = jax.local_devices(backend="cpu")[0]
    with jax.enable_x64(True):
        return jax.device_put(array, device)


def _on_device(
    program: Callable[..., tuple[Any, ...]], block: np.ndarray, *arguments: Any
) -> list[np.ndarray]:
    """What the program makes of a block, in float64, whatever is the default outside."""
    with jax.enable_x64(True):
        return [np.array(result) for result in program(_place(block), *arguments)]


def _squared_distances(rows: Any, columns: Any) -> tuple[Any, Any]:
    """All |x - y|^2 by one matrix product, and what their rounding is at most."""
    squares = jnp.sum(rows**2, axis=1)[:, None] + jnp.sum(columns**2, axis=1)[None]
    product = jnp.matmul(rows, columns.T, precision="highest")
    slack = 2 * (rows.shape[1] + 2) * jnp.finfo(rows.dtype).eps * squares
    return jnp.maximum(squares - 2 * product, 0), slack


@partial(jax.jit, static_argnames="count")
def _nearest(rows: Any, columns: Any, start: Any, *, count: int) -> tuple[Any, Any]:
    """Numbers `[rows, count]` of the nearest columns other than column `start` + row, nearest
    first, and what the distances `[rows]` to all columns beyond those are at least, whatever was
    rounded.
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
def _perhaps_within(rows: Any, columns: Any, radii: Any) -> tuple[Any]:
    """Columns whose distance may be a row's radius or less."""
    distances, slack = _squared_distances(rows, columns)
    return (distances - slack <= radii[:, None],)


@jax.jit
def _compare(
    rows: Any, columns: Any, row_radii: Any, column_radii: Any
) -> tuple[Any, Any, Any, Any]:
    """Rows inside columns' balls, pairs too close to the rim to tell, and the same two of columns
    in rows' balls.
    """
    distances, slack = _squared_distances(rows, columns)
    from_columns, from_rows = distances - column_radii[None], distances - row_radii[:, None]
    return (
        from_columns < -slack,
        jnp.abs(from_columns) <= slack,
        from_rows < -slack,
        jnp.abs(from_rows) <= slack,
    )
