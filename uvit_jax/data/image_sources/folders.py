"""Folders of image files: a class a sub-folder (ImageNet), or metadata files (Hugging Face)."""

import dataclasses
import logging
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from uvit_jax.data.image_formats import extensions
from uvit_jax.data.image_sources import passed_over
from uvit_jax.data.image_sources.decoding import RGB, Decoding, decode
from uvit_jax.data.image_sources.folder_scan import FolderScan
from uvit_jax.data.image_sources.image_source import SourceImage
from uvit_jax.data.image_sources.metadata import Table, read_metadata
from uvit_jax.data.image_sources.metadata_files import FILE_NAMES
from uvit_jax.data.image_sources.passed_over import PassedOver
from uvit_jax.data.image_sources.sidecars import TEXT, read_sidecars
from uvit_jax.data.names import printable
from uvit_jax.errors import UserError

LOG = logging.getLogger("uvit_jax")

# Sub-folders of these names are parts of a data set, not classes of one.
_SPLITS = frozenset({"train", "val", "valid", "validation", "test"})


@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """Image files of one folder, decoded when they are asked for.

    Attributes:
      name: what a manifest calls it: the folder's name, or "coco:<folder>:<split>".
      root: the folder itself.
      files: paths relative to it, with forward slashes.
      labels: class of each file; -1 without classes.
      class_names: one for each class; () without.
      captions: of each file; () where there are none.
      decoding: how files become pixels.
    """

    name: str
    root: pathlib.Path
    files: Sequence[str]
    labels: Int[np.ndarray, " n"]
    class_names: Sequence[str] = ()
    captions: Sequence[tuple[str, ...]] = ()
    decoding: Decoding = RGB

    def __len__(self) -> int:
        return len(self.files)

    def label(self, index: int) -> int:
        """The class of the image at this index; -1 without classes."""
        return int(self.labels[index])

    def listing(self) -> list[Any]:
        """Files, labels, class names and captions, as JSON values."""
        names, captions = list(self.class_names), list(self.captions)
        return [list(self.files), self.labels.tolist(), names, captions]

    def __getitem__(self, index: int) -> SourceImage:
        """The image at this index.

        Raises:
          CorruptImage: for a file that is not a whole image.
          UserError: for a file that can't be read at all, often the fault of the disk.
        """
        file = self.files[index]
        path = self.root / file
        shown = printable(str(path))
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(
                f"{shown} can't be read ({error.strerror}), expected an image"
            ) from None
        captions = self.captions[index] if self.captions else ()
        return SourceImage(
            decode(data, shown, self.decoding), int(self.labels[index]), captions, printable(file)
        )


def open_folder(
    source: pathlib.Path, split: str = "train", decoding: Decoding = RGB, *, texts: bool = False
) -> ImageFolder:
    """The images of `<source>/<split>`; of `source` itself for "train" where it has no parts.

    Sub-folders are classes, in the order of their names, and may have sub-folders of their own; a
    folder with images directly inside is flat. A metadata.jsonl, .csv or .parquet (in the folder,
    in one below, or beside the parts) gives labels and captions, see `metadata.read_metadata`.
    Files are in the order of their names. One line of the log counts what is passed over: hidden
    files and folders, and files whose extension is not an image's. No image is opened.

    Args:
      source: the folder.
      split: the sub-folder of the part that is wanted.
      decoding: how files become pixels.
      texts: True if captions are wanted: without metadata, those of the .txt beside each image.

    Raises:
      UserError: for a folder that has no such part or no images, has a class without images, or
        both images and classes; and for a "train" that may also be one of its classes.
    """
    root = source / split
    scan = FolderScan(source)
    top = scan.entries()
    if root.is_dir():
        _check_is_part(source, split, top.folders)
        beside = [Table(path, part=f"{split}/") for path in top.tables]
        return _open(root, source, decoding, beside, texts=texts)
    folders = top.folders
    parts = [folder for folder in folders if folder.lower() in _SPLITS]
    if split != "train" or (parts and len(parts) == len(folders)):
        there = f"the folders {', '.join(map(repr, folders[:5]))}" if folders else "no folders"
        raise UserError(
            f"split is {split!r}, but {source} has {there}, expected a folder of that name in it"
        )
    if len(folders) == 1 and not top.images and (source / folders[0] / split).is_dir():
        inside = str(source / folders[0])
        raise UserError(
            f"source is {str(source)!r}, whose only folder holds {split!r}, a part of a data set: "
            f"expected {inside!r}"
        )
    return _open(source, source, decoding, [], texts=texts)


