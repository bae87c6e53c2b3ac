"""The images of a source as `prepare` takes them: read, cropped, and their labels checked."""

import dataclasses
import logging

import numpy as np
from jaxtyping import UInt8

from uvit_jax.data.image_sources.crops import CROPS, Size, crop_channels
from uvit_jax.data.image_sources.image_source import CorruptImage, ImageSource, SourceImage
from uvit_jax.errors import UserError
from uvit_jax.experiment.job_sections import PrepareConfig

LOG = logging.getLogger("uvit_jax")


@dataclasses.dataclass(frozen=True)
class CroppedImage:
    """An image of the wanted size; one that can't be read has an error in place of pixels."""

    label: int
    image: UInt8[np.ndarray, "h w c"] | None
    captions: tuple[str, ...] = ()
    error: str = ""


@dataclasses.dataclass(frozen=True)
class CroppingReader:
    """Reads and crops the image of an index; called from threads.

    Attributes:
      source: the images.
      prepare: which crop, and what an image that can't be read does.
      size: the side, or (height, width), of the crops.
      num_classes: number of the source's known classes; 0 where labels are unknown.
    """

    source: ImageSource
    prepare: PrepareConfig
    size: Size
    num_classes: int

    def __call__(self, index: int) -> CroppedImage:
        try:
            found = self.source[index]
            self._check_label(found)
        except CorruptImage as error:
            if self.prepare.on_error == "stop":
                raise UserError(
                    f"{error} (config.prepare.on_error=skip leaves such images out)"
                ) from None
            return CroppedImage(-1, None, error=str(error))
        try:
            image = crop_channels(CROPS[self.prepare.crop], found.image, self.size)
        except UserError as error:
            raise UserError(f"{found.name}: {error}") from None
        return CroppedImage(found.label, image, found.captions)

    def _check_label(self, found: SourceImage) -> None:
        """Refuses a label outside 0..num_classes - 1; without classes, one that is not -1."""
        shown = f"{found.name} of {self.source.name} has the label {found.label}"
        if not self.num_classes and found.label != -1:
            raise UserError(
                f"{shown}, but the first image -1 (unknown), expected labels for all or for none "
                "(config.prepare.on_error=skip leaves out the images without)"
            )
        if self.num_classes and not 0 <= found.label < self.num_classes:
            unknown = " (unknown)" if found.label == -1 else ""
            raise CorruptImage(f"{shown}{unknown}, expected 0 to {self.num_classes - 1}")


def first_readable(source: ImageSource) -> SourceImage:
    """The first image that can be read: all have its number of channels, and captions or none.

    Raises:
      UserError: where none can be read.
    """
    fault = ""
    for i in range(len(source)):
        try:
            return source[i]
        except CorruptImage as error:
            fault = fault or str(error)
    raise UserError(
        f"none of the {len(source)} images of {source.name} can be read (first: {fault})"
    )


def are_labels_unknown(source: ImageSource, on_error: str) -> bool:
    """True if a source of classes gives no image its class, as published test splits do.

    Where images are to be skipped, one known label is enough: the images without are left out.
    Otherwise the first image decides, and one of the other kind stops the job.
    """
    if not source.class_names:
        return False
    looked_at = range(len(source) if on_error == "skip" else 1)
    if any(source.label(i) >= 0 for i in looked_at):
        return False
    LOG.info("the labels of %s are unknown (-1): it is prepared without labels", source.name)
    return True
