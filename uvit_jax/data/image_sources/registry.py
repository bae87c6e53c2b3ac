"""The kinds of image sources, and the one place where a source is opened by its name.

A new kind is a module with a class that satisfies `ImageSource`, and one row of `KINDS`.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

from uvit_jax.data.image_sources.coco import coco_splits, open_coco
from uvit_jax.data.image_sources.decoding import RGB, Decoding
from uvit_jax.data.image_sources.folders import open_folder
from uvit_jax.data.image_sources.hugging_face import PREFIX as HUGGING_FACE
from uvit_jax.data.image_sources.hugging_face import open_hugging_face
from uvit_jax.data.image_sources.image_source import ImageSource
from uvit_jax.data.image_sources.tfds import PREFIX as TFDS
from uvit_jax.data.image_sources.tfds import open_tfds
from uvit_jax.data.image_sources.webdataset import PREFIX as WEBDATASET
from uvit_jax.data.image_sources.webdataset import open_tars
from uvit_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Selection:
    """The part of a source that is wanted, and how it is read.

    Attributes:
      split: name of the part.
      data_dir: where TFDS keeps its data sets; "" for its own default.
      decoding: how files become pixels; None for the source's own channels.
      texts: True if captions are wanted.
    """

    split: str = "train"
    data_dir: str = ""
    decoding: Decoding | None = None
    texts: bool = False


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of image source.

    Attributes:
      spelled: how its names are written, for errors.
      recognises: True for a name of this kind.
      open: opens the source of this name.
      has_data_dir: True if `Selection.data_dir` means something to it.
    """

    spelled: str
    recognises: Callable[[str], bool]
    open: Callable[[str, Selection], ImageSource]
    has_data_dir: bool = False


def _path(source: str) -> pathlib.Path:
    return pathlib.Path(source).expanduser()


# The first kind that recognises a name opens it.
KINDS: Sequence[Kind] = (
    Kind(
        "'tfds:<name>'",
        lambda source: source.startswith(TFDS),
        lambda source, part: open_tfds(source, part.split, part.data_dir, part.decoding),
        has_data_dir=True,
    ),
    Kind(
        "'hf:<name>'",
        lambda source: source.startswith(HUGGING_FACE),
        lambda source, part: open_hugging_face(
            source, part.split, part.decoding or RGB, texts=part.texts
        ),
    ),
    Kind(
        "'wds:<tars>'",
        lambda source: source.startswith(WEBDATASET),
        lambda source, part: open_tars(source, part.split, part.decoding or RGB, texts=part.texts),
    ),
    Kind(
        "a folder with COCO's annotations",
        lambda source: bool(coco_splits(_path(source))),
        lambda source, part: open_coco(_path(source), part.split, part.decoding or RGB),
    ),
    Kind(
        "a folder of images",
        lambda source: _path(source).is_dir(),
        lambda source, part: open_folder(
            _path(source), part.split, part.decoding or RGB, texts=part.texts
        ),
    ),
)


def spelled_kinds() -> str:
    """A list in words of how the names of sources are written."""
    *others, last = (kind.spelled for kind in KINDS)
    return f"{', '.join(others)} or {last}"


def is_image_source(source: str) -> bool:
    """True if the name is one of a known kind; the source itself may still be damaged."""
    return any(kind.recognises(source) for kind in KINDS)


def open_image_source(
    source: str,
    split: str = "train",
    data_dir: str = "",
    decoding: Decoding | None = None,
    *,
    texts: bool = False,
) -> ImageSource:
    """The image source of this name.

    Args:
      source: "tfds:<name>", as TFDS writes names ("tfds:cifar10",
        "tfds:<name>/<config>:<version>"); "hf:<name>", see `hugging_face.open_hugging_face`;
        "wds:<tars>", see `webdataset.open_tars`; otherwise a folder of images, see
        `folders.open_folder`, or one with COCO's captions, see `coco.open_coco`.
      split: name of the part. Slices ("train[:10%]") work for TFDS and the hub; a folder's splits
        are its sub-folders, and a folder without any is all "train". COCO's may lack the year where
        there is only one.
      data_dir: where TFDS keeps its data sets; "" for its own default. Expected empty for others.
      decoding: how files become pixels; None for RGB, or grey where TFDS says that a data set is.
      texts: True if captions are wanted, see `folders.open_folder`.

    Raises:
      UserError: for an unknown data set or split.
    """
    kind = next((kind for kind in KINDS if kind.recognises(source)), None)
    if data_dir and not (kind and kind.has_data_dir):
        raise UserError(
            f"data_dir is {data_dir!r}, expected none for {source!r}: it is where TFDS looks"
        )
    if kind is None:
        found = "is a file" if _path(source).exists() else "doesn't exist"
        raise UserError(
            f"source is {str(_path(source))!r}, which {found}, expected {spelled_kinds()}"
        )
    return kind.open(source, Selection(split, data_dir, decoding, texts))
