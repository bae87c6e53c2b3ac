"""The job `prepare`: images in, a sharded data set of pixels or latents out. The same command again
goes on.
"""

import dataclasses
import json
import logging
import pathlib
import time
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from uvit_jax.data.prepared.empty_context import save_empty_context
from uvit_jax.data.prepared.manifest import FILE_NAME as MANIFEST
from uvit_jax.data.prepared.manifest import Manifest, Shard
from uvit_jax.data.prepared.shard_writer import ShardWriter
from uvit_jax.data.prepared.statistics import LEAST_DRAWN_STD, ChannelSums, channel_sums
from uvit_jax.data.prepared.verification import verify
from uvit_jax.data.sources import SOURCES
from uvit_jax.errors import UserError, counted
from uvit_jax.experiment.config import Experiment
from uvit_jax.experiment.folder_lock import locked
from uvit_jax.experiment.workdir import open_workdir
from uvit_jax.files import atomic_write
from uvit_jax.jobs.preparation.prepared_examples import Example, Ingredients, Plan, open_ingredients
from uvit_jax.parallel import hosts
from uvit_jax.telemetry.progress import Progress

LOG = logging.getLogger("uvit_jax")

# Beside the shards: what was asked for, and of each finished shard what the manifest will need.
_NOTES = ".prepare"
_SECONDS_BETWEEN_RATES = 1.0
# What earlier versions, whose plans have no such field, stored.
_LATER_FIELDS = {
    field.name: field.default
    for field in dataclasses.fields(Plan)
    if field.default is not dataclasses.MISSING
}
# What fields of the plan are of, where their names don't say it.
_OF = {
    "listing_sha256": " (of the source's file names, labels, captions and class names)",
    "tokenizer_sha256": " (of config.text_encoder.tokenizer's tokens)",
}


def run(experiment: Experiment, workdir: pathlib.Path) -> str:
    """Makes the data set in `config.prepare.out`, or checks it; returns one line that says what is
    there and where.

    Raises:
      UserError: for what is wrong with the config, the source, the autoencoder or the folder,
        before any device works; for an image that can't be read or a full disk on the way, with
        finished shards left as they are.
    """
    config = experiment.prepare
    out = _out_folder(experiment)
    first = hosts.is_first()
    if config.verify:
        return hosts.on_all(lambda: _verify(out) if first else "")

    # --- Everything that can be wrong is found here, on whichever host it is.
    ingredients = hosts.on_all(open_ingredients, experiment)
    plan = dataclasses.asdict(ingredients.plan)
    hosts.agree({f"{name} of what is prepared": value for name, value in plan.items()})
    open_workdir(out, "config.prepare.out" if config.out else "config.data.source")
    with locked(out, "prepare"):
        return _make(ingredients, plan, out, config.images_per_shard)


def _make(
    ingredients: Ingredients, plan: dict[str, Any], out: pathlib.Path, images_per_shard: int
) -> str:
    """Makes the shards that are missing, and the manifest; returns the line that the job ends with."""
    first = hosts.is_first()
    shards = _shards(len(ingredients), images_per_shard)
    # The first host looks for all: a folder that they share may show another what stood in it a
    # while ago.
    missing = hosts.first_says(
        hosts.on_all(lambda: _missing(out, plan, shards) if first else "")
    ).split()
    if not missing:
        return hosts.on_all(lambda: _already(out) if first else "")

    # --- Each host makes its own shards, one after another.
    mine = list(shards)[hosts.index() :: jax.process_count()]
    done = sum(len(shards[name]) for name in mine if name not in missing)
    total = sum(len(shards[name]) for name in mine)
    if done:
        LOG.info("going on: %d of %d images stand in finished shards", done, total)
    began = time.monotonic()
    with Progress(total, start=done, description="prepare", active=first) as progress:
        rate = _Rate(progress, done)
        for name in mine:
            if name in missing:
                _make_shard(ingredients, out, name, shards[name], rate)
    if hosts.are_several():
        multihost_utils.sync_global_devices("prepare: all shards")

    # --- One host describes them all.
    seconds = time.monotonic() - began
    return hosts.on_all(lambda: _describe(ingredients, out, list(shards), seconds) if first else "")


def _out_folder(experiment: Experiment) -> pathlib.Path:
    config, source = experiment.prepare, experiment.data.source
    if not config.out and source in SOURCES:
        raise UserError(
            f"config.prepare.out is empty and config.data.source is {source!r}, expected a folder "
            f"to make"
        )
    return pathlib.Path(config.out or source)


