"""Data sets of original images, opened by name: image folders, COCO's captions and TFDS."""

import pathlib
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from uvit_jax.data.originals.coco import coco_splits, open_coco
from uvit_jax.data.originals.decoding import RGB, CorruptImage, Decoding, Original
from uvit_jax.data.originals.folders import open_folder
from uvit_jax.data.originals.tfds_source import PREFIX, open_tfds
from uvit_jax.errors import UserError

__all__ = ["CorruptImage", "Original", "Originals", "open_originals"]


@runtime_checkable
class Originals(Protocol):
    """Random access to original images; picklable, and safe to call from threads."""

    @property
    def name(self) -> str:
        """What a manifest calls the data set: a folder's name, "coco:<folder>:train2014" or
        "tfds:cifar10".
        """
        ...

    @property
    def class_names(self) -> Sequence[str]:
        """One for each class, () where images have no labels."""
        ...

    def __len__(self) -> int: ...

    def label(self, index: int) -> int:
        """The label of the image at this index, which is not decoded; -1 where it is not known."""
        ...

    def __getitem__(self, index: int) -> Original:
        """The image at this index; CorruptImage where it can't be decoded."""
        ...


def open_originals(
    source: str,
    split: str = "train",
    data_dir: str = "",
    decoding: Decoding | None = None,
    *,
    texts: bool = False,
) -> Originals:
    """The data set of this name.

    Args:
      source: "tfds:<name>", as TFDS writes names ("tfds:cifar10",
        "tfds:<name>/<config>:<version>"); otherwise a folder of images, see `folders.open_folder`,
        or one with COCO's captions, see `coco.open_coco`.
      split: which part. TFDS's slices ("train[:10%]") work there; a folder's splits are its
        sub-folders, and a folder that has none is all "train". COCO's may lack the year where there
        is but one.
      data_dir: where TFDS keeps its data sets; "" for its own default. Folders have no use for it.
      decoding: how files become pixels; None for RGB, or grey where TFDS says that a data set is.
      texts: whether captions are wanted, see `folders.open_folder`.

    Raises:
      UserError: where there is no such data set or split.
    """
    if source.startswith(PREFIX):
        return open_tfds(source, split, data_dir, decoding)
    if data_dir:
        raise UserError(
            f"data_dir is {data_dir!r}, expected none for the folder {source!r}: it is where TFDS "
            f"looks"
        )
    folder = pathlib.Path(source).expanduser()
    if coco_splits(folder):
        return open_coco(folder, split, decoding or RGB)
    return open_folder(folder, split, decoding or RGB, texts=texts)
