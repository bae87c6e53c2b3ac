"""The `manifest.json` of a prepared data set: its contents, origin and files."""

import dataclasses
import json
import math
import os
import pathlib

import ml_dtypes  # noqa: F401  (NumPy knows the name "bfloat16" from here on)
import numpy as np

from uvit_jax.data.image_sources.crops import Size, sides
from uvit_jax.data.prepared.json_fields import dumps, from_json, to_json
from uvit_jax.data.prepared.shard import SHA256, Shard
from uvit_jax.errors import UserError, check_format
from uvit_jax.files import atomic_write

FORMAT_VERSION = 1
FILE_NAME = "manifest.json"
KINDS = ("pixels", "moments", "latents")
DTYPES = ("uint8", "float16", "bfloat16", "float32")
CONTEXT_DTYPES = DTYPES[1:]

_TEXT_FIELDS = ("text_encoder_sha256", "context_shape", "context_dtype", "empty_context_sha256")


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A prepared data set: what its records hold, where they come from, and its files.

    Attributes:
      source: the original data set's name.
      split: the part of it, "train" for example.
      kind: "pixels" (uint8 images), "moments" (mean, then logvar, of a KL autoencoder), or
        "latents" (of an autoencoder without variance).
      image_size: side of the images in pixels, or (height, width).
      shape: of a record's array, (h, w, c); c is twice the latent channels for moments.
      dtype: of a record's array, one of DTYPES.
      mirror: True if records come in pairs, an image and then its mirror image.
      class_names: one for each class; none where there are no names or no labels.
      num_classes: 0 without labels; every label is then -1.
      autoencoder: its name; "" for pixels.
      autoencoder_sha256: of the encoder's weights; "" for pixels.
      scale: the factor of the latents, once `shift` is taken off; None where they are normalised by
        mean and std.
      shift: what is taken off the latents (0 but for Stable Diffusion 3's and Flux's autoencoders).
      mean: of each channel: of pixels in [-1, 1]; of latents before any scale (for moments: of z
        drawn from them).
      std: of each channel, likewise.
      text_encoder: the name of the captions' encoder, which makes this a text data set; "" without
        captions.
      crop: how the images were brought to this size.
      skipped: how many originals could not be decoded.
      shards: in the order of the examples.
      text_encoder_sha256: of the text encoder's weights; "" without captions, as the next three.
      context_shape: of a caption's states, (tokens, width).
      context_dtype: of a caption's states, one of CONTEXT_DTYPES.
      empty_context_sha256: of the file with the states of the empty caption.
      exif: True if the images were turned as their EXIF orientation says.
    """

    source: str
    split: str
    kind: str
    image_size: Size
    shape: tuple[int, ...]
    dtype: str
    mirror: bool
    class_names: tuple[str, ...]
    num_classes: int
    autoencoder: str
    autoencoder_sha256: str
    scale: float | None
    shift: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    text_encoder: str
    crop: str
    skipped: int
    shards: tuple[Shard, ...]
    text_encoder_sha256: str = ""
    context_shape: tuple[int, ...] = ()
    context_dtype: str = ""
    empty_context_sha256: str = ""
    exif: bool = False

    def __post_init__(self):
        self._check_images()
        self._check_statistics()
        self._check_text()
        self._check_shards()

    def _expect(self, holds: bool, field: str, expected: str) -> None:
        if not holds:
            raise UserError(f"{field} is {getattr(self, field)!r}, expected {expected}")

    def _check_images(self) -> None:
        """Checks what a record holds, and the classes of its label."""
        expect, is_pixels = self._expect, self.kind == "pixels"
        expect(self.kind in KINDS, "kind", f"one of {', '.join(KINDS)}")
        expect(self.dtype in DTYPES, "dtype", f"one of {', '.join(DTYPES)}")
        expect(
            is_pixels == (self.dtype == "uint8"), "dtype", "uint8 for pixels and a float otherwise"
        )
        positive = "a positive number, or two: height and width"
        expect(min(sides(self.image_size)) > 0, "image_size", positive)
        is_shape = len(self.shape) == 3 and min(self.shape) > 0
        expect(is_shape, "shape", "three positive numbers, (h, w, c)")
        is_even = self.shape[-1] % 2 == 0
        expect(self.kind != "moments" or is_even, "shape", "as many means as logvars, an even c")
        expect(self.num_classes >= 0, "num_classes", "a number from 0 up")
        count = len(self.class_names)
        if count not in (0, self.num_classes):
            raise UserError(
                f"class_names has {count} entries, expected none or num_classes = "
                f"{self.num_classes}"
            )
        expect(self.skipped >= 0, "skipped", "a number from 0 up")

    def _check_statistics(self) -> None:
        """Checks what latents are scaled by."""
        channels = self.shape[-1] // (2 if self.kind == "moments" else 1)
        for field in ("mean", "std"):
            values = getattr(self, field)
            holds = len(values) == channels and all(map(math.isfinite, values))
            self._expect(holds, field, f"{channels} finite numbers")
        # A channel that never varies has 0; latents that are drawn always vary.
        least = min(self.std)
        holds = least > 0 or (least == 0 and self.kind != "moments")
        self._expect(holds, "std", "positive numbers")
        holds = self.scale is None or (math.isfinite(self.scale) and self.scale > 0)
        self._expect(holds, "scale", "positive, or none")
        self._expect(math.isfinite(self.shift), "shift", "a finite number")

    def _check_text(self) -> None:
        """Checks what captions are encoded with; without captions, that nothing is said of them."""
        expect = self._expect
        if not self.has_text:
            for field in _TEXT_FIELDS:
                expect(not getattr(self, field), field, "none without a text_encoder")
        else:
            is_shape = len(self.context_shape) == 2 and min(self.context_shape) > 0
            expect(is_shape, "context_shape", "two positive numbers, (tokens, width)")
            dtypes = f"one of {', '.join(CONTEXT_DTYPES)}"
            expect(self.context_dtype in CONTEXT_DTYPES, "context_dtype", dtypes)
            for field, sha256 in (
                ("text_encoder_sha256", self.text_encoder_sha256 or "0" * 64),
                ("empty_context_sha256", self.empty_context_sha256),
            ):
                expect(bool(SHA256.fullmatch(sha256)), field, "64 hexadecimal digits")

    def _check_shards(self) -> None:
        """Checks that every shard has its captions, its own name and its number of records."""
        for shard in self.shards:
            if (shard.captions is not None) != self.has_text:
                expected = "the name of a file" if self.has_text else "none without a text_encoder"
                raise UserError(
                    f"captions_name of {shard.name} is {shard.captions_name!r}, expected {expected}"
                )
        names = [file.name for shard in self.shards for file in shard.files]
        if len(set(names)) < len(names):
            raise UserError("shards has a name twice, expected as many files as entries")
        each = 2 if self.mirror else 1
        for shard in self.shards:
            if shard.num_records != each * shard.num_examples:
                raise UserError(
                    f"num_records of {shard.name} is {shard.num_records}, expected "
                    f"{each * shard.num_examples} ({each} for each of its {shard.num_examples} "
                    "examples)"
                )

    @property
    def has_text(self) -> bool:
        """True if every image has captions."""
        return self.text_encoder != ""

    @property
    def num_examples(self) -> int:
        """Images, not counting their mirror images."""
        return sum(shard.num_examples for shard in self.shards)

    @property
    def num_records(self) -> int:
        """Records in all shards."""
        return sum(shard.num_records for shard in self.shards)

    @property
    def num_captions(self) -> int:
        """Captions of all images."""
        return sum(shard.num_captions for shard in self.shards)

    @property
    def num_bytes(self) -> int:
        """Size of all shards and their captions."""
        return sum(file.num_bytes for shard in self.shards for file in shard.files)

    @property
    def numpy_dtype(self) -> np.dtype:
        """The type of a record's array; bfloat16 is ml_dtypes' own."""
        return np.dtype(self.dtype)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes `manifest.json` into the folder, whole or not at all.

        Raises:
          UserError: the folder can't be written to, or its disk is full.
        """
        path = pathlib.Path(folder) / FILE_NAME
        values = {"format_version": FORMAT_VERSION} | to_json(self)
        values["shards"] = [to_json(shard) for shard in self.shards]
        # A line for each field and each shard: json's own indent would spend one on every class and
        # number.
        fields = [
            f"  {json.dumps(name)}: {dumps(value)}"
            for name, value in values.items()
            if name != "shards"
        ]
        shards = ",\n".join(f"    {dumps(shard)}" for shard in values["shards"])
        text = "{\n" + ",\n".join([*fields, '  "shards": [\n' + shards + "\n  ]"]) + "\n}\n"
        try:
            with atomic_write(path) as file:
                file.write(text.encode())
        except OSError as error:
            raise UserError(
                f"cannot write {path}: {error.strerror}; expected room for {len(text)} bytes"
            ) from error

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "Manifest":
        """The manifest in a folder.

        Raises:
          UserError: there is none, or it is damaged, of a newer version, or doesn't fit together.
        """
        path = pathlib.Path(folder) / FILE_NAME
        try:
            values = json.loads(path.read_bytes())
        except OSError as error:
            if isinstance(error, FileNotFoundError) and path.parent.is_dir():
                raise UserError(
                    f"{folder} is not a prepared data set (it holds no {FILE_NAME}); of its images "
                    f"one is made by --job prepare --config.prepare.source={folder} "
                    "--config.prepare.out=FOLDER"
                ) from None
            raise UserError(
                f"cannot read {path}: {error.strerror}; expected the folder of a prepared data set"
            ) from error
        except ValueError as error:
            raise UserError(
                f"{path} is damaged ({error}); expected the JSON that preparing wrote"
            ) from error
        if not isinstance(values, dict) or not isinstance(values.get("format_version"), int):
            raise UserError(
                f"{path} has no format_version; expected the manifest of a prepared data set"
            )
        version = values.pop("format_version")
        check_format(path, version, FORMAT_VERSION)
        try:
            shards = values.get("shards")
            if isinstance(shards, list):
                values["shards"] = [from_json(Shard, "a shard", shard) for shard in shards]
            return from_json(cls, "the manifest", values)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
