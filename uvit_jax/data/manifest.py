"""What a prepared data set says of itself: the `manifest.json` beside its shards, for people and programs."""

import dataclasses
import json
import math
import os
import pathlib
import re
import types
import typing
from typing import Any

import ml_dtypes  # noqa: F401  (NumPy knows the name "bfloat16" from here on)
import numpy as np

from uvit_jax.errors import UserError
from uvit_jax.telemetry.atomic import atomic_write

FORMAT_VERSION = 1
FILE_NAME = "manifest.json"
KINDS = ("pixels", "moments", "latents")
DTYPES = ("uint8", "float16", "bfloat16", "float32")


@dataclasses.dataclass(frozen=True)
class Shard:
    """One `*.array_record` file.

    Attributes:
      name: of the file, in the manifest's folder.
      num_examples: images in it.
      num_records: one for each image, or two where mirror images are stored.
      num_bytes: size of the file.
      sha256: of the file's bytes, hexadecimal.
    """

    name: str
    num_examples: int
    num_records: int
    num_bytes: int
    sha256: str

    def __post_init__(self):
        if self.name != pathlib.PurePath(self.name).name or self.name in ("", ".."):
            raise UserError(f"name is {self.name!r}, expected the name of a file in the manifest's folder")
        for field in ("num_examples", "num_records", "num_bytes"):
            if getattr(self, field) < 0:
                raise UserError(f"{field} of {self.name} is {getattr(self, field)}, expected a number from 0 up")
        if not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise UserError(f"sha256 of {self.name} is {self.sha256!r}, expected 64 hexadecimal digits")


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A prepared data set: what its records hold, where they come from, and the files they lie in.

    Attributes:
      source: the original data set's name.
      split: the part of it, "train" for example.
      kind: "pixels" (uint8 images), "moments" (mean, then logvar, of a KL autoencoder), or "latents" (of an
        autoencoder without variance).
      image_size: side of the images in pixels.
      shape: of a record's array, (h, w, c); c is twice the latent channels for moments.
      dtype: of a record's array, one of DTYPES.
      mirror: whether records come in pairs, an image and then its mirror image.
      class_names: one for each class; none where the classes have no names, or there are no labels.
      num_classes: 0 without labels; every label is then -1.
      autoencoder: its name; "" for pixels.
      autoencoder_sha256: of the encoder's weights; "" for pixels.
      scale: the factor of the latents, once `shift` is taken off; None where they are normalised by mean and std.
      shift: what is taken off the latents (0 but for Stable Diffusion 3's and Flux's autoencoders).
      mean: of each channel: of pixels in [-1, 1]; of latents before any scale (for moments: of z drawn from them).
      std: of each channel, likewise.
      text_encoder: the name of the captions' encoder; "" without captions.
      crop: how the images were made square.
      skipped: how many originals could not be decoded.
      shards: in the order of the examples.
    """

    source: str
    split: str
    kind: str
    image_size: int
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

    def __post_init__(self):
        def expect(holds: bool, field: str, expected: str) -> None:
            if not holds:
                raise UserError(f"{field} is {getattr(self, field)!r}, expected {expected}")

        expect(self.kind in KINDS, "kind", f"one of {', '.join(KINDS)}")
        expect(self.dtype in DTYPES, "dtype", f"one of {', '.join(DTYPES)}")
        expect((self.kind == "pixels") == (self.dtype == "uint8"), "dtype", "uint8 for pixels and a float otherwise")
        expect(self.image_size > 0, "image_size", "a positive number")
        expect(len(self.shape) == 3 and min(self.shape) > 0, "shape", "three positive numbers, (h, w, c)")
        expect(self.kind != "moments" or self.shape[-1] % 2 == 0, "shape", "as many means as logvars, an even c")
        expect(self.num_classes >= 0, "num_classes", "a number from 0 up")
        count = len(self.class_names)
        if count not in (0, self.num_classes):
            raise UserError(f"class_names has {count} entries, expected none or num_classes = {self.num_classes}")
        channels = self.shape[-1] // (2 if self.kind == "moments" else 1)
        for field in ("mean", "std"):
            values = getattr(self, field)
            expect(len(values) == channels and all(map(math.isfinite, values)), field, f"{channels} finite numbers")
        expect(min(self.std) > 0, "std", "positive numbers")
        expect(self.scale is None or (math.isfinite(self.scale) and self.scale > 0), "scale", "positive, or none")
        expect(math.isfinite(self.shift), "shift", "a finite number")
        expect(self.skipped >= 0, "skipped", "a number from 0 up")
        if len({shard.name for shard in self.shards}) < len(self.shards):
            raise UserError("shards has a name twice, expected as many files as entries")
        each = 2 if self.mirror else 1
        for shard in self.shards:
            if shard.num_records != each * shard.num_examples:
                raise UserError(
                    f"num_records of {shard.name} is {shard.num_records}, expected {each * shard.num_examples} "
                    f"({each} for each of its {shard.num_examples} examples)"
                )

    @property
    def num_examples(self) -> int:
        """Images, not counting their mirror images."""
        return sum(shard.num_examples for shard in self.shards)

    @property
    def num_records(self) -> int:
        """Records in all shards."""
        return sum(shard.num_records for shard in self.shards)

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
        values = {"format_version": FORMAT_VERSION} | dataclasses.asdict(self)
        # A line for each field and each shard: json's own indent would spend one on every class and number.
        fields = [f"  {json.dumps(name)}: {_dumps(value)}" for name, value in values.items() if name != "shards"]
        shards = ",\n".join(f"    {_dumps(shard)}" for shard in values["shards"])
        text = "{\n" + ",\n".join([*fields, '  "shards": [\n' + shards + "\n  ]"]) + "\n}\n"
        try:
            with atomic_write(path) as file:
                file.write(text.encode())
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}; expected room for {len(text)} bytes") from error

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
            raise UserError(
                f"cannot read {path}: {error.strerror}; expected the folder of a prepared data set"
            ) from error
        except ValueError as error:
            raise UserError(f"{path} is damaged ({error}); expected the JSON that preparing wrote") from error
        if not isinstance(values, dict) or not isinstance(values.get("format_version"), int):
            raise UserError(f"{path} has no format_version; expected the manifest of a prepared data set")
        version = values.pop("format_version")
        if version != FORMAT_VERSION:
            raise UserError(
                f"{path}: format_version is {version}, expected {FORMAT_VERSION}: update uvit_jax to read it"
            )
        try:
            shards = values.get("shards")
            if isinstance(shards, list):
                values["shards"] = [_from_json(Shard, "a shard", shard) for shard in shards]
            return _from_json(cls, "the manifest", values)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _from_json(cls: type, what: str, values: Any) -> Any:
    """A dataclass of these values, none of them missing, unknown or of another type."""
    hints = typing.get_type_hints(cls)
    if not isinstance(values, dict):
        raise UserError(f"{what} is {values!r:.60}, expected the fields {', '.join(hints)}")
    for name in sorted(hints.keys() ^ values.keys()):
        raise UserError(f"{what} {'lacks the field' if name in hints else 'has the unknown field'} {name!r}")
    made = {}
    for name, value in values.items():
        try:
            made[name] = _typed(value, hints[name])
        except TypeError:
            shown = getattr(hints[name], "__name__", "") if isinstance(hints[name], type) else str(hints[name])
            raise UserError(f"{name} is {value!r:.60}, expected {shown}") from None
    return cls(**made)


def _typed(value: Any, hint: Any) -> Any:
    """A value read from JSON as the type that an annotation names: lists become tuples, a bool is no number.

    Raises:
      TypeError: it is of another type.
    """
    if isinstance(hint, types.UnionType):
        return None if value is None else _typed(value, typing.get_args(hint)[0])
    if typing.get_origin(hint) is tuple:
        if isinstance(value, list):
            return tuple(_typed(item, typing.get_args(hint)[0]) for item in value)
    elif isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool):
        return value
    elif hint is float and type(value) is int:
        return float(value)
    raise TypeError
