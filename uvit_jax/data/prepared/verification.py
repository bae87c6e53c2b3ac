"""Rereads a prepared data set from its first byte to its last."""

import os
import pathlib
from collections.abc import Callable

import numpy as np

from uvit_jax.data.prepared.empty_context import load_empty_context
from uvit_jax.data.prepared.manifest import Manifest
from uvit_jax.data.prepared.records import CaptionReader, ExampleReader
from uvit_jax.errors import UserError


def verify(
    folder: str | os.PathLike[str], on_shard: Callable[[int, int], None] = lambda done, total: None
) -> Manifest:
    """Rereads all shards of a folder; returns its manifest if every byte is as it was written.

    Checked are sizes, every record's hash, length, label and, of floats, that they are finite, and
    SHA-256; of a text data set also that every caption is UTF-8 and belongs to one image.

    Args:
      folder: of the manifest and the shards.
      on_shard: called with (shards done, shards in all) after each.

    Raises:
      UserError: the first fault, by shard and record.
    """
    manifest = Manifest.load(folder)
    examples = ExampleReader(pathlib.Path(folder), manifest)
    captions = CaptionReader(pathlib.Path(folder), manifest) if manifest.has_text else None
    if captions is not None:
        load_empty_context(folder, manifest)
    for index in range(len(manifest.shards)):
        _check_examples(examples, manifest, index)
        if captions is not None:
            for number, (states, _) in enumerate(captions.scan(index)):
                _check_finite(captions.records.path(index), number, states)
        # Last, as it can't name the record; it also covers the bytes between records.
        for reader in (examples, captions):
            if reader is not None:
                reader.records.check_sha256(index)
        on_shard(index + 1, len(manifest.shards))
    return manifest


def _check_examples(examples: ExampleReader, manifest: Manifest, index: int) -> None:
    path, shard = examples.records.path(index), manifest.shards[index]
    lowest, highest = (0, manifest.num_classes - 1) if manifest.num_classes else (-1, -1)
    # The captions of the latest image, and the number of the first that no image has had.
    captions, following = range(0), 0
    for number, ((label, *found), array) in enumerate(examples.scan(index)):
        if not lowest <= label <= highest:
            expected = (
                f"0 to {highest}" if manifest.num_classes else "-1 in a data set without labels"
            )
            raise UserError(f"{path} record {number} has label {label}, expected {expected}")
        if manifest.dtype != "uint8":
            _check_finite(path, number, array)
        if manifest.has_text:
            first, count = found
            if manifest.mirror and number % 2:
                if (first, count) != (captions.start, len(captions)):
                    raise UserError(
                        f"{path} record {number} has {count} captions from {first} on, expected "
                        f"those of the image that it mirrors, {len(captions)} from "
                        f"{captions.start} on"
                    )
            elif first != following or count < 1:
                raise UserError(
                    f"{path} record {number} has {count} captions from {first} on, expected at "
                    f"least one from {following} on"
                )
            captions = range(first, first + count)
            following = captions.stop
    if following != shard.num_captions:
        raise UserError(
            f"{path} has {following} captions, expected {shard.num_captions}: prepare the data "
            f"set again"
        )


def _check_finite(path: pathlib.Path, number: int, array: np.ndarray) -> None:
    if not np.isfinite(array).all():
        raise UserError(f"{path} record {number} holds NaN or infinity, expected finite numbers")
