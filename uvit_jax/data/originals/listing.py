"""What stands in which place of a source of images, as one hash: by it, work that was begun knows
its source again.
"""

from typing import Any

from uvit_jax.data.originals.folders import ImageFolder
from uvit_jax.data.originals.open import Originals
from uvit_jax.data.originals.tfds_source import TfdsSource
from uvit_jax.fingerprints import sha256_of_json


def listing_sha256(originals: Originals) -> str:
    """The hash of the names of all files with their labels and captions, in order, and of the
    classes' names.

    Of names, not of contents: about a second for ImageNet. A data set of TFDS's, whose images are
    no files, is known by its version, its classes' names and the records that its split takes of
    each file.
    """
    return sha256_of_json(_listing(originals))


def _listing(originals: Originals) -> list[Any]:
    names = list(originals.class_names)
    if isinstance(originals, ImageFolder):
        return [list(originals.files), originals.labels.tolist(), names, list(originals.captions)]
    if isinstance(originals, TfdsSource):
        info = originals.examples.dataset_info
        parts = info.splits[originals.split].file_instructions
        return [info.full_name, [[part.basename(), part.skip, part.take] for part in parts], names]
    raise TypeError(
        f"a listing of {type(originals).__name__}, expected a folder's or TFDS's images"
    )
