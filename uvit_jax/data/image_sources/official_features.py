"""The official repository's ImageNet features, read without executing their pickles.

Each file is `np.save` of the pair (moments float32 [8, h, w], label): an object array, hence a
pickle. They come in batches of 256 images followed by the 256 mirror images, the last batch with
what is left (`extract_imagenet_feature.py` of baofff/U-ViT, whose loader goes through the images
unshuffled, in the order of their classes).
"""

import functools
import os
import pathlib

import numpy as np
from jaxtyping import Float

from uvit_jax.data.image_sources.metadata_labels import MAX_CLASSES
from uvit_jax.data.image_sources.object_npy import read_object_array
from uvit_jax.errors import UserError

_BATCH = 256
_CHANNELS = 8  # mean and logvar of four latent channels


def is_official_features(path: str | os.PathLike) -> bool:
    """True for a folder of `0.npy`, `1.npy`, ... without captions (COCO's have `0_0.npy`)."""
    folder = pathlib.Path(path)
    return (
        any((folder / name).is_file() for name in ("0.npy", "1.npy"))
        and not (folder / "0_0.npy").exists()
    )


class OfficialFeatures:
    """Random access to a folder of official features, by image.

    Picklable, and safe to call from threads.
    """

    def __init__(self, folder: str | os.PathLike):
        """Lists the files (a few seconds for ImageNet's 2.6 million) and reads the first.

        Raises:
          UserError: for a number that is missing, an odd number of files, or a first file that is
            not as above.
        """
        self.folder = pathlib.Path(folder)
        self.num_images = _count_files(self.folder) // 2
        height, width, _ = self._read(0)[0].shape
        self.shape = (height, width, _CHANNELS)

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> tuple[Float[np.ndarray, "2 h w 8"], int]:
        """Moments of an image and of its mirror image (mean, then logvar), and their label.

        Raises:
          UserError: for a file that is damaged, of another shape than the first or asks for more
            than arrays, and for a mirror image of another class than its image.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        image, mirror = self.files(index)
        (moments, label), (mirrored, mirrored_label) = self._read(image), self._read(mirror)
        for file, found in ((image, moments), (mirror, mirrored)):
            if found.shape != self.shape:
                raise UserError(
                    f"{self.folder / f'{file}.npy'} has latents of "
                    f"{found.shape[0]}x{found.shape[1]}, expected {self.shape[0]}x{self.shape[1]} "
                    "as in 0.npy"
                )
        if label != mirrored_label:
            raise UserError(
                f"{self.folder / f'{mirror}.npy'} has the label {mirrored_label}, expected {label} "
                f"as in {image}.npy, whose mirror image it is in the official order (256 images, "
                "then their mirror images)"
            )
        return np.stack([moments, mirrored]), label

    def files(self, index: int) -> tuple[int, int]:
        """The numbers of the files of an image and of its mirror image."""
        batch, place = divmod(index, _BATCH)
        size = min(_BATCH, len(self) - batch * _BATCH)
        image = 2 * _BATCH * batch + place
        return image, image + size

    @functools.cached_property
    def num_classes(self) -> int:
        """The last image's label plus one: the official files are in the order of their classes."""
        return self._read(self.files(len(self) - 1)[0])[1] + 1

    @property
    def class_names(self) -> list[str]:
        """The numbers of the classes: the files know no names."""
        return [str(i) for i in range(self.num_classes)]

    def _read(self, file: int) -> tuple[np.ndarray, int]:
        return _read_feature(self.folder / f"{file}.npy")


def _count_files(folder: pathlib.Path) -> int:
    """The number of features, numbered without a gap."""
    numbers: set[int] = set()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                stem, _, extension = entry.name.rpartition(".")
                if extension != "npy" or stem.startswith("."):
                    continue
                if not (stem.isascii() and stem.isdigit()) or (stem[0] == "0" and stem != "0"):
                    raise UserError(
                        f"{folder} holds {entry.name!r}, expected 0.npy, 1.npy, ... alone"
                    )
                numbers.add(int(stem))
    except OSError as error:
        raise UserError(
            f"{folder} can't be read ({error.strerror}), expected a folder of features"
        ) from None
    if not numbers:
        raise UserError(f"{folder} has no features, expected 0.npy, 1.npy, ...")
    if max(numbers) >= len(numbers):
        missing = next(number for number in range(len(numbers)) if number not in numbers)
        raise UserError(
            f"{folder} has {len(numbers)} features up to {max(numbers)}.npy, but no "
            f"{missing}.npy, expected every one"
        )
    if len(numbers) % 2:
        raise UserError(
            f"{folder} has {len(numbers)} features, expected two for each image: an even number"
        )
    return len(numbers)


def _read_feature(path: pathlib.Path) -> tuple[Float[np.ndarray, "h w 8"], int]:
    """Moments, channels last, and label of one file."""
    found = read_object_array(path)
    if len(found) == 2:
        moments, label = found
        is_label = label.size == 1 and label.dtype.kind in "iu" and 0 <= label.item() < 2**31
        if (
            is_label
            and moments.dtype == np.float32
            and moments.ndim == 3
            and len(moments) == _CHANNELS
        ):
            if label.item() >= MAX_CLASSES:
                raise UserError(
                    f"{path} has the label {label.item()}, expected a class in 0..{MAX_CLASSES - 1}"
                )
            return np.moveaxis(moments, 0, -1), int(label.item())
    what = ", ".join(f"{array.dtype} {list(array.shape)}" for array in found)
    raise UserError(
        f"{path} holds {what}, expected moments float32 [{_CHANNELS}, h, w] and a label from 0 on"
    )
