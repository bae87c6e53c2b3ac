"""Labels of metadata files to numbers of classes: from names, from numbers, or unknown (-1)."""

import collections
import logging
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from uvit_jax.data.image_sources.metadata_files import short
from uvit_jax.errors import UserError, counted

LOG = logging.getLogger("uvit_jax")

# Far above any data set's number of classes, far below numbers of another meaning (times, ids).
MAX_CLASSES = 1_000_000

# A class's number or name; None where a row has no label.
Label = int | str | None

_NUMBER = re.compile(r"(-?[0-9]{1,10})(?:\.0*)?")
_UNKNOWN = -1


def read_label(where: str, value: Any) -> Label:
    """The label in a cell of a metadata file.

    Raises:
      UserError: beginning with `where`, for a value that is neither a name nor a whole number.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, str) and value:
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise UserError(
        f"{where} is {short(value)}, expected the name of a class or its number in "
        f"0..{MAX_CLASSES - 1}"
    )


def check_alike(field: str, kinds: Mapping[str, Any]) -> None:
    """Refuses a field that is of one kind in some rows, and of another or missing in others.

    Args:
      field: its name.
      kinds: the kind in each row, by the row's place; True for given and False for missing.

    Raises:
      UserError: naming the first row of the rarer kind.
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


def number_classes(
    shown: str, in_rows: Mapping[str, Label], ordered: Sequence[Label], others: Collection[Label]
) -> tuple[Int[np.ndarray, " n"], list[str]]:
    """Numbers of the classes of the ordered labels, and the classes' names.

    Args:
      shown: name of the metadata, for errors.
      in_rows: the label of each row by the row's place, in the order of the metadata.
      ordered: the same labels in the order of the images.
      others: labels of other parts of the data set: a class has the same number in each.

    Raises:
      UserError: naming the first row whose label is not a class.
    """
    kinds = {int: "a number", str: "a name"}
    check_alike(
        "label", {where: kinds.get(type(each), "missing") for where, each in in_rows.items()}
    )
    names = {label for label in ordered if isinstance(label, str)}
    if not all(map(_NUMBER.fullmatch, names)):
        return _number_names(in_rows, ordered, names, others)
    return _keep_numbers(shown, in_rows, ordered, others)


def _number_names(
    in_rows: Mapping[str, Label],
    ordered: Sequence[Label],
    names: set[str],
    others: Collection[Label],
) -> tuple[Int[np.ndarray, " n"], list[str]]:
    """Classes in the order of their names."""
    for where, label in in_rows.items():
        number = _NUMBER.fullmatch(str(label))
        # An unknown class among names, or a fraction among numbers.
        if (number and int(number[1]) < 0) or (not number and all(map(_is_decimal, names))):
            raise _not_a_class(where, label)
    elsewhere = {label for label in others if isinstance(label, str) and not _is_decimal(label)}
    classes = sorted(names | elsewhere)
    index = {name: i for i, name in enumerate(classes)}
    return np.array([index[str(label)] for label in ordered], np.int32), classes


def _keep_numbers(
    shown: str, in_rows: Mapping[str, Label], ordered: Sequence[Label], others: Collection[Label]
) -> tuple[Int[np.ndarray, " n"], list[str]]:
    """Labels that are numbers already, kept as they are; without classes if all are unknown."""
    numbers = {where: _number(label) for where, label in in_rows.items()}
    if ordered[0] is None or set(numbers.values()) == {_UNKNOWN}:
        if ordered[0] is not None:
            LOG.info(
                "%s has the label -1 in every line, which is not a class: its images are without "
                "labels",
                shown,
            )
        return np.full(len(ordered), _UNKNOWN, np.int32), []
    for where, number in numbers.items():
        if not 0 <= number < MAX_CLASSES:
            raise _not_a_class(where, in_rows[where])
    found = np.array([_number(label) for label in ordered], np.int32)
    elsewhere = {
        _number(label) for label in others if not isinstance(label, str) or _NUMBER.fullmatch(label)
    }
    classes = {*found.tolist(), *(number for number in elsewhere if 0 <= number < MAX_CLASSES)}
    _warn_of_empty_classes(shown, classes)
    return found, [str(i) for i in range(max(classes) + 1)]


def _is_decimal(name: str) -> bool:
    """True for the name "1.5", as a column of numbers has it."""
    try:
        return math.isfinite(float(name))
    except ValueError:
        return False


def _number(label: Label) -> int:
    if isinstance(label, str):
        found = _NUMBER.fullmatch(label)
        assert found is not None
        return int(found[1])
    return _UNKNOWN if label is None else label


def _not_a_class(where: str, label: Label) -> UserError:
    return UserError(
        f'{where}: "label" is {label}, expected the name of a class or its number in '
        f"0..{MAX_CLASSES - 1}"
    )


def _warn_of_empty_classes(shown: str, found: Collection[int]) -> None:
    """Warns of classes below the highest label without images: labels may be counted from 1."""
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