def _verify(out: pathlib.Path) -> str:
    with Progress(len(Manifest.load(out).shards), description="verify") as progress:
        manifest = verify(out, lambda done, total: progress.update(done))
    return f"verified {_summary(manifest)}: every record of {out} is as it was written"


def _missing(out: pathlib.Path, plan: dict[str, Any], shards: Iterable[str]) -> str:
    """The names of the files that are still to be made by this plan, the manifest's last, with
    blanks between.
    """
    _check_plan(out, plan)
    there = (out / MANIFEST).exists()
    return " ".join(
        [*(name for name in shards if not _is_done(out, name)), *([] if there else [MANIFEST])]
    )


def _already(out: pathlib.Path) -> str:
    return f"already prepared, nothing to do: {_summary(Manifest.load(out))}: see {out}/{MANIFEST}"


def _check_plan(out: pathlib.Path, plan: dict[str, Any]) -> None:
    """Notes what is asked for or, once a shard is finished, compares it with what that was asked
    for.
    """
    path, plan = out / _NOTES / "plan.json", json.loads(json.dumps(plan))
    if not (out / MANIFEST).exists() and not any(out.glob("*.array_record")):
        # A run that failed before its first shard, or whose shards were deleted, binds no other.
        for note in (out / _NOTES).glob("*.array_record.json"):
            note.unlink()
        _write_json(path, plan)
        return
    if not path.exists():
        if (out / MANIFEST).exists():
            raise UserError(
                f"config.prepare.out is {str(out)!r}, which holds a data set made elsewhere: "
                f"expected a new folder"
            )
        _write_json(path, plan)
        return
    found = json.loads(json.dumps(_LATER_FIELDS)) | _read_json(path)
    for field in plan:
        if field not in found:
            _check_finished(out, path, field)
    for field in _differing(found, plan):
        raise UserError(
            f"{out} was begun with {field} = {found[field]!r}, but it is {plan[field]!r} "
            f"now{_OF.get(field, '')}: expected the same settings, or another config.prepare.out"
        )


def _differing(found: dict[str, Any], plan: dict[str, Any]) -> list[str]:
    """The fields in which two plans would store other things; the same weights may be found under
    another name.
    """
    alike = [field for field in plan if plan.get(f"{field}_sha256")]
    return [
        field
        for field in plan
        if field in found and found[field] != plan[field] and field not in alike
    ]


def _check_not_replaced(out: pathlib.Path, plan: Plan) -> None:
    """Raises a UserError where another job, begun before any shard was there, has noted a plan of
    its own.
    """
    found, own = (
        _read_json(out / _NOTES / "plan.json"),
        json.loads(json.dumps(dataclasses.asdict(plan))),
    )
    for field in _differing(found, own):
        raise UserError(
            f"another prepare has begun {out} with {field} = {found[field]!r}, while this one has "
            f"{own[field]!r}: expected one at a time, or another config.prepare.out"
        )


def _check_finished(out: pathlib.Path, path: pathlib.Path, field: str) -> None:
    """Refuses a plan that an earlier version noted, without this field, unless the data set is made
    already.
    """
    if not (out / MANIFEST).exists():
        raise UserError(
            f"{path} is an earlier version's, without {field}: expected another "
            "config.prepare.out, or, where source and settings are the same as when it was begun, "
            "that file deleted"
        )


def _shards(num_images: int, images_per_shard: int) -> dict[str, range]:
    """The images of each shard, whatever the number of hosts that share them."""
    firsts = range(0, num_images, images_per_shard)
    return {
        f"{i:05d}-of-{len(firsts):05d}.array_record": range(
            first, min(first + images_per_shard, num_images)
        )
        for i, first in enumerate(firsts)
    }


@dataclasses.dataclass(frozen=True)
class _Part:
    """What the manifest needs of one finished shard."""

    shard: Shard
    sums: ChannelSums | None
    max_label: int
    skipped: tuple[str, ...]

    @classmethod
    def load(cls, path: pathlib.Path) -> "_Part":
        values = _read_json(path)
        found = values["sums"]
        sums = found and ChannelSums(found["count"], tuple(found["total"]), tuple(found["squares"]))
        return cls(Shard(**values["shard"]), sums, values["max_label"], tuple(values["skipped"]))


def _part_path(out: pathlib.Path, name: str) -> pathlib.Path:
    return out / _NOTES / f"{name}.json"


def _is_done(out: pathlib.Path, name: str) -> bool:
    """Whether the shard and its note are there: the note is written last."""
    if not _part_path(out, name).exists():
        return False
    files = _Part.load(_part_path(out, name)).shard.files
    return all(
        (out / file.name).exists() and (out / file.name).stat().st_size == file.num_bytes
        for file in files
    )


