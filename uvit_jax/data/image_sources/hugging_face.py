"""Data sets of the library `datasets`: the hub's, a folder of `save_to_disk`, or Parquet files."""

import dataclasses
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from uvit_jax.data.image_sources.decoding import RGB, Decoding, decode
from uvit_jax.data.image_sources.image_source import CorruptImage, SourceImage
from uvit_jax.data.image_sources.metadata import CAPTIONS, LABELS, read_entry
from uvit_jax.data.image_sources.metadata_labels import number_classes
from uvit_jax.data.names import printable
from uvit_jax.errors import UserError
from uvit_jax.extras import import_extra

LOG = logging.getLogger("uvit_jax")

PREFIX = "hf:"
# One of these is in the folder that `save_to_disk` writes: of several splits, or of one.
_SAVED = ("dataset_dict.json", "state.json")


@dataclasses.dataclass(frozen=True)
class HuggingFaceImages:
    """One split of a data set, in Arrow files that are read by row.

    Attributes:
      name: "hf:" and the name, without the folders of a local one.
      split: as the library writes it ("train", "train[:10%]").
      rows: the library's data set of the column of images alone, which it leaves undecoded: this
        package decodes them as it does files.
      column: the name of that column.
      labels: class of each image; -1 for unknown.
      class_names: one for each class; () without.
      captions: of each image; () where there are none.
      decoding: how its images become pixels.
    """

    name: str
    split: str
    rows: Any
    column: str
    labels: Int[np.ndarray, " n"]
    class_names: Sequence[str]
    captions: Sequence[tuple[str, ...]]
    decoding: Decoding

    def __len__(self) -> int:
        return len(self.rows)

    def label(self, index: int) -> int:
        """The class of the image at this index; -1 for unknown."""
        return int(self.labels[index])

    def listing(self) -> list[Any]:
        """Each image's file name and size in bytes, where it has them, labels and captions."""
        import pyarrow.compute  # which `datasets` brings

        images = self.rows.with_format("arrow")[:].column(self.column)
        sizes = pyarrow.compute.binary_length(pyarrow.compute.struct_field(images, "bytes"))
        paths = pyarrow.compute.struct_field(images, "path").to_pylist()
        files = [path and path.replace("\\", "/").rpartition("/")[2] for path in paths]
        labels, names = self.labels.tolist(), list(self.class_names)
        return [files, sizes.to_pylist(), labels, names, list(self.captions)]

    def __getitem__(self, index: int) -> SourceImage:
        """The image at this index.

        Raises:
          CorruptImage: for bytes that are not a whole image, and a row without an image or, where
            captions are wanted, a caption.
          UserError: for a row or a file that can't be read at all, often the fault of the disk.
        """
        name = f"{self.split}[{index}]"
        if not 0 <= index < len(self):
            raise IndexError(f"{name} of {len(self)} images")
        captions, shown = self.captions[index] if self.captions else (), f"{name} of {self.name}"
        if self.captions and not captions:
            raise CorruptImage(f"{shown} has no caption, expected one as other images have")
        image = decode(self._bytes(index, shown), shown, self.decoding)
        return SourceImage(image, self.label(index), captions, name)

    def _bytes(self, index: int, shown: str) -> bytes:
        try:
            found = self.rows[index][self.column] or {}
            if found.get("bytes") is not None:
                return found["bytes"]
            if found.get("path"):
                return pathlib.Path(found["path"]).read_bytes()
        except Exception as error:  # of whatever type the library raises
            raise UserError(f"{shown} can't be read ({_first_line(error)})") from None
        raise CorruptImage(f"{shown} has no image, expected one in its column {self.column!r}")


def open_hugging_face(
    source: str, split: str, decoding: Decoding = RGB, *, texts: bool = False
) -> HuggingFaceImages:
    """The images, labels and captions of one split, in columns that are found by their types.

    Images are the column of the type `Image`; without one, of encoded bytes. Labels are that of the
    type `ClassLabel`, whose names are the classes'; without one, `label`, as in a folder's
    metadata. Captions are the column of strings, or lists of strings, that is called `text` or
    `caption`, or the only one. One line of the log says which were taken.

    Args:
      source: "hf:<name>" or "hf:<name>:<config>": a data set of the hub, a folder that
        `save_to_disk` wrote, one with Parquet files or any other that `load_dataset` reads, or one
        Parquet file. No code of a data set is run.
      split: as the library writes it; of a folder of `save_to_disk`, its name alone.
      decoding: how images become pixels.
      texts: True if captions are wanted.

    Raises:
      UserError: where `datasets` isn't installed or can't open the name or the split, and for a
        data set without a column of images.
    """
    datasets = import_extra("datasets", "datasets", f"source is {source!r}")
    found = _open(datasets, source, split)
    image = _image_column(datasets, source, found.features)
    label = _label_column(datasets, source, found.features)
    caption = _caption_column(datasets, found.features) if texts else ""
    name = source.removeprefix(PREFIX)
    if pathlib.Path(name).exists():
        name = pathlib.Path(name).resolve().name
    labels, class_names = _labels(datasets, source, found, label)
    taken = {"images": image, "labels": label, "captions": caption}
    others = sorted(set(found.features) - set(taken.values()))
    LOG.info(
        "%s: %s%s",
        source,
        ", ".join(f"{what} of {column!r}" for what, column in taken.items() if column),
        f"; passed over: {', '.join(others)}" if others else "",
    )
    rows = found.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    return HuggingFaceImages(
        PREFIX + printable(name),
        split,
        rows,
        image,
        labels,
        class_names,
        _captions(source, found, caption) if caption else (),
        decoding,
    )


