"""WebDataset's tars as original images: members of one name before the first dot are a sample."""

import dataclasses
import glob
import json
import logging
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from uvit_jax.data.image_formats import extensions
from uvit_jax.data.image_sources.decoding import RGB, Decoding, decode
from uvit_jax.data.image_sources.image_source import CorruptImage, SourceImage
from uvit_jax.data.image_sources.metadata import Entry, read_entry
from uvit_jax.data.image_sources.metadata_labels import number_classes
from uvit_jax.data.image_sources.passed_over import PassedOver
from uvit_jax.data.image_sources.sidecars import caption_lines
from uvit_jax.data.image_sources.tar_members import Member, read_members
from uvit_jax.data.names import printable
from uvit_jax.errors import UserError, counted

LOG = logging.getLogger("uvit_jax")

PREFIX = "wds:"
_TEXTS = ("cls", "json", "txt")
# The sample's name, and what follows the first dot of the file's own name.
_NAME = re.compile(r"((?:.*/)?[^/.]+)\.([^/]+)", re.DOTALL)
_BRACES = re.compile(r"\{([^{}]*)\}")
_NUMBERS = re.compile(r"([0-9]+)\.\.([0-9]+)")


@dataclasses.dataclass(frozen=True)
class TarImages:
    """Images inside tars, each read from its place when it is asked for.

    Attributes:
      name: "wds:" and the pattern of the tars, without its folder.
      tars: the files.
      files: each image, as "<tar>/<member>".
      places: of each image: the number of its tar, its offset there and its size, in bytes.
      labels: class of each image; -1 for unknown.
      class_names: one for each class; () without.
      captions: of each image; () where there are none.
      faults: sentences on images that are known to be broken, by index.
      decoding: how files become pixels.
    """

    name: str
    tars: Sequence[pathlib.Path]
    files: Sequence[str]
    places: Int[np.ndarray, "n 3"]
    labels: Int[np.ndarray, " n"]
    class_names: Sequence[str]
    captions: Sequence[tuple[str, ...]]
    faults: Mapping[int, str]
    decoding: Decoding

    def __len__(self) -> int:
        return len(self.files)

    def label(self, index: int) -> int:
        """The class of the image at this index; -1 for unknown."""
        return int(self.labels[index])

    def listing(self) -> list[Any]:
        """Files and their sizes, labels, class names and captions, as JSON values."""
        sizes = self.places[:, 2].tolist()
        labels, names = self.labels.tolist(), list(self.class_names)
        return [list(self.files), sizes, labels, names, list(self.captions)]

    def __getitem__(self, index: int) -> SourceImage:
        """The image at this index.

        Raises:
          CorruptImage: for a sample without an image, a whole one or a readable label or caption.
          UserError: for a tar that can't be read any more.
        """
        if index in self.faults:
            raise CorruptImage(self.faults[index])
        tar, offset, size = self.places[index].tolist()
        path = self.tars[tar]
        try:
            with path.open("rb") as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            shown = printable(str(path))
            raise UserError(f"{shown} can't be read ({error.strerror}), expected a tar") from None
        name = self.files[index]
        captions = self.captions[index] if self.captions else ()
        return SourceImage(
            decode(data, f"{name} of {self.name}", self.decoding), self.label(index), captions, name
        )


def open_tars(
    source: str, split: str, decoding: Decoding = RGB, *, texts: bool = False
) -> TarImages:
    """The samples of these tars, in the order of the tars and of the members in each.

    A sample is the members of one tar whose names agree up to the first dot: one image, and a .cls
    (a class's number or name), a .txt (a caption a line) or a .json (an object with `label` and
    `text`, as a line of a metadata.jsonl). Members without a dot, or hidden, are passed over. All
    headers are read once, at the opening.

    Args:
      source: "wds:train-{000..009}.tar"; {a,b} and the wildcards of a shell work as well.
      split: "train", the default: the pattern alone says which tars are wanted.
      decoding: how files become pixels.
      texts: True if captions are wanted.

    Raises:
      UserError: for a pattern that names no tar, a tar that is missing, compressed or damaged, one
        with two members of a name, or labels of which some are names and others numbers.
    """
    if split != "train":
        raise UserError(
            f"split is {split!r}, which {source!r} has not, expected none: the pattern of the tars "
            "says which part is read"
        )
    tars, passed = _tars(source), PassedOver()
    LOG.info("reading the headers of %s: %s", counted(len(tars), "tar"), source)
    root = os.path.commonpath([path.absolute().parent for path in tars])
    samples = [
        _Sample.of(number, os.path.relpath(path, root), key, members, texts=texts)
        for number, path in enumerate(tars)
        for key, members in _grouped(path, passed).items()
    ]
    if passed:
        LOG.info("passed over in %s: %s", source, passed)
    if not samples:
        raise UserError(f"{source} has no samples, expected members like 000.jpg and 000.cls")
    said = any(sample.entry.captions for sample in samples)
    labels, class_names = _labels(source, samples)
    return TarImages(
        PREFIX + printable(pathlib.PurePath(source.removeprefix(PREFIX)).name),
        tars,
        [sample.entry.where for sample in samples],
        np.array([sample.place for sample in samples], np.int64),
        labels,
        class_names,
        [sample.entry.captions for sample in samples] if said else (),
        {i: fault for i, sample in enumerate(samples) if (fault := sample.fault_if(captions=said))},
        decoding,
    )


