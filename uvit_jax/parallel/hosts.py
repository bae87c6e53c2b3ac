"""Agreement between the hosts of a run: shared values, and errors that all of them raise.

The functions here are collectives unless they say otherwise: every process of the run calls them,
in the same order.
"""

import json
import secrets
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from uvit_jax.errors import UserError

Result = TypeVar("Result")
Plain = TypeVar("Plain", bool, int, str)


class SharedError(UserError):
    """A UserError that all processes of the run raise at the same place."""


def are_several() -> bool:
    """True if this process has joined others. Needs no device, and one process may ask alone."""
    return jax.distributed.is_initialized()


def index() -> int:
    """Returns the number of this process in the run, from 0; one process may ask alone."""
    try:
        return jax.process_index() if are_several() else 0
    except RuntimeError:  # the devices can't be opened, and the error that says so is on its way
        return 0


def is_first() -> bool:
    """True on process 0, which writes logs, pictures and other files of which one is enough."""
    return index() == 0


def on_all(function: Callable[..., Result], *arguments: Any) -> Result:
    """Calls `function(*arguments)` on every process; a UserError on one is raised on all.

    So a file that one host lacks ends the run on all hosts at once, with the same sentence. The
    function itself must not call a collective.

    Raises:
      SharedError: naming the first process on which the function failed, if there are several.
    """
    if not are_several():
        return function(*arguments)
    failure, result = "", None
    try:
        result = function(*arguments)
    except UserError as error:
        failure = str(error)
    failures = _gather(failure)
    if any(failures):
        first = next(i for i, text in enumerate(failures) if text)
        raise SharedError(failures[0] if first == 0 else f"{failures[first]} (process {first})")
    return result  # type: ignore[return-value]


def on_first(function: Callable[..., Result], *arguments: Any) -> Result | None:
    """Calls `function(*arguments)` on process 0 only; a UserError there is raised on all.

    Returns:
      The result on process 0, None on the others: `first_says` sends a plain value to all.

    Raises:
      SharedError: on every process, if the function raised a UserError and there are several.
    """
    return on_all(function, *arguments) if is_first() else on_all(lambda: None)


def agree(values: Mapping[str, Any]) -> None:
    """Compares the processes' values, which are by name and of JSON's types.

    Raises:
      SharedError: on every process, naming the first value that is not the same on all.
    """
    if not are_several():
        return
    texts = _gather(json.dumps(values, default=str))
    first, nothing = json.loads(texts[0]), object()
    for process, text in enumerate(texts):
        other = json.loads(text)
        for name in [*first, *other]:
            here, there = first.get(name, nothing), other.get(name, nothing)
            if here != there:
                shown = ["absent" if value is nothing else _short(value) for value in (there, here)]
                raise SharedError(
                    f"the hosts disagree: {name} is {shown[0]} on process {process} and {shown[1]} "
                    "on process 0"
                )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def same_secret() -> str:
    """Returns a random word, the same on all processes."""
    return _gather(secrets.token_hex(8))[0]


def first_says(value: Plain) -> Plain:
    """Returns process 0's value on all processes."""
    return json.loads(_gather(json.dumps(value))[0]) if are_several() else value


def largest(value: int) -> int:
    """Returns the largest of the processes' values on all of them."""
    return max(json.loads(text) for text in _gather(json.dumps(value))) if are_several() else value


def _gather(text: str) -> list[str]:
    """Returns every process's text, in the order of the processes."""
    data = np.frombuffer(text.encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(data)))
    filled = np.zeros(max(lengths.max(), 1), np.uint8)
    filled[: len(data)] = data
    rows = multihost_utils.process_allgather(filled)
    return [row[:length].tobytes().decode() for row, length in zip(rows, lengths, strict=True)]
