"""Exceptions whose text is shown to a person, alone and without a traceback."""

import functools
import logging
import sys
from collections.abc import Callable, Iterable

LOG = logging.getLogger("uvit_jax")


class UserError(ValueError):
    """Bad input: one sentence naming the field or file, the value found and the one expected."""


class Failed(Exception):
    """A job that did its work with a negative answer: its line is printed, the exit code is 1."""


class Preempted(Exception):
    """A job stopped by a signal that saved its work: its line is printed, the exit code is 143."""


def run_script(main: Callable[[], None]) -> None:
    """Runs a script's main; a UserError ends it with its sentence and the exit code 2."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Finds the known word that a mistyped one is near to: a few edits away, or its beginning.

    difflib's ratios can't take this place: they rank "jpg" and "png" as near as "amd" and "adm".
    """
    if not word:
        return None
    words = sorted(known, key=lambda other: _edits(word, other))
    if words and _edits(word, words[0]) <= max(1, len(word) // 4):
        return words[0]
    return next((other for other in words if other.startswith(word)), None)


def _edits(one: str, other: str) -> int:
    """Edit distance: letters changed, added, left out or swapped with their neighbour."""
    rows = [list(range(len(other) + 1))]
    for i, a in enumerate(one, 1):
        row = [i]
        for j, b in enumerate(other, 1):
            row.append(min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (a != b)))
            if i > 1 and j > 1 and (a, one[i - 2]) == (other[j - 2], b):
                row[-1] = min(row[-1], rows[-2][j - 2] + 1)
        rows.append(row)
    return rows[-1][-1]


def check_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises a UserError naming the field, the value and the choices unless value is one."""
    if value not in choices:
        close = nearest(str(value), choices)
        hint = f" (did you mean {close!r}?)" if close else ""
        raise UserError(
            f"{field} is {value!r}, expected one of {', '.join(map(repr, choices))}{hint}"
        )


def check_format(path: object, version: object, newest: int) -> None:
    """Raises a UserError unless a file's format_version is one that this package reads.

    Args:
      path: of the file or folder.
      version: what it says.
      newest: the version written today; it and all before it are read.
    """
    if not isinstance(version, int) or not 1 <= version <= newest:
        raise UserError(
            f"{path}: format_version is {version!r}, expected at most {newest}: update uvit_jax to "
            "read it"
        )


def counted(count: int, thing: str, things: str = "") -> str:
    """A number and its noun: "1 image", "2,000 images"; things: a plural that has no s."""
    return f"{count:,} {thing if count == 1 else things or thing + 's'}"


@functools.cache
def say_once(message: str) -> None:
    """Logs a warning once per process."""
    LOG.warning(message)
