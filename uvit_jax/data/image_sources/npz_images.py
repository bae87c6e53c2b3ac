"""Images in an .npz, ours (`images`, `labels`) or ADM's (`arr_0`, `arr_1`), read in order."""

import dataclasses
import math
import pathlib
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import UInt8

from uvit_jax.errors import UserError

_IMAGES = ("images", "arr_0")
_SKIP_BYTES = 2**24
# What NumPy's header, the archive and its compression raise for damage; NotImplementedError, a
# RuntimeError, for methods of compression that Python lacks.
_DAMAGE = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


@dataclasses.dataclass(frozen=True)
class NpzImages:
    """uint8 images of one size, read in batches so that few are in memory at once.

    Attributes:
      path: the file.
      entry: the array's name in it.
      shape: (n, h, w, c).
    """

    path: pathlib.Path
    entry: str
    shape: tuple[int, int, int, int]

    def batches(self, first: int, size: int) -> Iterator[UInt8[np.ndarray, "b h w c"]]:
        """Images number `first` and on, `size` at a time.

        Raises:
          UserError: the file is damaged or cut short. The archive's checksum is that of all images:
            damage that leaves the file's length is found with the last of them.
        """
        n, *image = self.shape
        row_bytes = math.prod(image)
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{self.entry}.npy") as file:
                _read_header(file)
                # A compressed entry can't be entered in the middle.
                left = first * row_bytes
                while left:
                    left -= len(_exactly(file, min(left, _SKIP_BYTES)))
                for begin in range(first, n, size):
                    count = min(size, n - begin)
                    data = _exactly(file, count * row_bytes)
                    # At the end of the entry zipfile compares its checksum.
                    if begin + count == n and file.read(1):
                        raise ValueError(f"{self.entry} goes on after its {n} images")
                    yield np.frombuffer(data, np.uint8).reshape(count, *image)
        except _DAMAGE as error:
            raise UserError(
                f"{self.path} can't be read ({error}), expected a whole .npz of images"
            ) from None


def open_npz_images(path: pathlib.Path) -> NpzImages:
    """The images of an `.npz`: `images` or `arr_0`, uint8 `[n, h, w, c]`; reads only its header.

    Raises:
      UserError: for a file that is not such an .npz.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            held = [name.removesuffix(".npy") for name in archive.namelist()]
            entry = next((name for name in _IMAGES if name in held), None)
            if entry is not None:
                with archive.open(f"{entry}.npy") as file:
                    shape, fortran_order, dtype = _read_header(file)
                    found = archive.getinfo(f"{entry}.npy").file_size - file.tell()
    except _DAMAGE as error:
        raise UserError(f"{path} can't be read ({error}), expected an .npz of images") from None
    if entry is None:
        raise UserError(
            f"{path} holds {', '.join(held[:8]) or 'nothing'}, expected images or arr_0, uint8 "
            f"[n, h, w, c]"
        )
    if len(shape) != 4 or dtype != np.uint8 or not 1 <= shape[3] <= 4:
        raise UserError(
            f"{path} has {entry} of shape {shape} and dtype {dtype}, expected uint8 [n, h, w, 3] "
            f"(or 1, 2, 4)"
        )
    if not math.prod(shape):
        raise UserError(f"{path} has {entry} of shape {shape}, expected at least one image")
    if fortran_order:
        raise UserError(
            f"{path} has {entry} in Fortran order, expected C order: np.ascontiguousarray makes "
            f"it so"
        )
    if found != math.prod(shape):
        raise UserError(
            f"{path} has {found} bytes of {entry}, expected {math.prod(shape)} for the shape "
            f"{shape}"
        )
    return NpzImages(path, entry, (shape[0], shape[1], shape[2], shape[3]))


def _read_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, True for Fortran order, and dtype."""
    version = np.lib.format.read_magic(file)
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    return read(file)


def _exactly(file: Any, count: int) -> bytes:
    data = file.read(count)
    if len(data) != count:
        raise EOFError(f"it ends {count - len(data)} bytes early")
    return data
