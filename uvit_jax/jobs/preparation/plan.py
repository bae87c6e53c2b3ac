"""The plan of a prepared data set: what is stored of which images, the same for all shards."""

import dataclasses
import hashlib
import json
from typing import Any

import ml_dtypes  # noqa: F401  (NumPy knows the name "bfloat16" from here on)
import numpy as np

from uvit_jax.data.image_sources.crops import Size, sides
from uvit_jax.experiment.sections import AutoencoderSection
from uvit_jax.experiment.text_states import TextStates
from uvit_jax.interop.autoencoder import Autoencoder
from uvit_jax.interop.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Plan:
    """The settings that decide what is stored, the same from the first shard to the last.

    The fields are those of the manifest, and whatever else decides which images are in which shard
    and what is stored of them: a run that continues another's shards must agree on all of it.

    Attributes:
      autoencoder_dtype: what the autoencoder computes in; "" without one.
      tokenizer_sha256: of the tokens of captions (`_sha256_of`); "" without captions.
      text_encoder_dtype: what the text encoder computes in; "" without one.
      listing_sha256: of the source's files, labels, captions and classes (`listing_sha256`); "" for
        the official features, whose files are numbered without a gap.
      exif: True if images are turned as their EXIF orientation says.
      unknown_labels: True if the source has classes but every label is -1, so none is stored.
    """

    source: str
    split: str
    kind: str
    image_size: Size
    shape: tuple[int, ...]
    dtype: str
    mirror: bool
    autoencoder: str
    autoencoder_sha256: str
    autoencoder_dtype: str
    scale: float | None
    shift: float
    crop: str
    text_encoder: str
    text_encoder_sha256: str
    text_encoder_dtype: str
    tokenizer_sha256: str
    context_shape: tuple[int, ...]
    context_dtype: str
    num_images: int
    images_per_shard: int
    listing_sha256: str
    # Added by later versions; the defaults are what earlier versions did.
    exif: bool = False
    unknown_labels: bool = False

    @property
    def stored_dtype(self) -> np.dtype:
        """The NumPy dtype of what is stored."""
        return np.dtype(self.dtype)


NO_TEXT: dict[str, Any] = {
    "text_encoder": "",
    "text_encoder_sha256": "",
    "text_encoder_dtype": "",
    "tokenizer_sha256": "",
    "context_shape": (),
    "context_dtype": "",
}


def square_or_sides(height: int, width: int) -> Size:
    """The size as manifests have it: one number for a square."""
    return height if height == width else (height, width)


def pixel_fields(size: Size, channels: int) -> dict[str, Any]:
    """The plan's fields on images stored as pixels."""
    return {
        "kind": "pixels",
        "shape": (*sides(size), channels),
        "dtype": "uint8",
        "autoencoder": "",
        "autoencoder_sha256": "",
        "autoencoder_dtype": "",
        "scale": None,
        "shift": 0.0,
    }


def latent_fields(
    autoencoder: Autoencoder, section: AutoencoderSection, size: Size, dtype: str
) -> dict[str, Any]:
    """The plan's fields on images stored as an autoencoder's latents, in this dtype."""
    height, width = (side // autoencoder.factor for side in sides(size))
    return {
        "kind": "moments" if autoencoder.has_variance else "latents",
        "shape": (
            height,
            width,
            autoencoder.latent_channels * (2 if autoencoder.has_variance else 1),
        ),
        "dtype": dtype,
        "autoencoder": autoencoder.name,
        "autoencoder_sha256": autoencoder.sha256,
        "autoencoder_dtype": section.dtype,
        "scale": autoencoder.scale if section.scale is None else section.scale,
        "shift": autoencoder.shift,
    }


def caption_fields(text: TextStates, dtype: str) -> dict[str, Any]:
    """The plan's fields on captions, whose states are stored in this dtype."""
    return {
        "text_encoder": text.encoder.name,
        "text_encoder_sha256": text.encoder.sha256,
        "text_encoder_dtype": text.dtype,
        "tokenizer_sha256": _sha256_of(text.tokenizer),
        "context_shape": text.shape,
        "context_dtype": dtype,
    }


def _sha256_of(tokenizer: Tokenizer) -> str:
    """A hash of what decides a cleaned text's ids: the same for every file of the same tokens."""
    model = json.loads(tokenizer.backend.to_str())["model"]
    # Written as "a b" or as ["a", "b"], by the library's version.
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    ids = (tokenizer.start, tokenizer.end, tokenizer.pad, tokenizer.context_length)
    return hashlib.sha256(
        json.dumps([sorted(model["vocab"].items()), merges, ids]).encode()
    ).hexdigest()
