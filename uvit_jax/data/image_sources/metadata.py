"""Labels and captions of a folder's images, from metadata files as Hugging Face reads them."""

import dataclasses
import logging
import pathlib
import posixpath
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from uvit_jax.data.image_sources.metadata_files import Row, read_rows, short
from uvit_jax.data.image_sources.metadata_labels import (
    Label,
    check_alike,
    number_classes,
    read_label,
)
from uvit_jax.errors import UserError

LOG = logging.getLogger("uvit_jax")

_FILE, _FILES = "file_name", "_file_name"
LABELS = ("label", "labels")
CAPTIONS = ("text", "caption", "texts", "captions")


@dataclasses.dataclass(frozen=True)
class Metadata:
    """Labels and captions of a folder's files.

    Attributes:
      labels: class of each file; -1 without classes.
      class_names: one for each class; () without.
      captions: of each file; () where there are none.
    """

    labels: Int[np.ndarray, " n"]
    class_names: Sequence[str]
    captions: Sequence[tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class Table:
    """A metadata file, and the place of its rows' images.

    Attributes:
      path: the file.
      prefix: its folder relative to the images' folder, "" or "cats/".
      part: "train/" for a file beside the parts of a data set: rows of other parts are passed over.
    """

    path: pathlib.Path
    prefix: str = ""
    part: str = ""

    def place(self, name: str) -> str | None:
        """The file that a row names, relative to the images' folder; None in another part."""
        name = posixpath.normpath(name)
        if not self.part:
            return self.prefix + name
        return name.removeprefix(self.part) if name.startswith(self.part) else None


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """The label and captions of one row, and the row's place for errors."""

    where: str
    label: Label
    captions: tuple[str, ...]


def read_metadata(tables: Sequence[Table], files: Sequence[str]) -> Metadata:
    """Labels and captions of these files, in their order.

    A row is an object, as in a metadata.jsonl: `{"file_name": "a.jpg", "label": 3, "text": "a
    cat"}`. Its file is relative to the metadata's own folder. The label is a number, which is then
    the class's name too, or a class's name; classes are then in the order of their names. Names
    that are all whole numbers are numbers, since every cell of a CSV is text. The caption (`text`
    or `caption`) is a string or a list of strings. Either may be missing from all rows. Labels that
    are all -1 are unknown, as if missing. Other columns are passed over and named in the log. Every
    image has exactly one row, so that none left out by mistake is lost in silence.

    Args:
      tables: the metadata files.
      files: the images, relative to their folder.

    Raises:
      UserError: naming the row that is not as above, or the image that has none.
    """
    shown = " and ".join(str(table.path) for table in tables)
    entries, elsewhere, other_columns = _read_entries(tables, frozenset(files))
    without = [file for file in files if file not in entries]
    if without:
        first = tables[0].part + without[0]
        raise UserError(
            f"{shown} has no line for {len(without)} images (first: {first!r}), expected one for "
            f"each"
        )
    if not entries:
        raise UserError(
            f"{shown} has no lines and its folder no images, expected images and a line for each"
        )
    ordered = [entries[file] for file in files]
    check_alike("caption", {entry.where: bool(entry.captions) for entry in entries.values()})
    labels, class_names = number_classes(
        shown,
        {entry.where: entry.label for entry in entries.values()},
        [entry.label for entry in ordered],
        elsewhere,
    )
    captions = [entry.captions for entry in ordered] if ordered[0].captions else []
    if other_columns:
        columns = ", ".join(map(repr, sorted(other_columns)))
        LOG.info("passed over in %s: the columns %s", shown, columns)
    return Metadata(labels, class_names, captions)


def _read_entries(
    tables: Sequence[Table], images: Collection[str]
) -> tuple[dict[str, Entry], set[Label], set[str]]:
    """The entry of each file, labels of other parts, and the columns passed over."""
    entries: dict[str, Entry] = {}
    elsewhere: set[Label] = set()
    other_columns: set[str] = set()
    for table in tables:
        rows = read_rows(table.path)
        file_column = _file_column(table.path, rows)
        for where, fields in rows:
            named = fields.get(file_column)
            if not isinstance(named, str):
                raise UserError(
                    f'{where} is {short(fields)}, expected an object with a "{file_column}"'
                )
            file = table.place(named)
            if file is None:
                elsewhere.add(read_entry(where, fields).label)
                continue
            if file not in images:
                raise UserError(f"{where} names {named!r}, expected an image in that folder")
            if file in entries:
                raise UserError(
                    f"{where} names {named!r} as {_place(entries[file].where)} does, expected one "
                    f"for each"
                )
            entries[file] = read_entry(where, fields)
            other_columns.update(fields.keys() - {file_column, *LABELS, *CAPTIONS})
    return entries, elsewhere, other_columns


def check_characters(where: str, caption: str) -> None:
    """Refuses half a surrogate pair, which JSON's escapes allow and UTF-8 can't hold.

    Raises:
      UserError: beginning with `where`.
    """
    try:
        caption.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where} has the half character \\u{ord(caption[error.start]):04x}, expected whole "
            f"ones"
        ) from None


def _place(where: str) -> str:
    """ "line 3" of "folder/metadata.jsonl line 3"."""
    return " ".join(where.rsplit(" ", 2)[1:])


def _file_column(path: pathlib.Path, rows: Sequence[Row]) -> str:
    """The column of files' names: `file_name`, or the only one that ends so ("image_file_name")."""
    columns = {name: None for _, fields in rows for name in fields}
    found = [_FILE] if _FILE in columns else [name for name in columns if name.endswith(_FILES)]
    if len(found) > 1:
        raise UserError(
            f"{path} has the columns {' and '.join(found)}, expected one of them: a data set has "
            f"one image an example"
        )
    if not found and rows and path.suffix != ".jsonl":
        raise UserError(f"{path} has the columns {', '.join(columns)}, expected one called {_FILE}")
    return found[0] if found else _FILE


def read_entry(where: str, fields: Mapping[str, Any]) -> Entry:
    """The label and captions of an object with the fields `label` and `text`, or their synonyms.

    Raises:
      UserError: beginning with `where`, for a value of another type, or a field under two names.
    """
    label, said = _only(where, fields, LABELS), _only(where, fields, CAPTIONS)
    return Entry(
        where,
        read_label(f'{where}: "{label}"', fields.get(label)),
        _captions(f'{where}: "{said}"', fields.get(said)),
    )


def _only(where: str, fields: Mapping[str, Any], names: Sequence[str]) -> str:
    """The one of these columns that is there; the first of the names where none is."""
    found = [name for name in names if name in fields]
    if len(found) > 1:
        raise UserError(f'{where} has a "{found[0]}" and a "{found[1]}", expected one of them')
    return found[0] if found else names[0]


def _captions(where: str, value: Any) -> tuple[str, ...]:
    captions = () if value is None else tuple(value) if isinstance(value, list) else (value,)
    for caption in captions:
        if not isinstance(caption, str):
            raise UserError(f"{where} is {short(value)}, expected a string or a list of strings")
        check_characters(where, caption)
    return captions
