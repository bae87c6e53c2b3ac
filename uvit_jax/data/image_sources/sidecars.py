"""Captions in text files beside the images: a.txt describes a.png, as in fine-tuning sets."""

import pathlib
from collections.abc import Sequence

from uvit_jax.data.image_sources.passed_over import PassedOver
from uvit_jax.data.names import printable
from uvit_jax.errors import UserError

TEXT = ".txt"


def read_sidecars(
    root: pathlib.Path, files: Sequence[str], passed: PassedOver
) -> list[tuple[str, ...]]:
    """The captions of these files, one a line of each .txt; [] where no image has a .txt.

    Args:
      root: the folder that the files are relative to.
      files: the images.
      passed: what was passed over in that folder; the text files read are taken out of it.

    Raises:
      UserError: where some images have a .txt and others have none, or for one without a line or
        not in UTF-8.
    """
    if not passed.count(TEXT):
        return []
    paths = {file: (root / file).with_suffix(TEXT) for file in files}
    without = [file for file, path in paths.items() if not path.is_file()]
    if len(without) == len(files):
        return []
    if without:
        raise UserError(
            f"{printable(str(root))} has a .txt beside {len(files) - len(without)} of its "
            f"{len(files)} images, but none beside {printable(without[0])}, expected a caption for "
            "each or for none"
        )
    captions = [_captions(path) for path in paths.values()]
    passed.remove(TEXT, len(set(paths.values())))
    return captions


def _captions(path: pathlib.Path) -> tuple[str, ...]:
    shown = printable(str(path))
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{shown} can't be read ({error.strerror}), expected a caption") from None
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise UserError(
            f"{shown} has the byte 0x{byte:02x} at offset {error.start}, expected UTF-8"
        ) from None
    return caption_lines(shown, text)


def caption_lines(where: str, text: str) -> tuple[str, ...]:
    """The captions of a text, one a line; blank lines are none.

    Raises:
      UserError: beginning with `where`, for a text without a caption.
    """
    lines = tuple(line.strip() for line in text.split("\n") if line.strip())
    if not lines:
        raise UserError(f"{where} is empty, expected a caption a line")
    return lines
