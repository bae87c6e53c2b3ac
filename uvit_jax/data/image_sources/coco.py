"""COCO's captions: `annotations/captions_<split>.json` beside a folder of images for each split."""

import collections
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from uvit_jax.data.image_sources.decoding import RGB, Decoding
from uvit_jax.data.image_sources.folders import ImageFolder
from uvit_jax.data.image_sources.metadata import check_characters
from uvit_jax.data.names import printable
from uvit_jax.errors import UserError

_PREFIX, _SUFFIX = "captions_", ".json"


def coco_splits(source: pathlib.Path) -> list[str]:
    """The splits that a folder has COCO's captions of; none in other folders."""
    found = (source / "annotations").glob(f"{_PREFIX}*{_SUFFIX}")
    return sorted(path.name.removeprefix(_PREFIX).removesuffix(_SUFFIX) for path in found)


def open_coco(source: pathlib.Path, split: str = "train", decoding: Decoding = RGB) -> ImageFolder:
    """The images of `<source>/<split>` with all their captions.

    Captions are those of `<source>/annotations/captions_<split>.json`. Images are in the order of
    their ids, and the captions of one in the order of the file: that is how the official code,
    through pycocotools, numbers its features. Images have no labels. None is opened; files in the
    folder that the annotations don't name are passed over.

    Args:
      source: the folder of the annotations and the images.
      split: "train2014", "val2017", ..., or the beginning of just one that is there ("train",
        "val").
      decoding: how files become pixels.

    Raises:
      UserError: for a split that is missing or ambiguous; or annotations that are damaged, of
        another task, name an image or a caption twice or images that aren't there, or leave one
        without a caption (on which the official code fails once it is drawn).
    """
    split = _split(source, split)
    path, root = source / "annotations" / f"{_PREFIX}{split}{_SUFFIX}", source / split
    images, annotations = _read(path)
    files = _files(path, images)
    captions = _captions(path, annotations, files)
    without = [i for i in files if i not in captions]
    if without:
        raise UserError(
            f"{path} has {len(without)} images without captions (first: image {without[0]}, "
            f"{files[without[0]]!r}), expected at least one for each"
        )
    _check_present(path, root, files)
    ids = sorted(files)
    return ImageFolder(
        f"coco:{printable(source.resolve().name)}:{split}",
        root,
        [files[i] for i in ids],
        np.full(len(ids), -1, np.int32),
        captions=[tuple(captions[i]) for i in ids],
        decoding=decoding,
    )


def _split(source: pathlib.Path, split: str) -> str:
    """The split of exactly this name, or else the only one whose name begins so."""
    splits = coco_splits(source)
    chosen = [name for name in splits if name == split] or [
        name for name in splits if name.startswith(split)
    ]
    if len(chosen) != 1:
        raise UserError(
            f"split is {split!r}, but {source / 'annotations'} has captions of "
            f"{' and '.join(map(repr, chosen or splits))}, expected one of them"
        )
    return chosen[0]


def _read(path: pathlib.Path) -> tuple[list[Any], list[Any]]:
    """The lists of images and of annotations."""
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise UserError(
            f"{path} can't be read ({error.strerror}), expected COCO's captions"
        ) from None
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise UserError(
            f"{path} has the byte 0x{byte:02x} at offset {error.start}, expected UTF-8"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}), expected COCO's captions") from None
    fields = content if isinstance(content, dict) else {}
    images, annotations = fields.get("images"), fields.get("annotations")
    if not isinstance(images, list) or not isinstance(annotations, list):
        raise UserError(
            f'{path} has no lists "images" and "annotations", expected COCO\'s captions'
        )
    if not images:
        raise UserError(f"{path} names no images, expected at least one")
    return images, annotations


def _files(path: pathlib.Path, images: Sequence[Any]) -> dict[int, str]:
    """The file of each image, by the image's id."""
    files: dict[int, str] = {}
    ids: dict[str, int] = {}
    for number, image in enumerate(images):
        fields = image if isinstance(image, dict) else {}
        key, file = fields.get("id"), fields.get("file_name")
        if type(key) is not int or not isinstance(file, str):
            raise UserError(
                f'{path}: images[{number}] has no number "id" and string "file_name", expected both'
            )
        if key in files:
            raise UserError(
                f"{path} has the image {key} twice ({files[key]!r} and {file!r}), expected it once"
            )
        if file in ids:
            raise UserError(
                f"{path} has {file!r} as the images {ids[file]} and {key}, expected it once"
            )
        files[key], ids[file] = file, key
    return files


def _captions(
    path: pathlib.Path, annotations: Sequence[Any], files: dict[int, str]
) -> dict[int, list[str]]:
    """The captions of each image that has any, by the image's id."""
    captions: dict[int, list[str]] = collections.defaultdict(list)
    seen: set[int] = set()
    for number, annotation in enumerate(annotations):
        fields = annotation if isinstance(annotation, dict) else {}
        key, image = fields.get("id"), fields.get("image_id")
        if type(key) is not int or type(image) is not int:
            raise UserError(
                f'{path}: annotations[{number}] has no numbers "id" and "image_id", expected both'
            )
        if key in seen:
            raise UserError(
                f"{path} has the annotation {key} twice (again for image {image}), expected it once"
            )
        seen.add(key)
        if image not in files:
            raise UserError(
                f"{path}: annotation {key} is of image {image}, expected one of its {len(files)} "
                f"images"
            )
        caption = fields.get("caption")
        # 400,000 ordinary captions need no further check.
        if not (isinstance(caption, str) and caption.isascii()):
            _check_caption(f"{path}: annotation {key} of image {image} ({files[image]!r})", fields)
        captions[image].append(fields["caption"])
    return dict(captions)


def _check_caption(where: str, fields: dict[str, Any]) -> None:
    if "caption" not in fields:
        raise UserError(
            f'{where} has no "caption", expected the annotations of captions, not of another task'
        )
    if not isinstance(fields["caption"], str):
        raise UserError(f"{where} has the caption {fields['caption']!r:.60}, expected a string")
    check_characters(where, fields["caption"])


def _check_present(path: pathlib.Path, root: pathlib.Path, files: dict[int, str]) -> None:
    """Refuses images that aren't in the folder; one listing finds nearly all of them."""
    try:
        present = set(os.listdir(root))
    except OSError as error:
        raise UserError(
            f"{root} can't be read ({error.strerror}), expected the images of {path}"
        ) from None
    absent = [i for i, file in files.items() if file not in present and not _is_below(root, file)]
    if absent:
        raise UserError(
            f"{path} names {len(absent)} images that {root} lacks (first: image {absent[0]}, "
            f"{files[absent[0]]!r}), expected them there"
        )


def _is_below(root: pathlib.Path, file: str) -> bool:
    parts = pathlib.PurePosixPath(file)
    return (
        len(parts.parts) > 1
        and not parts.is_absolute()
        and ".." not in parts.parts
        and (root / parts).is_file()
    )
