"""Kinds of files by their content: weights, and what was downloaded in their place."""

import json
import pathlib
import re
import struct
import zipfile
from typing import Literal

from uvit_jax.errors import UserError, counted
from uvit_jax.interop.torch_legacy_file import is_legacy

WeightsKind = Literal["safetensors", "torch", "torch_legacy"]

_HEAD = 4096  # bytes that are read to tell the kind
_AGAIN = "download or copy it again"
_UNPACK = "unpack it and name the weights file inside"
_STATE_DICT = "expected the weights alone, as torch.save(model.state_dict(), FILE) writes"
# First bytes, what has them, and what to do.
_MAGIC = (
    (b"\x1f\x8b", "a gzip archive", _UNPACK),
    (b"BZh", "a bzip2 archive", _UNPACK),
    (b"\xfd7zXZ\x00", "an xz archive", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"Rar!", "a rar archive", _UNPACK),
    (b"\x93NUMPY", "a NumPy array (.npy)", _STATE_DICT),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (of Keras?)", _STATE_DICT),
    (b"GGUF", "a GGUF file", "expected the published .safetensors or .pth"),
    (b"%PDF", "a PDF", "expected weights"),
    (b"\x89PNG", "a PNG image", "expected weights"),
    (b"\xff\xd8\xff", "a JPEG image", "expected weights"),
)
_TEXT_BYTES = bytes(range(32, 256)) + b"\t\r\n\f\x1b"


def check_content(path: pathlib.Path) -> bytes:
    """Returns the first bytes of a downloaded file.

    Raises:
      UserError: for an empty file, a git-LFS pointer, a web page or a server's message in place of
        the download. The sentence names it and says what to do.
    """
    size, head = _beginning(path)
    if not size:
        raise UserError(f"{path} is empty (0 bytes): {_AGAIN}")
    if not head.strip(b"\x00"):
        raise UserError(
            f"{path} begins with {len(head)} zeros, as a download that broke off does: {_AGAIN}"
        )
    if head.startswith(b"version https://git-lfs"):
        real = re.search(rb"^size (\d+)", head, re.MULTILINE)
        of = f" to {int(real[1]):,} bytes" if real else ""
        raise UserError(
            f"{path} is a git-LFS pointer{of}, not the file itself: run `git lfs pull` in its "
            "repository, or download the file from the hub's web page"
        )
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<script")) or (
        text.startswith((b"<?xml", b"<!--")) and b"<html" in text
    ):
        title = re.search(rb"<title[^>]*>\s*(.*?)\s*</title>", head, re.IGNORECASE | re.DOTALL)
        titled = f" ({' '.join(title[1].decode(errors='replace').split())[:80]!r})" if title else ""
        raise UserError(
            f"{path} is a web page{titled}, which a server sent instead of the file (Google Drive "
            "does for large ones, hubs for a /blob/ address or without a login): download it in a "
            "browser or with gdown, and look at its size"
        )
    if text.startswith((b"<?xml", b"<error")):
        raise UserError(
            f"{path} is an XML message of a server ({_start(head)}), not the file: {_AGAIN}"
        )
    return head


def weights_kind(path: pathlib.Path) -> WeightsKind:
    """Chooses the reader of a file of weights.

    Raises:
      UserError: for a missing file, or one of another kind; the sentence names the kind and says
        what to do.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder, expected a file of weights: name the one in it")
    if not path.is_file():
        raise UserError(f"there is no weights file {path}")
    head = check_content(path)
    if head.startswith(b"PK"):
        _check_zip(path)
        return "torch"
    if is_legacy(path):
        return "torch_legacy"
    # A header's length, then the JSON of the header.
    if head[8:9] == b"{":
        _check_safetensors(path)
        return "safetensors"
    found, advice = _foreign(path, head)
    raise UserError(f"{path} can't be read (it is {found}): {advice}")


def _beginning(path: pathlib.Path) -> tuple[int, bytes]:
    try:
        with path.open("rb") as file:
            return path.stat().st_size, file.read(_HEAD)
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror})") from None


def _start(head: bytes) -> str:
    return repr(" ".join(head[:200].decode(errors="replace").split())[:80])


def _check_zip(path: pathlib.Path) -> None:
    """Raises a UserError for a zip that torch.save didn't write."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        raise UserError(
            f"{path} begins as torch.save's zip files do, but its end is missing (it has "
            f"{counted(path.stat().st_size, 'byte')}): a download that broke off, {_AGAIN}"
        ) from None
    files = [name.rpartition("/")[2] for name in names]
    if "constants.pkl" in files or any("/code/" in name for name in names):
        raise UserError(f"{path} is a TorchScript archive, which holds code: {_STATE_DICT}")
    if names and all(name.endswith(".npy") for name in names):
        raise UserError(
            f"{path} is an .npz of NumPy arrays ({', '.join(names[:3])}): {_STATE_DICT}"
        )
    if "data.pkl" not in files:
        inside = (
            " ".join(", ".join(names[:3]).split()) + ", ..." * (len(names) > 3)
            if names
            else "nothing"
        )
        raise UserError(f"{path} is a zip archive of {inside}, not one of torch.save's: {_UNPACK}")


def _check_safetensors(path: pathlib.Path) -> None:
    """Raises a UserError for a safetensors file of another length than its header says."""
    size = path.stat().st_size
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if 8 + length > size:
            raise UserError(
                f"{path} is not a whole safetensors file: its header has {length:,} bytes, the "
                f"whole file {size:,}: a download that broke off, {_AGAIN}"
            )
        try:
            fields = json.loads(file.read(length))
            ends = [
                tensor["data_offsets"][1]
                for name, tensor in fields.items()
                if name != "__metadata__"
            ]
            expected = 8 + length + max(ends, default=0)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            return  # The library knows better what is wrong with it.
    if expected > size:
        raise UserError(
            f"{path} is not a whole safetensors file: it has {size:,} bytes of {expected:,}: a "
            f"download that broke off, {_AGAIN}"
        )


def _foreign(path: pathlib.Path, head: bytes) -> tuple[str, str]:
    """A kind of file that holds no weights for us, and advice."""
    for magic, what, advice in _MAGIC:
        if head.startswith(magic):
            return what, advice
    if head[257:262] == b"ustar":
        return "a tar archive", _UNPACK
    # A map of few fields, or of more, whose first key is a short string.
    if (head[:1] and 0x81 <= head[0] <= 0x8F and 0xA0 <= head[1] <= 0xBF) or head[:1] in (
        b"\xde",
        b"\xdf",
    ):
        return "MessagePack (Flax's or Keras'?)", "expected .pth or .safetensors"
    if head[:1] == b"\x80":
        return "a pickle that torch.save didn't write", f"it was not opened; {_STATE_DICT}"
    if path.suffix == ".onnx" or (
        head[:1] == b"\x08" and (b"pytorch" in head[:64] or b"onnx" in head[:64])
    ):
        return "an ONNX file", _STATE_DICT
    if not head.translate(None, _TEXT_BYTES):
        what = "JSON" if head.lstrip()[:1] in (b"{", b"[") else "text"
        return (
            f"{what} that begins {_start(head)}",
            "expected weights, as torch.save or safetensors write them",
        )
    return (
        f"of no kind known here, its first bytes {head[:8].hex(' ')}",
        f"expected weights, as torch.save or safetensors write them; if it is that, {_AGAIN}",
    )
