"""Classes asked for by their numbers or by their names, as in "golden retriever, 207"."""

import collections
import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

from uvit_jax.errors import UserError, nearest
from uvit_jax.extras import import_extra
from uvit_jax.models.uvit_inputs import check_labels

_WORDNET_ID = re.compile(r"n\d{8}")


def resolve_labels(
    text: str, classes: int, names: Sequence[str], source: str = ""
) -> tuple[Int[np.ndarray, " n"], Sequence[str]]:
    """Reads a list of classes between commas, each a number or, in any case, a name.

    A number is always the class's id, also where classes are called by other numbers. A name may be
    one of several, as in "tench, Tinca tinca", and may lack what it ends with in parentheses.

    Args:
      text: "0,3,7", "cat, dog" or a mixture.
      classes: number of classes.
      names: of the classes; empty where they are not known.
      source: `config.data.source`; the names of ImageNet's classes are known for it.

    Returns:
      The labels, and the names of the classes.

    Raises:
      UserError: for a class outside the table, an unknown name, or one of several classes.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(map(_is_number, parts)):
        names, more = _known_names(text, names, classes, source)
        labels = _by_name(text, parts, _table(names, more), more or names)
    else:
        labels = [int(part) for part in parts]
    try:
        check_labels(np.array(labels), classes)
    except UserError as error:
        raise UserError(f"config.sample.labels: {error}") from None
    return np.array(labels, np.int32), names


def imagenet_names(asked: str) -> tuple[str, ...]:
    """The names of ImageNet's 1,000 classes in the order of their ids, from TFDS's SI-Score.

    asked: the clause that opens the sentence of an error.

    Raises:
      UserError: where TFDS isn't installed.
    """
    module = import_extra("tensorflow_datasets.datasets.siscore.labels", "tfds", asked)
    return tuple(module.IMAGENET_LABELS_LIST)


def _known_names(
    text: str, names: Sequence[str], classes: int, source: str
) -> tuple[Sequence[str], Sequence[str]]:
    """The names of the classes, and other names of them where there are any."""
    ids = (
        len(names) == 1000
        and all(map(_WORDNET_ID.fullmatch, names))
        and sorted(names) == list(names)
    )
    unnamed = not names and classes == 1000 and pathlib.Path(source).name.startswith("imagenet")
    if not ids and not unnamed:
        return names, ()
    known = imagenet_names(
        f"config.sample.labels is {text!r}, by name and not by number ('0,3,7') of ImageNet's "
        "classes"
    )
    return (names, known) if ids else (known, ())


def _table(*lists: Sequence[str]) -> Mapping[str, list[int]]:
    """The classes of every name in small letters; a whole name is its own class's alone."""
    table: dict[str, list[int]] = collections.defaultdict(list)
    whole: dict[str, list[int]] = collections.defaultdict(list)
    for names in lists:
        for label, name in enumerate(names):
            whole[_key(name)].append(label)
            parts = [_key(part) for part in name.split(",")]
            short = [re.sub(r"\s*\([^()]*\)$", "", part) for part in parts]
            for alias in dict.fromkeys([*parts, *short]):
                table[alias].append(label)
    return {**table, **whole}


def _by_name(
    text: str, parts: Sequence[str], table: Mapping[str, list[int]], names: Sequence[str]
) -> list[int]:
    """Labels of the parts of a text; several parts may be one name with commas of its own."""
    labels, first = [], 0
    while first < len(parts):
        if _is_number(parts[first]):
            labels.append(int(parts[first]))
            first += 1
            continue
        ends = range(len(parts), first, -1)
        joined = ((end, _key(",".join(parts[first:end]))) for end in ends)
        end, found = next(((end, table[key]) for end, key in joined if key in table), (first, []))
        if not found:
            raise UserError(_unknown(text, parts[first], table))
        if len(found) > 1:
            meant = " and ".join(f"{label} ({names[label]})" for label in found)
            raise UserError(
                f"config.sample.labels is {text!r}, and {parts[first]!r} is a name of the classes "
                f"{meant}: expected one of these numbers"
            )
        labels += found
        first = end
    return labels


def _unknown(text: str, part: str, table: Mapping[str, list[int]]) -> str:
    key = _key(part)
    word = re.compile(rf"\b{re.escape(key)}\b")
    close = [name for name in table if key and word.search(name)][:3]
    if not close and (near := nearest(key, table)):
        close = [near]
    hint = "expected 'all' or classes as in '0,3,7'"
    if close:
        hint = f"did you mean {' or '.join(map(repr, close))}?"
    elif named := next((name for name in table if not _is_number(name)), None):
        hint += f", or by name as in {named!r}"
    return f"config.sample.labels is {text!r}, and no known class is called {part!r}, {hint}"


def _key(name: str) -> str:
    """A name in small letters, with one blank after each comma."""
    return ", ".join(" ".join(part.split()) for part in name.casefold().split(","))


def _is_number(part: str) -> bool:
    return re.fullmatch(r"[+-]?\d+", part) is not None
