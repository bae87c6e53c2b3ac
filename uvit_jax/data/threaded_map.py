"""A map in threads that keeps the order and works ahead of its consumer."""

import collections
import concurrent.futures
from collections.abc import Callable, Iterator, Sequence
from typing import Any


def threaded_map(
    pool: concurrent.futures.Executor, function: Callable, items: Sequence[Any], depth: int
) -> Iterator[Any]:
    """Yields function(item) for each item in order, with `depth` calls under way.

    An exception is raised when its item's turn comes.
    """
    waiting: collections.deque[concurrent.futures.Future] = collections.deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
