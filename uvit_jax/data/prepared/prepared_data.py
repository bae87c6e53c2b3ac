"""Prepared data sets on disk, read at random: arrays, labels and captions' states."""

import os
import pathlib
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt64

from uvit_jax.data.prepared.empty_context import load_empty_context
from uvit_jax.data.prepared.manifest import Manifest
from uvit_jax.data.prepared.records import CaptionReader, ExampleReader
from uvit_jax.errors import UserError


class PreparedData:
    """The examples of a prepared data set, read at random from its shards.

    Picklable, and safe to read from threads.

    Opening reads the manifest, the sizes of the shards and the states of the empty caption, nothing
    else; a shard's reader is opened when it is first needed.

    Args:
      folder: of the manifest and the shards.

    Raises:
      UserError: the manifest or the empty caption is missing or damaged, or a shard is missing or
        not of its size.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = pathlib.Path(folder)
        self.manifest = Manifest.load(folder)
        self._open()

    def _open(self) -> None:
        self._examples = ExampleReader(self.folder, self.manifest)
        self._captions = (
            CaptionReader(self.folder, self.manifest) if self.manifest.has_text else None
        )
        self._empty_context = (
            load_empty_context(self.folder, self.manifest) if self.manifest.has_text else None
        )
        # The number of the first example of each shard, and of the first that no shard has.
        self._firsts = np.cumsum([0, *(shard.num_examples for shard in self.manifest.shards)])

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "manifest": self.manifest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return self.manifest.num_examples

    @property
    def name(self) -> str:
        """The original data set's name."""
        return self.manifest.source

    @property
    def class_names(self) -> Sequence[str]:
        """One for each class; its number where the data set has no names."""
        return self.manifest.class_names or tuple(map(str, range(self.num_classes)))

    @property
    def num_classes(self) -> int:
        """Number of classes, the empty label not counted; 0 without labels."""
        return self.manifest.num_classes

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """Shape (h, w, c) of a record's array."""
        h, w, c = self.manifest.shape
        return h, w, c

    @property
    def can_mirror(self) -> bool:
        """True if mirror images can be read: stored ones, or those of pixels."""
        return self.manifest.mirror or self.manifest.kind == "pixels"

    @property
    def context_shape(self) -> tuple[int, ...]:
        """Shape (tokens, width) of a caption's states; () without captions."""
        return self.manifest.context_shape

    @property
    def empty_context(self) -> Float[np.ndarray, "tokens width"]:
        """The states of the empty caption, in the manifest's context_dtype.

        Raises:
          UserError: the data set has no captions.
        """
        if self._empty_context is None:
            raise self._no_captions()
        return self._empty_context

    def read(
        self,
        indices: Int[np.ndarray, " n"],
        mirrored: Bool[np.ndarray, " n"],
        draws: UInt64[np.ndarray, " n"] | None = None,
        fields: Collection[str] | None = None,
    ) -> dict[str, np.ndarray]:
        """The examples of these indices as one batch, with one caption of each.

        Args:
          indices: of the examples.
          mirrored: which of them are read as mirror images.
          draws: random words, each of which picks one of its example's captions, all at equal odds;
            None for the first.
          fields: which of the arrays are wanted; None for all that the data set has. Without
            "context" no file of captions is touched.

        Returns:
          "x", `[n, h, w, c]` in the manifest's dtype; "label", int32 `[n]`, -1 without labels; and,
          of a text data set, "context", `[n, tokens, width]` in the manifest's context_dtype.

        Raises:
          UserError: a record is damaged, its shard can't be read, or mirror images or captions are
            asked for where there are none; a label is asked for that is none of the classes.
        """
        if not self.can_mirror and mirrored.any():
            raise UserError(
                f"{self.folder} holds no mirror images, as {self.manifest.kind} can't be mirrored "
                f"once encoded"
            )
        shards, records = self._places(indices, mirrored)
        heads, x = self._examples.stack(shards, records)
        if not self.manifest.mirror and mirrored.any():
            x[mirrored] = x[mirrored, :, ::-1]
        batch = {"x": x, "label": np.ascontiguousarray(heads[:, 0])}
        if fields is None or "label" in fields:
            self._check_labels(batch["label"], indices)
        if "context" in (self._fields() if fields is None else fields):
            which = np.zeros(len(indices), np.uint64) if draws is None else draws
            batch["context"] = self._contexts(shards, heads, which)
        return batch if fields is None else {name: batch[name] for name in fields}

    def captions(self, index: int) -> list[str]:
        """The texts of all captions of an example; none in a data set without text.

        Raises:
          UserError: a record is damaged, or its shard can't be read.
        """
        if self._captions is None:
            return []
        shard, numbers = self._captions_of(index)
        return [self._captions.text(shard, number) for number in numbers]

    def context(self, index: int, which: int) -> Float[np.ndarray, "tokens width"]:
        """The states of one caption of an example, counted from 0, in the manifest's context_dtype.

        Raises:
          UserError: the data set has no captions, a record is damaged, or its shard can't be read.
          IndexError: the example has fewer captions.
        """
        if self._captions is None:
            raise self._no_captions()
        shard, numbers = self._captions_of(index)
        if not 0 <= which < len(numbers):
            raise IndexError(
                f"context: got caption {which} of the {len(numbers)} of example {index}"
            )
        return self._captions.stack([shard], [numbers[which]])[0]

    def _fields(self) -> tuple[str, ...]:
        return ("x", "label", "context") if self.manifest.has_text else ("x", "label")

    def _places(
        self, indices: Int[np.ndarray, " n"], mirrored: Bool[np.ndarray, " n"]
    ) -> tuple[list[int], list[int]]:
        """The shards of these examples (or their mirror images), and their record numbers there."""
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"read: got examples {indices.min()}..{indices.max()} of {len(self)}")
        shards = np.searchsorted(self._firsts, indices, side="right") - 1
        records = indices - self._firsts[shards]
        if self.manifest.mirror:
            records = 2 * records + mirrored
        return shards.tolist(), records.tolist()

    def _check_labels(self, labels: Int[np.ndarray, " n"], indices: Int[np.ndarray, " n"]) -> None:
        """Refuses a label that is not a class.

        Earlier versions stored TFDS's -1, which a model takes for its last row.
        """
        if not self.num_classes:
            return
        for place in np.flatnonzero((labels < 0) | (labels >= self.num_classes))[:1].tolist():
            raise UserError(
                f"example {indices[place]} of {self.folder} has the label {labels[place]}, "
                f"expected 0 to {self.num_classes - 1}: prepare the data set again"
            )

    def _contexts(
        self, shards: list[int], heads: Int[np.ndarray, "n head"], draws: UInt64[np.ndarray, " n"]
    ) -> Float[np.ndarray, "n tokens width"]:
        if self._captions is None:
            raise self._no_captions()
        _, firsts, counts = heads.T
        # 2^64 words leave the remainders of a few captions equally often, to one part in 2^60.
        numbers = firsts + (draws % counts.astype(np.uint64)).astype(np.int64)
        return self._captions.stack(shards, numbers.tolist())

    def _captions_of(self, index: int) -> tuple[int, range]:
        """The shard of an example, and the numbers of its captions there."""
        (shard,), (record,) = self._places(np.array([index]), np.zeros(1, bool))
        ((_, first, count),), _ = self._examples.stack([shard], [record])
        return shard, range(int(first), int(first) + int(count))

    def _no_captions(self) -> UserError:
        return UserError(
            f"{self.folder} holds no captions, expected a data set prepared with a text encoder"
        )
