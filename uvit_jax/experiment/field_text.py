"""Values of a command line's texts, by the types of the fields they are for."""

import types
import typing
from typing import Any

_BOOLS = {
    "true": True,
    "t": True,
    "1": True,
    "yes": True,
    "false": False,
    "f": False,
    "0": False,
    "no": False,
}


def from_text(text: str, hint: Any) -> Any:
    """Reads a text: "1e3" for an int, "true" for a bool, "0.9,0.99" or "(0.9, 0.99)", "None".

    A tuple of any length is names with commas between, "" for none.

    Raises:
      ValueError: for a text that is not a value of this type.
    """
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _first_that_fits(text, parts)
    if origin is tuple:
        items = text.strip(" ()[]").removesuffix(",").split(",")
        if parts[-1] is ...:
            return tuple(from_text(item.strip(" '\""), parts[0]) for item in items if item.strip())
        return tuple(from_text(item, part) for item, part in zip(items, parts, strict=True))
    if hint is types.NoneType:
        if text.strip().lower() != "none":
            raise ValueError
        return None
    if hint is bool:
        if text.strip().lower() not in _BOOLS:
            raise ValueError
        return _BOOLS[text.strip().lower()]
    return _whole_number(text) if hint is int else hint(text)


def _first_that_fits(text: str, hints: tuple[Any, ...]) -> Any:
    for hint in hints[:-1]:
        try:
            return from_text(text, hint)
        except ValueError:
            continue
    return from_text(text, hints[-1])


def _whole_number(text: str) -> int:
    """Reads "1000", "1_000", "0x10", "1e3" or "1000.0"; raises a ValueError for 1.5."""
    try:
        return int(text, 0)
    except ValueError:
        number = float(text)
    if not number.is_integer():
        raise ValueError
    return int(number)