@dataclasses.dataclass(frozen=True, slots=True)
class _Sample:
    """A sample's image and texts; a broken one has a sentence on what is wrong."""

    place: tuple[int, int, int]
    entry: Entry
    fault: str = ""

    @classmethod
    def of(
        cls,
        number: int,
        tar: str,
        key: str,
        members: Mapping[str, Member],
        *,
        texts: bool,
    ) -> "_Sample":
        """The sample of these members, by extension; number: of the tar of this name."""
        where, place = printable(f"{tar}/{key}"), (number, 0, 0)
        try:
            image = _image(where, members)
            where, place = printable(f"{tar}/{image.name}"), (number, image.offset, image.size)
            return cls(place, _entry(where, members, texts=texts))
        except UserError as error:
            return cls(place, Entry(where, None, ()), str(error))

    def fault_if(self, *, captions: bool) -> str:
        """The fault; captions: True where other samples have some."""
        if captions and not self.fault and not self.entry.captions:
            return f"{self.entry.where} has no caption, expected one as other samples have"
        return self.fault


def _tars(source: str) -> list[pathlib.Path]:
    """The files that a pattern names, each once, in its order; a wildcard's by name."""
    found: dict[str, None] = {}
    for pattern in _expanded(source, source.removeprefix(PREFIX)):
        matches = sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern]
        if not matches or not pathlib.Path(matches[0]).is_file():
            raise UserError(
                f"source is {source!r}, but there is no file {pattern!r}, expected "
                "'wds:<path>-{000..009}.tar' with tars that are there"
            )
        found |= dict.fromkeys(matches)
    return [pathlib.Path(name) for name in found]


def _expanded(source: str, pattern: str) -> Iterator[str]:
    """The patterns that braces stand for, as a shell expands {000..009} and {a,b}."""
    braces = _BRACES.search(pattern)
    if braces is None:
        yield pattern
        return
    numbers = _NUMBERS.fullmatch(braces[1])
    if numbers and int(numbers[1]) <= int(numbers[2]):
        first, last = numbers[1], numbers[2]
        width = max(len(first), len(last)) if "0" in (first[0], last[0]) else 0
        parts = [f"{i:0{width}d}" for i in range(int(first), int(last) + 1)]
    elif "," in braces[1]:
        parts = braces[1].split(",")
    else:
        raise UserError(f"source is {source!r}, expected {braces[0]} to be like {{000..009}}")
    for part in parts:
        yield from _expanded(source, pattern[: braces.start()] + part + pattern[braces.end() :])


def _grouped(path: pathlib.Path, passed: PassedOver) -> dict[str, dict[str, Member]]:
    """The members of each sample of a tar, by the sample's name and by extension."""
    samples: dict[str, dict[str, Member]] = {}
    known = {*extensions(), *_TEXTS}
    for member in read_members(path, lambda name: _kind(name) in _TEXTS):
        parts = _NAME.fullmatch(member.name)
        if parts is None:
            passed.add(member.name)
            continue
        sample = samples.setdefault(parts[1], {})
        extension = parts[2].lower()
        if extension in sample:
            shown = printable(str(path))
            raise UserError(f"{shown} has {member.name!r} twice, expected each member once")
        sample[extension] = member
        if _kind(member.name) not in known:
            passed.add(member.name)
    return samples


def _kind(name: str) -> str:
    return name.rpartition(".")[2].lower()


def _image(where: str, members: Mapping[str, Member]) -> Member:
    """The one image of a sample: x.jpg before x.seg.png."""
    images = [extension for extension in members if _kind(extension) in extensions()]
    found = [extension for extension in images if "." not in extension] or images
    if len(found) != 1:
        there = ", ".join(f".{extension}" for extension in found or members)
        raise UserError(f"{where} has {there}, expected one image")
    return members[found[0]]


def _entry(where: str, members: Mapping[str, Member], *, texts: bool) -> Entry:
    """The label and captions of a sample: a .cls and a .txt count before a .json."""
    fields: dict[str, Any] = {}
    if "json" in members:
        fields = _json(f"{where}: its .json", _text(where, members["json"]))
    if "cls" in members:
        fields = {name: value for name, value in fields.items() if name != "labels"}
        fields["label"] = _text(where, members["cls"]).strip()
    entry = read_entry(where, fields)
    if texts and "txt" in members:
        content = _text(where, members["txt"])
        return dataclasses.replace(entry, captions=caption_lines(f"{where}: its .txt", content))
    return entry if texts else dataclasses.replace(entry, captions=())


def _text(where: str, member: Member) -> str:
    if member.content is None:
        raise UserError(
            f"{where}: its .{_kind(member.name)} has {member.size:,} bytes, expected at most 1 MiB"
        )
    try:
        return member.content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = member.content[error.start]
        raise UserError(
            f"{where}: its .{_kind(member.name)} has the byte 0x{byte:02x} at offset "
            f"{error.start}, expected UTF-8"
        ) from None


def _json(where: str, text: str) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON ({error}), expected an object") from None
    if not isinstance(fields, dict):
        raise UserError(f"{where} is {text!r:.60}, expected an object with a label or a text")
    return fields


def _labels(source: str, samples: Sequence[_Sample]) -> tuple[np.ndarray, Sequence[str]]:
    """Labels of all samples, -1 for those without, and the classes' names."""
    labels = np.full(len(samples), -1, np.int32)
    given = [i for i, sample in enumerate(samples) if sample.entry.label is not None]
    if not given:
        return labels, ()
    entries = [samples[i].entry for i in given]
    in_rows = {entry.where: entry.label for entry in entries}
    labels[given], class_names = number_classes(
        source, in_rows, [entry.label for entry in entries], ()
    )
    return labels, class_names