def _open(datasets: Any, source: str, split: str) -> Any:
    """The library's data set of this split."""
    name, config = source.removeprefix(PREFIX), None
    if not pathlib.Path(name).exists() and ":" in name:
        name, _, config = name.rpartition(":")
    path = pathlib.Path(name)
    try:
        if any((path / file).exists() for file in _SAVED):
            saved = datasets.load_from_disk(name)
            splits = saved if isinstance(saved, dict) else {str(saved.split or "train"): saved}
            builder = None
        elif path.is_file():
            builder = datasets.load_dataset_builder("parquet", data_files=name)
        else:
            builder = datasets.load_dataset_builder(name, config)
        if builder is not None:
            builder.download_and_prepare()
            splits = builder.info.splits
    except Exception as error:  # of the hub, the network, Arrow, or a file's reader
        raise UserError(
            f"source is {source!r}, which can't be opened ({_first_line(error)}), expected a data "
            "set of the hub, a folder of save_to_disk, or Parquet files"
        ) from None
    try:
        return splits[split] if builder is None else builder.as_dataset(split)
    except Exception:
        raise UserError(
            f"split is {split!r}, but {source} has {', '.join(map(repr, splits))}, expected one of "
            "them"
        ) from None


def _image_column(datasets: Any, source: str, features: Mapping[str, Any]) -> str:
    """The column of images; without that type, of bytes, as files written by others have."""
    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    found = images or [
        name
        for name, kind in features.items()
        if getattr(kind, "dtype", "") in ("binary", "large_binary")
        or (isinstance(kind, dict) and {"bytes", "path"} == set(kind))
    ]
    if "image" in found:
        return "image"
    if len(found) != 1:
        columns = ", ".join(f"{name} ({type(kind).__name__})" for name, kind in features.items())
        raise UserError(
            f"{source} has the columns {columns}, expected one of images, or one called 'image'"
        )
    return found[0]


def _label_column(datasets: Any, source: str, features: Mapping[str, Any]) -> str:
    """The column of classes; "" where there is none."""
    classes = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    named = [name for name in LABELS if name in (classes or features)]
    found = named or classes
    if len(found) > 1:
        LOG.warning(
            "%s has labels in the columns %s: taking those of %r",
            source,
            ", ".join(found),
            found[0],
        )
    return found[0] if found else ""


def _caption_column(datasets: Any, features: Mapping[str, Any]) -> str:
    """The column of captions; "" where there is none or none can be told from the others."""
    strings = [
        name
        for name, kind in features.items()
        if _is_string(kind) or _is_string(getattr(kind, "feature", None))
    ]
    strings = [name for name in strings if name not in LABELS]
    named = [name for name in CAPTIONS if name in strings]
    found = named or (strings if len(strings) == 1 else [])
    return found[0] if found else ""


def _is_string(kind: Any) -> bool:
    return getattr(kind, "dtype", "") in ("string", "large_string")


def _labels(
    datasets: Any, source: str, found: Any, column: str
) -> tuple[np.ndarray, Sequence[str]]:
    """The label of each row, -1 for unknown, and the classes' names."""
    if not column:
        return np.full(len(found), -1, np.int32), ()
    values, kind = found.select_columns([column])[:][column], found.features[column]
    if isinstance(kind, datasets.ClassLabel):
        known = [-1 if value is None else value for value in values]
        return np.array(known, np.int32), tuple(map(printable, kind.names))
    entries = [read_entry(f"{source} [{i}]", {"label": label}) for i, label in enumerate(values)]
    in_rows = {entry.where: entry.label for entry in entries}
    return number_classes(source, in_rows, list(in_rows.values()), ())


def _captions(source: str, found: Any, column: str) -> list[tuple[str, ...]]:
    values = found.select_columns([column])[:][column]
    return [read_entry(f"{source} [{i}]", {"text": text}).captions for i, text in enumerate(values)]


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
