"""Folders of image files: sub-folders as classes, as ImageNet's, or one flat folder with an optional metadata.jsonl."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from uvit_jax.data.decoding import Original, decode
from uvit_jax.data.metadata import FILE_NAME as METADATA
from uvit_jax.data.metadata import read_metadata
from uvit_jax.errors import UserError

EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff"})

# Sub-folders of these names are parts of a data set, not classes of one.
_SPLITS = frozenset({"train", "val", "valid", "validation", "test"})


@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """Image files of one folder, decoded when they are asked for.

    Attributes:
      name: what a manifest calls it: the folder's name, or "coco:<folder>:<split>".
      root: the folder itself.
      files: paths relative to it, with forward slashes.
      labels: class of each file; -1 where there are no classes.
      class_names: one for each class; () without.
      captions: what is said about each file; () where nothing is said about any.
    """

    name: str
    root: pathlib.Path
    files: Sequence[str]
    labels: Int[np.ndarray, " n"]
    class_names: Sequence[str] = ()
    captions: Sequence[tuple[str, ...]] = ()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Original:
        """The image at this index, in RGB.

        Raises:
          CorruptImage: for a file that is no whole image.
          UserError: for a file that can't be read at all, which may say more about the disk than about the image.
        """
        file = self.files[index]
        path = self.root / file
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path} can't be read ({error.strerror}), expected an image") from None
        captions = self.captions[index] if self.captions else ()
        return Original(decode(data, str(path)), int(self.labels[index]), captions, file)


def open_folder(source: pathlib.Path, split: str = "train") -> ImageFolder:
    """The images of `<source>/<split>`, or of `source` itself where it has no parts and the split is "train".

    Sub-folders are classes, in the order of their names, and may have sub-folders of their own; a folder with images
    directly inside is flat, and has labels and captions where its metadata.jsonl gives them (see
    `metadata.read_metadata`). Files are in the order of their names. Hidden files and folders (".name") are passed
    over, and so are files that are no images by their extension. No file is opened.

    Raises:
      UserError: for a folder that isn't there, has no such part or no images, has a class without images, or both
        images and classes; and for a "train" that may as well be one of its classes.
    """
    if not source.is_dir():
        found = "is a file" if source.exists() else "doesn't exist"
        raise UserError(f"source is {str(source)!r}, which {found}, expected a folder of images or 'tfds:<name>'")
    name = source.resolve().name
    root = source / split
    _, folders = _scan(source)
    if root.is_dir():
        _check_is_part(source, split, folders)
        return _open(root, name)
    parts = [folder for folder in folders if folder.lower() in _SPLITS]
    if split != "train" or (parts and len(parts) == len(folders)):
        there = f"the folders {', '.join(map(repr, folders[:5]))}" if folders else "no folders"
        raise UserError(f"split is {split!r}, but {source} has {there}, expected a folder of that name in it")
    return _open(source, name)


def _check_is_part(source: pathlib.Path, split: str, folders: Sequence[str]) -> None:
    """Refuses a "train" beside classes (apple, bus, train, whale); another split was asked for by its name."""
    if split != "train":
        return
    others = [folder for folder in folders if folder != split and folder.lower() not in _SPLITS]
    classes = [folder for folder in others if _images_below(source, f"{folder}/")]
    if classes:
        beside = ", ".join(map(repr, classes[:3])) + ", ..." * (len(classes) > 3)
        raise UserError(
            f"source is {str(source)!r}, whose folder {split!r} may be a part of the data set or a class beside "
            f"{beside}, expected {str(source / split)!r} for that part alone, or all classes inside a folder {split!r}"
        )


def _open(root: pathlib.Path, name: str) -> ImageFolder:
    if (root / METADATA).is_file():
        files = _images_below(root)
        metadata = read_metadata(root / METADATA, files)
        return ImageFolder(name, root, files, metadata.labels, metadata.class_names, metadata.captions)
    images, folders = _scan(root)
    classes = {folder: _images_below(root, f"{folder}/") for folder in folders}
    empty = [folder for folder, files in classes.items() if not files]
    if not images and len(empty) == len(folders):
        raise UserError(f"{root} has no images, expected files like a.jpg (or {', '.join(sorted(EXTENSIONS))})")
    if len(empty) == len(folders):
        return ImageFolder(name, root, images, np.full(len(images), -1, np.int32))
    if images:
        full = next(folder for folder in folders if classes[folder])
        raise UserError(
            f"{root} has images ({images[0]!r}) beside sub-folders of images ({full!r}), expected one or the other, or "
            f"a {METADATA}"
        )
    if empty:
        raise UserError(
            f"{root} has {len(empty)} classes without images (first: {empty[0]!r}), expected images in each sub-folder"
        )
    counts = [len(files) for files in classes.values()]
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), counts)
    return ImageFolder(name, root, [file for files in classes.values() for file in files], labels, list(classes))


def _images_below(root: pathlib.Path, prefix: str = "") -> list[str]:
    """The images of `<root>/<prefix>` and below it, relative to root: a folder's own first, then its sub-folders'."""
    images, folders = _scan(root / prefix)
    found = [prefix + image for image in images]
    for folder in folders:
        found += _images_below(root, f"{prefix}{folder}/")
    return found


def _scan(folder: pathlib.Path) -> tuple[list[str], list[str]]:
    """The names of the images and of the folders in a folder, each in order.

    The kind of an entry comes with its name, so that a million of them cost no look at each; only links are followed.
    """
    images, folders = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    folders.append(entry.name)
                elif entry.name.rpartition(".")[2].lower() in EXTENSIONS:
                    images.append(entry.name)
    except OSError as error:
        raise UserError(f"{folder} can't be read ({error.strerror}), expected a folder of images") from None
    return sorted(images), sorted(folders)
