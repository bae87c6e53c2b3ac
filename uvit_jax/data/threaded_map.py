"""Work done in threads ahead of the one who takes it, in order."""

import collections
import concurrent.futures
from collections.abc import Callable, Iterator, Sequence
from typing import Any


def threaded_map(
    pool: concurrent.futures.Executor, function: Callable, items: Sequence[Any], depth: int
) -> Iterator[Any]:
    """function(item) for each item in order, `depth` of them under way; what it raises is raised in
    its turn.
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
