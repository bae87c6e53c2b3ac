"""Values checked against the annotations of dataclass fields: of a config, or of a JSON object."""

import types
import typing
from typing import Any


def typed(value: Any, hint: Any, *, whole_floats: bool = False) -> Any:
    """Returns a value as the type that an annotation names.

    A list becomes a tuple and an int a float where the annotation asks for that. A bool is not a
    number.

    Args:
      hint: int, float, str, bool, None, another class, a tuple of these, or a union of these.
      whole_floats: True to take 1000.0 (1e3 in Python) for an int.

    Raises:
      TypeError: for a value of another type.
    """
    value = tuple(value) if isinstance(value, list) else value
    kinds = _alternatives(hint)
    if any(_fits(value, kind) for kind in kinds):
        return value
    if type(value) is int and float in kinds:
        return float(value)
    if whole_floats and type(value) is float and value.is_integer() and int in kinds:
        return int(value)
    for kind in kinds:
        parts = _parts(kind, value)
        if parts is not None:
            return tuple(
                typed(item, part, whole_floats=whole_floats)
                for item, part in zip(value, parts, strict=True)
            )
    raise TypeError(f"{value!r} is not of {hint}")


def words(hint: Any) -> str:
    """An annotation in words, as "float or None"; a tuple is of two numbers or of names."""
    kinds = _alternatives(hint)
    if len(kinds) > 1:
        return " or ".join(map(words, kinds))
    if typing.get_origin(hint) is tuple:
        return "a tuple of names" if typing.get_args(hint)[-1] is ... else "two numbers"
    return "None" if hint is types.NoneType else str(hint.__name__)


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """The members of a union; the annotation itself where it is not one."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def _parts(hint: Any, value: Any) -> tuple[Any, ...] | None:
    """The annotation of each item of a tuple; None where the value is not such a tuple."""
    if typing.get_origin(hint) is not tuple or not isinstance(value, tuple):
        return None
    parts = typing.get_args(hint)
    if parts[-1] is ...:
        return (parts[0],) * len(value)
    return parts if len(parts) == len(value) else None


def _fits(value: Any, hint: Any) -> bool:
    """True if a value is of the type that an annotation without unions names, as it is."""
    if typing.get_origin(hint) is tuple:
        parts = _parts(hint, value)
        return parts is not None and all(
            any(_fits(item, kind) for kind in _alternatives(part))
            for item, part in zip(value, parts, strict=True)
        )
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, hint)
