"""The images of an evaluation that its report shows or saves, and the files made of them."""

import pathlib

import numpy as np
from jaxtyping import UInt8

from uvit_jax.data.image_output import npz_writer, save_png
from uvit_jax.jobs.evaluation.image_streams import ImageStream
from uvit_jax.jobs.sampling import pictures
from uvit_jax.jobs.sampling.conditions import Conditions
from uvit_jax.jobs.sampling.sample_folder import NPZ, png_name
from uvit_jax.metrics.stored_rows import StoredRows

GRID, PNGS = "grid.png", "samples"
_GRID_SAMPLES = 100
_ADM_NAMES = ("arr_0", "arr_1")
_WRITTEN_AT_ONCE = 1024


class KeptImages:
    """Images kept in a file until the end: all, or the first ones for the grid."""

    def __init__(self, path: pathlib.Path, stream: ImageStream, start: int, *, everything: bool):
        """Opens the file of the images before number `start` of the stream."""
        self._limit = stream.count if everything else min(stream.count, _GRID_SAMPLES)
        self._rows = StoredRows(path, stream.shape, np.uint8, count=min(start, self._limit))

    def append(self, images: UInt8[np.ndarray, "b h w c"]) -> None:
        """Keeps as many of the images as there is room for."""
        room = self._limit - self._rows.count
        if room > 0:
            self._rows.append(images[:room])

    def sync(self) -> None:
        """Writes all images through to the disk."""
        self._rows.sync()

    def write_and_close(
        self, out: pathlib.Path, conditions: Conditions | None, title: str, save: str
    ) -> None:
        """Writes the grid, and what `save` asks for: an "npz", "png" files or neither."""
        images = self._rows.read()
        shown = np.asarray(images[:_GRID_SAMPLES])
        pictures.save_grid(shown, conditions or Conditions(), out / GRID, title)
        if save == "npz":
            labels = None
            if conditions is not None and conditions.labels:
                labels = conditions.of(np.arange(len(images)))
            with npz_writer(out / NPZ, len(images), labels, names=_ADM_NAMES) as append:
                for first in range(0, len(images), _WRITTEN_AT_ONCE):
                    append(images[first : first + _WRITTEN_AT_ONCE])
        elif save == "png":
            for i, image in enumerate(images):
                save_png(np.asarray(image), out / PNGS / png_name(i))
        self._rows.close()
