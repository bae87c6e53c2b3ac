"""Batches padded to one shape, and dispatched one ahead of their use."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

import jax
import numpy as np
from jaxtyping import Shaped

# Names of an example's fields ("x", "label", "context") to arrays [b, ...].
Batch = dict[str, jax.Array]
Item = TypeVar("Item")


def round_up(count: int, multiple: int) -> int:
    """Returns the smallest multiple of `multiple` that is at least `count`."""
    return -(-count // multiple) * multiple


def padded(rows: Shaped[np.ndarray, "n ..."], size: int) -> Shaped[np.ndarray, "m ..."]:
    """Appends zeros up to `size` rows: one shape, hence one compiled program.

    Raises:
      ValueError: for more rows than `size`.
    """
    if len(rows) > size:
        raise ValueError(f"{len(rows)} rows, expected at most {size}")
    if len(rows) == size:
        return rows
    return np.concatenate([rows, np.zeros((size - len(rows), *rows.shape[1:]), rows.dtype)])


def one_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """Yields each item once the next one has been drawn, the last when there is none.

    Where drawing an item dispatches work to the devices, they work on the next one while the host
    uses this one.
    """
    iterator = iter(items)
    for item in iterator:
        for following in iterator:
            yield item
            item = following
        yield item
