"""Every field of a config with its type, default and text, read from the sections' docstrings."""

import dataclasses
import inspect
import re
import typing
from typing import Any

from uvit_jax.checked_fields import words
from uvit_jax.experiment.config import Experiment


@dataclasses.dataclass(frozen=True)
class FieldDoc:
    """Documentation of one field.

    Attributes:
      name: dotted, as "train.steps".
      type: in words, as "float or None".
      default: the value without a config file.
      text: the docstring's, on one line.
    """

    name: str
    type: str
    default: Any
    text: str

    @property
    def section(self) -> str:
        """The section's name; empty for a field of the config itself."""
        return self.name.rpartition(".")[0]


def field_docs() -> list[FieldDoc]:
    """Documents all fields, in the order of the sections and of the fields within."""
    docs = []
    for name, hint in typing.get_type_hints(Experiment).items():
        if dataclasses.is_dataclass(hint):
            docs += _of_class(hint, name + ".")
    return [*_of_class(Experiment, ""), *docs]


def section_texts() -> dict[str, str]:
    """The first paragraph of each section's docstring, by the section's name."""
    hints = typing.get_type_hints(Experiment)
    return {
        name: _one_line(inspect.getdoc(hint).partition("\n\n")[0])  # type: ignore[union-attr]
        for name, hint in hints.items()
        if dataclasses.is_dataclass(hint)
    }


def _of_class(section: Any, prefix: str) -> list[FieldDoc]:
    hints, texts, default = typing.get_type_hints(section), _texts(section), section()
    fields = dataclasses.fields(section)
    # A class's own fields before those of its base.
    own = [field for field in fields if field.name in section.__annotations__]
    return [
        FieldDoc(
            prefix + field.name,
            words(hints[field.name]),
            getattr(default, field.name),
            texts.get(field.name, ""),
        )
        for field in [*own, *(field for field in fields if field not in own)]
        if not dataclasses.is_dataclass(hints[field.name])
    ]


def _texts(section: type) -> dict[str, str]:
    """Texts of the Attributes in the docstrings of a class and, before them, of its bases."""
    found: dict[str, str] = {}
    for base in reversed(section.__mro__):
        if dataclasses.is_dataclass(base):
            found |= attributes(base.__doc__ or "")
    return found


def attributes(docstring: str) -> dict[str, str]:
    """Reads the texts of a docstring's Attributes section by name, each on one line."""
    section = re.search(
        r"^Attributes:\n((?:  .*\n?|\n)*)", inspect.cleandoc(docstring), re.MULTILINE
    )
    if section is None:
        return {}
    entries = re.split(r"^  (?=\w)", section[1], flags=re.MULTILINE)[1:]
    return {name: _one_line(text) for name, _, text in (part.partition(": ") for part in entries)}


def _one_line(text: str) -> str:
    return " ".join(text.split())