def _make_shard(
    ingredients: Ingredients, out: pathlib.Path, name: str, images: range, rate: "_Rate"
) -> None:
    plan = ingredients.plan
    skipped: list[str] = []
    sums, max_label = None, -1
    with ShardWriter(
        out,
        name,
        plan.shape,
        plan.stored_dtype,
        mirror=plan.mirror,
        context_shape=plan.context_shape or None,
        context_dtype=plan.context_dtype or None,
    ) as writer:
        for examples, names in ingredients.examples(images):
            skipped += names
            for example in examples:
                writer.write(example.label, *example.arrays, captions=example.captions or None)
                max_label = max(max_label, example.label)
            if examples:
                batch = channel_sums(plan.kind, _stack(examples))
                sums = batch if sums is None else sums + batch
            rate.add(len(examples) + len(names))
        _check_not_replaced(out, plan)
    part = _Part(writer.shard, sums, max_label, tuple(skipped))
    _write_json(_part_path(out, name), dataclasses.asdict(part))


def _stack(examples: list[Example]) -> np.ndarray:
    return np.stack([array for example in examples for array in example.arrays])


def _describe(ingredients: Ingredients, out: pathlib.Path, names: list[str], seconds: float) -> str:
    """Writes the manifest; returns the line that the job ends with."""
    _write_manifest(ingredients, out, names)
    return f"prepared {_summary(Manifest.load(out))} in {seconds:.1f} s: see {out}/{MANIFEST}"


def _write_manifest(ingredients: Ingredients, out: pathlib.Path, names: list[str]) -> None:
    absent = [name for name in names if not _is_done(out, name)]
    if absent:
        raise UserError(
            f"{out} lacks {counted(len(absent), 'shard')} (first: {absent[0]}), expected every "
            "host to write to one shared folder"
        )
    # What killed runs were writing: every host is done by now.
    for left_over in (*out.glob(".*.tmp"), *(out / _NOTES).glob(".*.tmp")):
        left_over.unlink(missing_ok=True)
    parts = [_Part.load(_part_path(out, name)) for name in names]
    skipped = [name for part in parts for name in part.skipped]
    all_sums = [part.sums for part in parts if part.sums is not None]
    if not all_sums:
        raise UserError(f"none of the {len(skipped)} images can be read (first: {skipped[0]})")
    sums, rest = sum(all_sums[1:], all_sums[0]), {}
    if skipped:
        with atomic_write(out / "skipped.txt") as file:
            file.write("".join(f"{name}\n" for name in skipped).encode())
        told = counted(len(skipped), "image")
        LOG.info("left out %s that can't be read: see %s", told, out / "skipped.txt")
    kind, least = (
        ingredients.plan.kind,
        LEAST_DRAWN_STD if ingredients.plan.kind == "moments" else 0.0,
    )
    constant = [channel for channel, std in enumerate(sums.std) if not std]
    if constant and kind != "pixels":
        LOG.warning(
            "channel %s of the latents never varies: it is stored as it is, and normalised to "
            "mean 0 alone",
            constant[0],
        )
    if ingredients.empty_context is not None:
        rest = {"empty_context_sha256": save_empty_context(out, ingredients.empty_context())}
    ingredients.manifest(
        **rest,
        num_classes=len(ingredients.class_names) or max(part.max_label for part in parts) + 1,
        mean=sums.mean,
        std=tuple(max(std, least) for std in sums.std),
        skipped=len(skipped),
        shards=tuple(part.shard for part in parts),
    ).save(out)


def _summary(manifest: Manifest) -> str:
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


class _Rate:
    """Counts images into the progress, with images per second over the last while."""

    def __init__(self, progress: Progress, done: int):
        self._progress, self._done = progress, done
        self._since, self._counted = time.monotonic(), done

    def add(self, images: int) -> None:
        self._done += images
        seconds = time.monotonic() - self._since
        if seconds < _SECONDS_BETWEEN_RATES:
            self._progress.update(self._done)
            return
        self._progress.update(self._done, images_per_sec=(self._done - self._counted) / seconds)
        self._since, self._counted = time.monotonic(), self._done


def _write_json(path: pathlib.Path, values: dict[str, Any]) -> None:
    with atomic_write(path) as file:
        file.write(json.dumps(values, indent=1).encode() + b"\n")


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (ValueError, OSError):
        raise UserError(
            f"{path} can't be read: delete it, and the same command makes its shard again"
        ) from None
