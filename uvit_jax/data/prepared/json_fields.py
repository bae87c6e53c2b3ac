"""Frozen dataclasses to JSON objects and back: no field missing, unknown or of another type."""

import dataclasses
import json
import typing
from typing import Any

from uvit_jax.checked_fields import typed
from uvit_jax.errors import UserError


def to_json(value: Any) -> dict[str, Any]:
    """The fields of a dataclass that differ from their defaults."""
    fields = {
        field.name: (getattr(value, field.name), field.default)
        for field in dataclasses.fields(value)
    }
    return {name: found for name, (found, default) in fields.items() if found != default}


def dumps(value: Any) -> str:
    """JSON on one line, letters of all scripts as they are; ValueError for NaN and infinity."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def from_json(cls: type, what: str, values: Any) -> Any:
    """A dataclass of these values, of which only those with defaults may be missing.

    Args:
      cls: the dataclass; its annotations may be int, float, str, bool, another dataclass (whose
        values the caller has made before), a tuple of one of these, or several of these or None.
      what: to call it in an error.
      values: what JSON holds in its place.

    Raises:
      UserError: a field is missing, unknown or of another type, or what the dataclass itself
        raises.
    """
    hints = typing.get_type_hints(cls)
    if not isinstance(values, dict):
        raise UserError(f"{what} is {values!r:.60}, expected the fields {', '.join(hints)}")
    optional = {
        field.name for field in dataclasses.fields(cls) if field.default is not dataclasses.MISSING
    }
    for name in sorted((hints.keys() - optional - values.keys()) | (values.keys() - hints.keys())):
        raise UserError(
            f"{what} {'lacks the field' if name in hints else 'has the unknown field'} {name!r}"
        )
    made = {}
    for name, value in values.items():
        try:
            made[name] = typed(value, hints[name])
        except TypeError:
            shown = (
                getattr(hints[name], "__name__", "")
                if isinstance(hints[name], type)
                else str(hints[name])
            )
            raise UserError(f"{name} is {value!r:.60}, expected {shown}") from None
    return cls(**made)
