"""Labels and captions of a folder's images, from metadata files as Hugging Face's `imagefolder`
reads them.
"""

import collections
import dataclasses
import logging
import math
import pathlib
import posixpath
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from uvit_jax.data.image_sources.metadata_files import Row, read_rows, short
from uvit_jax.errors import UserError, counted

LOG = logging.getLogger("uvit_jax")

# Far above any data set's, far below what a number of another meaning (a time, an identity) would
# ask for.
MAX_CLASSES = 1_000_000

_FILE, _FILES = "file_name", "_file_name"
_LABELS = ("label", "labels")
_CAPTIONS = ("text", "caption", "texts", "captions")
_NUMBER = re.compile(r"(-?[0-9]{1,10})(?:\.0*)?")
_UNKNOWN = -1


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What is known of each of a folder's files.

    Attributes:
      labels: class of each file; -1 where there are no classes.
      class_names: one for each class; () without.
      captions: of each file; () where there are none.
    """

    labels: Int[np.ndarray, " n"]
    class_names: Sequence[str]
    captions: Sequence[tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class Table:
    """A metadata file, and where its rows' images are.

    Attributes:
      path: the file.
      prefix: its folder relative to the images', "" or "cats/".
      part: of a file beside the parts of a data set, the one that is read, "train/"; rows of others
        are passed over.
    """

    path: pathlib.Path
    prefix: str = ""
    part: str = ""

    def place(self, name: str) -> str | None:
        """The file that a row names, relative to the images' folder; None for one of another part."""
        name = posixpath.normpath(name)
        if not self.part:
            return self.prefix + name
        return name.removeprefix(self.part) if name.startswith(self.part) else None


@dataclasses.dataclass(frozen=True)
class _Entry:
    where: str
    label: int | str | None
    captions: tuple[str, ...]


def read_metadata(tables: Sequence[Table], files: Sequence[str]) -> Metadata:
    """Labels and captions of these files, in their order.

    A row is an object, as in a metadata.jsonl: `{"file_name": "a.jpg", "label": 3, "text": "a
    cat"}`. Its file is relative to the metadata's own folder. The label is a number (a class is
    then called by its number) or a class's name (classes are then in the order of their names);
    names that are all whole numbers are numbers, as every cell of a CSV is text. The caption
    (`text` or `caption`) is a string or a list of them. Either may be missing, from all rows or
    from none; labels that are all -1 are unknown, hence none. Other columns are passed over, and
    named. Every image has exactly one row: an image left out by mistake would otherwise be lost in
    silence.

    Args:
      tables: the metadata files.
      files: images there are, relative to their folder.

    Raises:
      UserError: naming the row that is not as above, or the image that has none.
    """
    shown = " and ".join(str(table.path) for table in tables)
    entries: dict[str, _Entry] = {}
    elsewhere: list[_Entry] = []
    others: collections.Counter[str] = collections.Counter()
    images = frozenset(files)
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
                elsewhere.append(_entry(where, fields))
                continue
            if file not in images:
                raise UserError(f"{where} names {named!r}, expected an image in that folder")
            if file in entries:
                raise UserError(
                    f"{where} names {named!r} as {_place(entries[file].where)} does, expected one "
                    f"for each"
                )
            entries[file] = _entry(where, fields)
            others.update(fields.keys() - {file_column, *_LABELS, *_CAPTIONS})
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
    _check_alike("caption", {entry.where: bool(entry.captions) for entry in entries.values()})
    labels, class_names = _classes(
        shown, ordered, list(entries.values()), {entry.label for entry in elsewhere}
    )
    captions = [entry.captions for entry in ordered] if ordered[0].captions else []
    if others:
        LOG.info("passed over in %s: the columns %s", shown, ", ".join(map(repr, sorted(others))))
    return Metadata(labels, class_names, captions)


