"""The manifest's entry of one shard: its files, counts and checksums."""

import dataclasses
import pathlib
import re

from uvit_jax.errors import UserError

SHA256 = re.compile("[0-9a-f]{64}")


@dataclasses.dataclass(frozen=True)
class Shard:
    """One `*.array_record` file.

    Attributes:
      name: of the file, in the manifest's folder.
      num_examples: images in it.
      num_records: one for each image, or two where mirror images are stored.
      num_bytes: size of the file.
      sha256: of the file's bytes, hexadecimal.
      num_captions: of all its images; 0 without text.
      captions_name: of the file of these captions, in the same folder; "" without text, as the next
        two.
      captions_bytes: size of that file.
      captions_sha256: of that file's bytes.
    """

    name: str
    num_examples: int
    num_records: int
    num_bytes: int
    sha256: str
    num_captions: int = 0
    captions_name: str = ""
    captions_bytes: int = 0
    captions_sha256: str = ""

    def __post_init__(self):
        if self.name != pathlib.PurePath(self.name).name or self.name in ("", ".."):
            raise UserError(
                f"name is {self.name!r}, expected the name of a file in the manifest's folder"
            )
        for field in ("num_examples", "num_records", "num_bytes"):
            if getattr(self, field) < 0:
                raise UserError(
                    f"{field} of {self.name} is {getattr(self, field)}, expected a number from 0 up"
                )
        if not SHA256.fullmatch(self.sha256):
            raise UserError(
                f"sha256 of {self.name} is {self.sha256!r}, expected 64 hexadecimal digits"
            )
        if self.captions is None:
            for field in ("num_captions", "captions_bytes", "captions_sha256"):
                if getattr(self, field):
                    raise UserError(
                        f"{field} of {self.name} is {getattr(self, field)!r}, expected none "
                        f"without captions_name"
                    )
        elif self.num_captions < self.num_examples:
            raise UserError(
                f"num_captions of {self.name} is {self.num_captions}, expected at least one for "
                f"each of its {self.num_examples} examples"
            )

    @property
    def captions(self) -> "Shard | None":
        """The file of its images' captions, a shard whose examples they are; None without text."""
        if not self.captions_name:
            return None
        counts = (self.num_captions, self.num_captions)
        return Shard(self.captions_name, *counts, self.captions_bytes, self.captions_sha256)

    @property
    def files(self) -> "tuple[Shard, ...]":
        """Itself, and the file of its captions where there is one."""
        return (self,) if self.captions is None else (self, self.captions)
