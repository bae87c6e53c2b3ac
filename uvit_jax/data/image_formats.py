"""Which files are images, and the formats that are tried on them: an allow-list of plain rasters.

Pillow knows formats that start other programs (EPS calls Ghostscript) or read parts of other files:
a file's name says nothing of its content, so no format outside this list is tried, whatever the
file is called.
"""

import contextlib
import functools
import importlib
from collections.abc import Mapping

from PIL import Image, features

# Pillow's name of a format: the extensions of its files.
_FORMATS: Mapping[str, tuple[str, ...]] = {
    "JPEG": ("jpg", "jpeg", "jpe", "jfif"),
    "PNG": ("png", "apng"),
    "WEBP": ("webp",),
    "GIF": ("gif",),
    "BMP": ("bmp",),
    "TIFF": ("tif", "tiff"),
    "AVIF": ("avif",),
    "JPEG2000": ("jp2", "j2k", "jpx"),
    "PPM": ("ppm", "pgm", "pbm", "pnm"),
    "HEIF": ("heic", "heif", "hif"),
}
# What Pillow calls the library of a format that it may have been built without.
_CODECS = {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}


@functools.cache
def formats() -> tuple[str, ...]:
    """Pillow's names of the formats read here; HEIC needs the package pillow-heif."""
    Image.init()
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    known = (name for name in _FORMATS if name in Image.OPEN)
    return tuple(name for name in known if name not in _CODECS or features.check(_CODECS[name]))


@functools.cache
def extensions() -> frozenset[str]:
    """The extensions of image files that this machine reads, in lower case and without the dot."""
    return frozenset(extension for name in formats() for extension in _FORMATS[name])


def is_image(file: str) -> bool:
    """True if the extension of a file's name is an image's."""
    return file.rpartition(".")[2].lower() in extensions()


def hint(extension: str) -> str:
    """How to make files of this extension (lower case, no dot) readable; "" where nothing helps."""
    name = next((name for name, known in _FORMATS.items() if extension in known), None)
    if name is None or name in formats():
        return ""
    return (
        "pip install pillow-heif reads them"
        if name == "HEIF"
        else f"a Pillow built with {name} reads them"
    )