def check_characters(where: str, caption: str) -> None:
    """Refuses a caption that can't be written as UTF-8, as JSON's escapes allow half of a pair of
    surrogates.

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


def _entry(where: str, fields: Mapping[str, Any]) -> _Entry:
    label, said = _only(where, fields, _LABELS), _only(where, fields, _CAPTIONS)
    return _Entry(
        where,
        _label(f'{where}: "{label}"', fields.get(label)),
        _captions(f'{where}: "{said}"', fields.get(said)),
    )


def _only(where: str, fields: Mapping[str, Any], names: Sequence[str]) -> str:
    """The one of these columns that is there; the first of the names where none is."""
    found = [name for name in names if name in fields]
    if len(found) > 1:
        raise UserError(f'{where} has a "{found[0]}" and a "{found[1]}", expected one of them')
    return found[0] if found else names[0]


def _label(where: str, label: Any) -> int | str | None:
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if label is None or (isinstance(label, float) and math.isnan(label)):
        return None
    if isinstance(label, str) and label:
        return label
    if isinstance(label, int) and not isinstance(label, bool):
        return label
    raise UserError(
        f"{where} is {short(label)}, expected the name of a class or its number in "
        f"0..{MAX_CLASSES - 1}"
    )


def _captions(where: str, value: Any) -> tuple[str, ...]:
    captions = () if value is None else tuple(value) if isinstance(value, list) else (value,)
    for caption in captions:
        if not isinstance(caption, str):
            raise UserError(f"{where} is {short(value)}, expected a string or a list of strings")
        check_characters(where, caption)
    return captions


def _check_alike(field: str, kinds: Mapping[str, Any]) -> None:
    """Refuses a field of one kind in some rows and of another, or missing, in others; names the
    first of the fewer.
    """
    if len(set(kinds.values())) < 2:
        return
    usual = collections.Counter(kinds.values()).most_common(1)[0][0]
    where, kind = next((where, kind) for where, kind in kinds.items() if kind != usual)
    words = {True: "given", False: "missing"}
    raise UserError(
        f"{where}: the {field} is {words.get(kind, kind)}, expected what most lines have: "
        f"{words.get(usual, usual)}"
    )


def _classes(
    shown: str,
    ordered: Sequence[_Entry],
    in_rows: Sequence[_Entry],
    others: Collection[int | str | None],
) -> tuple[np.ndarray, list[str]]:
    """Numbers of the classes of the ordered entries, and the classes' names.

    Args:
      shown: what to call the metadata.
      ordered: in the order of the images.
      in_rows: the same in the order of the metadata's rows, for errors.
      others: labels of other parts of the data set: a class has the same number in each.
    """
    kinds = {int: "a number", str: "a name"}
    _check_alike(
        "label", {entry.where: kinds.get(type(entry.label), "missing") for entry in in_rows}
    )
    labels = [entry.label for entry in ordered]
    names = sorted({label for label in labels if isinstance(label, str)})
    if not all(map(_NUMBER.fullmatch, names)):
        for entry in in_rows:
            number = _NUMBER.fullmatch(str(entry.label))
            # An unknown class among names, or no whole number among numbers.
            if (number and int(number[1]) < 0) or (not number and all(map(_is_decimal, names))):
                raise _no_class(entry)
        names = sorted(
            {
                *names,
                *(other for other in others if isinstance(other, str) and not _is_decimal(other)),
            }
        )
        index = {name: i for i, name in enumerate(names)}
        return np.array([index[str(label)] for label in labels], np.int32), names
    numbers = {entry.where: _number(entry.label) for entry in in_rows}
    if labels[0] is None or set(numbers.values()) == {_UNKNOWN}:
        if labels[0] is not None:
            LOG.info(
                "%s has the label -1 in every line, which is no class: its images are without "
                "labels",
                shown,
            )
        return np.full(len(labels), _UNKNOWN, np.int32), []
    for entry in in_rows:
        if not 0 <= numbers[entry.where] < MAX_CLASSES:
            raise _no_class(entry)
    found = np.array([numbers[entry.where] for entry in ordered], np.int32)
    known = {
        _number(other) for other in others if not isinstance(other, str) or _NUMBER.fullmatch(other)
    }
    classes = {*found.tolist(), *(number for number in known if 0 <= number < MAX_CLASSES)}
    _tell_empty_classes(shown, classes)
    return found, [str(i) for i in range(max(classes) + 1)]


def _is_decimal(name: str) -> bool:
    """Whether a name is a number, as 1.5 in a column of numbers."""
    try:
        return math.isfinite(float(name))
    except ValueError:
        return False


def _number(label: int | str | None) -> int:
    if isinstance(label, str):
        found = _NUMBER.fullmatch(label)
        assert found is not None
        return int(found[1])
    return _UNKNOWN if label is None else label


def _no_class(entry: _Entry) -> UserError:
    return UserError(
        f'{entry.where}: "label" is {entry.label}, expected the name of a class or its number in '
        f"0..{MAX_CLASSES - 1}"
    )


def _tell_empty_classes(shown: str, found: Collection[int]) -> None:
    """Warns of the classes between 0 and the highest label that no image has: labels may have been
    counted from 1.
    """
    empty = [label for label in range(max(found) + 1) if label not in found]
    if empty:
        first = ", ".join(map(str, empty[:5])) + ", ..." * (len(empty) > 5)
        LOG.warning(
            "%s has labels %d to %d and so %s without images (%s), which the model has rows for: "
            "labels are kept as they are, expected to be counted from 0 without gaps",
            shown,
            min(found),
            max(found),
            counted(len(empty), "class", "classes"),
            first,
        )
