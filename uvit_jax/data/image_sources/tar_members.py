"""The files inside a tar and their places in it, so that each can be read without the others."""

import dataclasses
import pathlib
import tarfile
from collections.abc import Callable, Iterator

from uvit_jax.data.names import printable
from uvit_jax.errors import UserError, say_once

_BLOCK = 512
_COMPRESSED = {b"\x1f\x8b": "gzip", b"\xfd7": "xz", b"\x28\xb5": "zstd"}
# Far above any label, caption or JSON of one image.
_MAX_TEXT = 2**20


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
    """A regular file inside a tar.

    Attributes:
      name: as the tar has it, with folders.
      offset: of its first byte in the tar.
      size: in bytes.
      content: its bytes, where it is one of the texts asked for and not longer than 1 MiB.
    """

    name: str
    offset: int
    size: int
    content: bytes | None = None


def read_members(path: pathlib.Path, is_text: Callable[[str], bool]) -> Iterator[Member]:
    """The regular files of a tar in order; links, folders and devices in it are passed over.

    Nothing is unpacked. Only headers and texts are read: about 12,000 members a second.

    Args:
      path: the tar, not compressed.
      is_text: True for the name of a member whose content is wanted with it.

    Raises:
      UserError: for a tar that can't be read, is compressed, cut short or damaged.
    """
    shown = printable(str(path))
    try:
        with path.open("rb") as file:
            _check_not_compressed(shown, file.read(2))
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (found := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # tarfile only ever adds
                    if not found.isreg() or found.issparse():
                        continue
                    content = None
                    if is_text(found.name) and found.size <= _MAX_TEXT:
                        file.seek(found.offset_data)
                        content = file.read(found.size)
                    yield Member(found.name, found.offset_data, found.size, content)
                # Python's reader ends without a word at a header that it can't read.
                file.seek(tar.offset)
                _check_end(shown, tar.offset, file.read(_BLOCK))
    except OSError as error:
        raise UserError(f"{shown} can't be read ({error.strerror}), expected a tar") from None
    except tarfile.TarError as error:
        raise UserError(
            f"{shown} is not a whole tar ({error}), expected one: copy it anew"
        ) from None


def _check_not_compressed(shown: str, start: bytes) -> None:
    if start in _COMPRESSED:
        raise UserError(
            f"{shown} is compressed ({_COMPRESSED[start]}), expected a plain tar, in which an "
            "image can be read without those before it: decompress it once"
        )


def _check_end(shown: str, offset: int, block: bytes) -> None:
    """Tells a tar's end (a block of zeros) from damage; warns where the file just ends."""
    if not block:
        say_once(f"{shown} ends without a tar's mark of its end: it may be cut short")
    elif block != bytes(_BLOCK):
        raise UserError(
            f"{shown} is damaged at byte {offset:,}, expected the header of a file or the tar's "
            "end: copy it anew"
        )
