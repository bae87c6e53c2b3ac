"""Labels and captions of a flat folder of images, from a metadata.jsonl as Hugging Face's `imagefolder` reads it."""

import collections
import dataclasses
import json
import pathlib
import posixpath
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from uvit_jax.errors import UserError

FILE_NAME = "metadata.jsonl"

# Far above any data set's, far below what a number of another meaning (a time, an identity) would ask for.
_MAX_CLASSES = 1_000_000


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
class _Entry:
    file: str
    label: int | str | None
    captions: tuple[str, ...]


def read_metadata(path: pathlib.Path, files: Sequence[str]) -> Metadata:
    """Labels and captions of these files, in their order.

    One JSON object a line, in UTF-8: `{"file_name": "a.jpg", "label": 3, "text": "a cat"}`. The label is a number (a
    class is then called by its number) or a class's name (classes are then in the order of their names); `text` or
    `caption` is a string or a list of them. Either may be missing, from all lines or from none. Other fields are
    passed over. Every image has exactly one line: an image left out by mistake would otherwise be lost in silence.

    Args:
      path: the metadata.jsonl.
      files: images there are, relative to its folder.

    Raises:
      UserError: naming the line that is not as above, or the image that has none.
    """
    entries = _read_lines(path)
    lines: dict[str, int] = {}
    images = frozenset(files)
    for number, entry in entries.items():
        if entry.file not in images:
            raise UserError(f"{path} line {number} names {entry.file!r}, expected an image in that folder")
        if entry.file in lines:
            raise UserError(
                f"{path} line {number} names {entry.file!r} as line {lines[entry.file]} does, expected one for each"
            )
        lines[entry.file] = number
    without = [file for file in files if file not in lines]
    if without:
        raise UserError(f"{path} has no line for {len(without)} images (first: {without[0]!r}), expected one for each")
    if not entries:
        raise UserError(f"{path} has no lines and its folder no images, expected images and a line for each")
    _check_alike(path, "label", {number: _kind(entry.label) for number, entry in entries.items()})
    _check_alike(path, "caption", {number: bool(entry.captions) for number, entry in entries.items()})

    ordered = [entries[lines[file]] for file in files]
    labels, class_names = _classes([entry.label for entry in ordered])
    captions = [entry.captions for entry in ordered] if ordered[0].captions else []
    return Metadata(labels, class_names, captions)


def check_characters(where: str, caption: str) -> None:
    """Refuses a caption that can't be written as UTF-8, as JSON's escapes allow half of a pair of surrogates.

    Raises:
      UserError: beginning with `where`.
    """
    try:
        caption.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where} has the half character \\u{ord(caption[error.start]):04x}, expected whole ones"
        ) from None


def _read_lines(path: pathlib.Path) -> dict[int, _Entry]:
    try:
        # Not splitlines(): JSON's strings may hold other line separators of Unicode's.
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror})") from None
    return {number: _parse(f"{path} line {number}", line) for number, line in enumerate(lines, 1) if line.strip()}


def _parse(where: str, line: bytes) -> _Entry:
    try:
        fields = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        byte = line[error.start]
        raise UserError(f"{where} has the byte 0x{byte:02x} at column {error.start + 1}, expected UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is no JSON ({error}), expected an object a line") from None
    if not isinstance(fields, dict) or not isinstance(fields.get("file_name"), str):
        raise UserError(f'{where} is {_short(fields)}, expected an object with a "file_name"')
    if "text" in fields and "caption" in fields:
        raise UserError(f'{where} has a "text" and a "caption", expected one of them')
    key = "text" if "text" in fields else "caption"
    return _Entry(
        posixpath.normpath(fields["file_name"]),
        _label(where, fields.get("label")),
        _captions(f'{where}: "{key}"', fields.get(key)),
    )


def _label(where: str, label: Any) -> int | str | None:
    if label is None or (isinstance(label, str) and label):
        return label
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < _MAX_CLASSES:
        return label
    raise UserError(
        f'{where}: "label" is {_short(label)}, expected the name of a class or its number in 0..{_MAX_CLASSES - 1}'
    )


def _captions(where: str, value: Any) -> tuple[str, ...]:
    captions = () if value is None else tuple(value) if isinstance(value, list) else (value,)
    for caption in captions:
        if not isinstance(caption, str):
            raise UserError(f"{where} is {_short(value)}, expected a string or a list of strings")
        check_characters(where, caption)
    return captions


def _kind(label: int | str | None) -> str:
    return {int: "a number", str: "a name"}.get(type(label), "missing")


def _check_alike(path: pathlib.Path, field: str, kinds: dict[int, Any]) -> None:
    """Refuses a field of one kind in some lines and of another, or missing, in others; names the first of the fewer."""
    if len(set(kinds.values())) < 2:
        return
    usual = collections.Counter(kinds.values()).most_common(1)[0][0]
    number, kind = next((number, kind) for number, kind in kinds.items() if kind != usual)
    words = {True: "given", False: "missing"}
    raise UserError(
        f"{path} line {number}: the {field} is {words.get(kind, kind)}, expected what most lines have: "
        f"{words.get(usual, usual)}"
    )


def _classes(labels: list[int | str | None]) -> tuple[np.ndarray, list[str]]:
    """Numbers of the classes, and their names."""
    names = sorted({label for label in labels if isinstance(label, str)})
    if names:
        index = {name: i for i, name in enumerate(names)}
        return np.array([index[str(label)] for label in labels], np.int32), names
    numbers = np.array([-1 if label is None else label for label in labels], np.int32)
    return numbers, [str(i) for i in range(numbers.max() + 1)]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
