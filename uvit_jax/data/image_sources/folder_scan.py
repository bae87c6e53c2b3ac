"""The files of an image folder: images, sub-folders and metadata, without opening any of them."""

import dataclasses
import os
import pathlib

from uvit_jax.data.image_formats import is_image
from uvit_jax.data.image_sources.metadata import Table
from uvit_jax.data.image_sources.metadata_files import FILE_NAMES
from uvit_jax.data.image_sources.passed_over import PassedOver
from uvit_jax.data.names import printable
from uvit_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Entries:
    """Names in one folder, in order: its images, its sub-folders and its metadata files."""

    images: list[str]
    folders: list[str]
    tables: list[pathlib.Path]


class FolderScan:
    """Lists a folder and its sub-folders; collects metadata files and what was passed over."""

    def __init__(self, root: pathlib.Path):
        self.root = root
        self.passed = PassedOver()
        self.tables: list[Table] = []

    def images_below(self, prefix: str) -> list[str]:
        """The images of `<root>/<prefix>` and below: a folder's own, then its sub-folders'.

        Paths are relative to the root.
        """
        entries = self.entries(prefix)
        found = [prefix + image for image in entries.images]
        for folder in entries.folders:
            found += self.images_below(f"{prefix}{folder}/")
        return found

    def entries(self, prefix: str = "") -> Entries:
        """The names in `<root>/<prefix>` itself.

        `scandir` gives an entry's kind with its name, so a million files need no `stat` each; only
        links are followed.

        Raises:
          UserError: for a folder that can't be read.
        """
        folder = self.root / prefix
        found = Entries([], [], [])
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        self.passed.add(prefix + entry.name)
                    elif entry.is_dir():
                        found.folders.append(entry.name)
                    elif is_image(entry.name):
                        found.images.append(entry.name)
                    elif entry.name in FILE_NAMES:
                        found.tables.append(folder / entry.name)
                    else:
                        self.passed.add(prefix + entry.name)
        except OSError as error:
            raise UserError(
                f"{printable(str(folder))} can't be read ({error.strerror}), expected a folder of "
                f"images"
            ) from None
        for names in (found.images, found.folders, found.tables):
            names.sort()
        self.tables += [Table(path, prefix) for path in found.tables]
        return found
