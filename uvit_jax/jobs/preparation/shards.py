"""Makes the shards of a prepared data set, and the manifest that describes them."""

import logging
import pathlib
import time
from collections.abc import Sequence

import numpy as np

from uvit_jax.data.prepared.empty_context import save_empty_context
from uvit_jax.data.prepared.manifest import Manifest
from uvit_jax.data.prepared.shard_writer import ShardWriter
from uvit_jax.data.prepared.statistics import LEAST_DRAWN_STD, ChannelSums, channel_sums
from uvit_jax.errors import UserError, counted
from uvit_jax.files import atomic_write
from uvit_jax.jobs.preparation.notes import FinishedShard, Notes
from uvit_jax.jobs.preparation.prepared_examples import Example, PreparedExamples
from uvit_jax.telemetry.progress import Progress

LOG = logging.getLogger("uvit_jax")

_SECONDS_BETWEEN_RATES = 1.0


class Rate:
    """Counts images into the progress, with the images per second of the last second or so."""

    def __init__(self, progress: Progress, done: int):
        self._progress, self._done = progress, done
        self._since, self._counted = time.monotonic(), done

    def add(self, images: int) -> None:
        """Counts that many images more."""
        self._done += images
        seconds = time.monotonic() - self._since
        if seconds < _SECONDS_BETWEEN_RATES:
            self._progress.update(self._done)
            return
        self._progress.update(self._done, images_per_sec=(self._done - self._counted) / seconds)
        self._since, self._counted = time.monotonic(), self._done


def images_of_shards(num_images: int, images_per_shard: int) -> dict[str, range]:
    """The images of each shard, by its file's name; the same for any number of hosts."""
    firsts = range(0, num_images, images_per_shard)
    return {
        f"{i:05d}-of-{len(firsts):05d}.array_record": range(
            first, min(first + images_per_shard, num_images)
        )
        for i, first in enumerate(firsts)
    }


def make_shard(
    prepared: PreparedExamples, notes: Notes, name: str, images: range, rate: Rate
) -> None:
    """Writes the shard of these images, then the note that it is finished.

    Raises:
      UserError: for an image that can't be read (unless such are skipped), a full disk, or another
        job at work in the same folder.
    """
    plan = prepared.plan
    skipped: list[str] = []
    sums: ChannelSums | None = None
    max_label = -1
    with ShardWriter(
        notes.out,
        name,
        plan.shape,
        plan.stored_dtype,
        mirror=plan.mirror,
        context_shape=plan.context_shape or None,
        context_dtype=plan.context_dtype or None,
    ) as writer:
        for examples, errors in prepared.examples(images):
            skipped += errors
            for example in examples:
                writer.write(example.label, *example.arrays, captions=example.captions or None)
                max_label = max(max_label, example.label)
            if examples:
                batch = channel_sums(plan.kind, _stack(examples))
                sums = batch if sums is None else sums + batch
            rate.add(len(examples) + len(errors))
        notes.check_not_replaced(plan)
    notes.finish(name, FinishedShard(writer.shard, sums, max_label, tuple(skipped)))


def _stack(examples: Sequence[Example]) -> np.ndarray:
    return np.stack([array for example in examples for array in example.arrays])


def write_manifest(prepared: PreparedExamples, notes: Notes, names: Sequence[str]) -> Manifest:
    """Describes all shards in `manifest.json`; lists the images left out in `skipped.txt`.

    Raises:
      UserError: for a shard that is not there, or where no image could be read.
    """
    absent = [name for name in names if not notes.is_finished(name)]
    if absent:
        raise UserError(
            f"{notes.out} lacks {counted(len(absent), 'shard')} (first: {absent[0]}), expected "
            "every host to write to one shared folder"
        )
    notes.remove_temporary_files()
    finished = [notes.finished(name) for name in names]
    skipped = [error for shard in finished for error in shard.skipped]
    all_sums = [shard.sums for shard in finished if shard.sums is not None]
    if not all_sums:
        raise UserError(f"none of the {len(skipped)} images can be read (first: {skipped[0]})")
    sums = sum(all_sums[1:], all_sums[0])
    if skipped:
        _list_skipped(notes.out, skipped)
    empty_context = {}
    if prepared.empty_context is not None:
        sha256 = save_empty_context(notes.out, prepared.empty_context())
        empty_context = {"empty_context_sha256": sha256}
    manifest = prepared.manifest(
        **empty_context,
        num_classes=len(prepared.class_names) or max(shard.max_label for shard in finished) + 1,
        mean=sums.mean,
        std=_deviations(prepared.plan.kind, sums),
        skipped=len(skipped),
        shards=tuple(shard.shard for shard in finished),
    )
    manifest.save(notes.out)
    return manifest


def _list_skipped(out: pathlib.Path, errors: Sequence[str]) -> None:
    path = out / "skipped.txt"
    with atomic_write(path) as file:
        file.write("".join(f"{error}\n" for error in errors).encode())
    LOG.info("left out %s that can't be read: see %s", counted(len(errors), "image"), path)


def _deviations(kind: str, sums: ChannelSums) -> tuple[float, ...]:
    """Standard deviation of each channel; warns of latents that never vary."""
    constant = [channel for channel, std in enumerate(sums.std) if not std]
    if constant and kind != "pixels":
        LOG.warning(
            "channel %s of the latents never varies: it is stored as it is, and normalised to "
            "mean 0 alone",
            constant[0],
        )
    least = LEAST_DRAWN_STD if kind == "moments" else 0.0
    return tuple(max(std, least) for std in sums.std)


def summary(manifest: Manifest) -> str:
    """A data set in words: kind, counts, shape and size."""
    mirrored = " and their mirror images" if manifest.mirror else ""
    shape = "x".join(map(str, manifest.shape))
    size = manifest.num_bytes / 2**20
    captions = f" with {counted(manifest.num_captions, 'caption')}" if manifest.num_captions else ""
    skipped = f", {manifest.skipped} left out" if manifest.skipped else ""
    what = f"{manifest.kind} of " if manifest.kind != "pixels" else ""
    return (
        f"{what}{counted(manifest.num_examples, 'image')}{mirrored}{captions}{skipped} ({shape} "
        f"{manifest.dtype}, {counted(len(manifest.shards), 'shard')}, {size:,.1f} MiB)"
    )
