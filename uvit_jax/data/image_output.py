"""Images as files: the bytes of a PNG, and an .npz of many."""

import contextlib
import os
import zipfile
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from uvit_jax.files import atomic_write


def save_png(image: Image.Image | UInt8[np.ndarray, "h w c"], path: str | os.PathLike[str]) -> None:
    """Writes `path` as a PNG, whole or not at all.

    An array has 1 (grey) or 3 (RGB) channels, or 2 or 4 with alpha.

    Raises:
      UserError: the folder can't be made or written to.
    """
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    with atomic_write(path) as file:
        image.save(file, format="PNG")


@contextlib.contextmanager
def npz_writer(
    path: str | os.PathLike[str],
    count: int,
    labels: Int[np.ndarray, " n"] | None = None,
    names: tuple[str, str] = ("images", "labels"),
) -> Iterator[Callable[[UInt8[np.ndarray, "k h w c"]], None]]:
    """Yields a function that appends images to the array `images` of an .npz.

    The file appears whole or not at all.

    The images need not be in memory at once. The file has uint8 `images` [count, h, w,
    c] and, where there are any, `labels` (int64); or arrays of these two other `names`: ADM's are
    arr_0 and arr_1.

    Raises:
      UserError: the folder can't be made or written to.
      ValueError: when the block ends with fewer or more images than `count`.
    """
    written = 0
    with atomic_write(path) as file, zipfile.ZipFile(file, "w") as archive:
        with archive.open(f"{names[0]}.npy", "w", force_zip64=True) as entry:

            def append(images: UInt8[np.ndarray, "k h w c"]) -> None:
                nonlocal written
                if not written:
                    header = {
                        "descr": "|u1",
                        "fortran_order": False,
                        "shape": (count, *images.shape[1:]),
                    }
                    np.lib.format.write_array_header_2_0(entry, header)
                written += len(images)
                entry.write(np.ascontiguousarray(images).data)

            yield append
        if written != count:
            raise ValueError(f"{written} images were written to {path}, expected {count}")
        if labels is not None:
            with archive.open(f"{names[1]}.npy", "w") as entry:
                np.lib.format.write_array(entry, labels.astype(np.int64), allow_pickle=False)