def _check_is_part(source: pathlib.Path, split: str, folders: Sequence[str]) -> None:
    """Refuses a "train" beside classes (apple, bus, train, whale); other splits are unambiguous."""
    if split != "train":
        return
    others = [folder for folder in folders if folder != split and folder.lower() not in _SPLITS]
    classes = [folder for folder in others if FolderScan(source).images_below(f"{folder}/")]
    if classes:
        beside = ", ".join(map(repr, classes[:3])) + ", ..." * (len(classes) > 3)
        raise UserError(
            f"source is {str(source)!r}, whose folder {split!r} may be a part of the data set or a "
            f"class beside {beside}, expected {str(source / split)!r} for that part alone, or all "
            f"classes inside a folder {split!r}"
        )


def _open(
    root: pathlib.Path,
    source: pathlib.Path,
    decoding: Decoding,
    beside: Sequence[Table],
    *,
    texts: bool,
) -> ImageFolder:
    scan, name = FolderScan(root), printable(source.resolve().name)
    top = scan.entries()
    below = {folder: scan.images_below(f"{folder}/") for folder in top.folders}
    files = [*top.images, *(file for found in below.values() for file in found)]
    tables = _tables(scan.tables or beside)
    if scan.tables and beside:
        scan.passed.add(str(beside[0].path), "metadata beside the part, which has its own")
    if not files and not tables:
        found = f"; there are {scan.passed}" if scan.passed else ""
        raise UserError(
            f"{root} has no images, expected files like a.jpg (or "
            f"{', '.join(sorted(extensions()))}){found}"
        )
    if tables:
        metadata = read_metadata(tables, files)
        labels, class_names, captions = metadata.labels, metadata.class_names, metadata.captions
        if not class_names and not top.images:
            LOG.info(
                "%s gives no labels, so the sub-folders of %s are not classes",
                tables[0].path,
                root,
            )
    else:
        labels, class_names = _labels(root, top.images, below, scan.passed)
        captions = read_sidecars(root, files, scan.passed) if texts else []
    if scan.passed:
        LOG.info("passed over in %s: %s", printable(str(root)), scan.passed)
        if not texts and scan.passed.count(TEXT) >= len(files):
            LOG.info(
                "a .txt beside each image is read as its caption where text_encoder.name is set"
            )
    return ImageFolder(name, root, files, labels, class_names, captions, decoding)


def _tables(tables: Sequence[Table]) -> Sequence[Table]:
    """The same tables; refuses two in one folder."""
    folders: dict[pathlib.Path, pathlib.Path] = {}
    for table in tables:
        other = folders.setdefault(table.path.parent, table.path)
        if other != table.path:
            raise UserError(f"{other} is beside a {table.path.name}, expected one of them")
    return tables


def _labels(
    root: pathlib.Path, images: Sequence[str], classes: dict[str, list[str]], passed: PassedOver
) -> tuple[np.ndarray, list[str]]:
    """Labels and class names of the files of a folder without metadata."""
    empty = [folder for folder, files in classes.items() if not files]
    if len(empty) == len(classes):
        for folder in empty:
            passed.add(folder, passed_over.EMPTY_FOLDER)
        return np.full(len(images), -1, np.int32), []
    if images:
        full = next(folder for folder in classes if classes[folder])
        raise UserError(
            f"{root} has images ({images[0]!r}) beside sub-folders of images ({full!r}), expected "
            f"one or the other, or a {' or '.join(FILE_NAMES)}"
        )
    if empty:
        raise UserError(
            f"{root} has {len(empty)} classes without images (first: {empty[0]!r}), expected "
            f"images in each sub-folder"
        )
    names = list(classes)
    if all(name.isascii() and name.isdigit() for name in names) and names != sorted(names, key=int):
        LOG.info(
            "classes are in the order of their folders' names as text: %s, ...",
            ", ".join(names[:3]),
        )
    labels = np.repeat(
        np.arange(len(classes), dtype=np.int32), [len(files) for files in classes.values()]
    )
    return labels, [printable(name) for name in names]
