"""The job `prepare`: images in, a sharded data set of pixels or latents out.

The same command again goes on where it stopped.
"""

import dataclasses
import logging
import pathlib
import time

import jax
from jax.experimental import multihost_utils

from uvit_jax.data.image_sources.crops import sides
from uvit_jax.data.image_sources.official_features import is_official_features
from uvit_jax.data.image_sources.registry import open_image_source, spelled_kinds
from uvit_jax.data.prepared.manifest import FILE_NAME as MANIFEST
from uvit_jax.data.prepared.manifest import Manifest
from uvit_jax.data.prepared.verification import verify
from uvit_jax.data.training_data import BUILT_IN
from uvit_jax.errors import UserError, counted
from uvit_jax.experiment.config import Experiment
from uvit_jax.experiment.folder_lock import locked
from uvit_jax.experiment.job_sections import PrepareConfig
from uvit_jax.experiment.opened import open_experiment_autoencoder
from uvit_jax.experiment.text_states import open_text_states
from uvit_jax.experiment.workdir import open_workdir
from uvit_jax.jobs.preparation.feature_examples import open_feature_examples
from uvit_jax.jobs.preparation.image_examples import open_image_examples
from uvit_jax.jobs.preparation.notes import Notes
from uvit_jax.jobs.preparation.plan import square_or_sides
from uvit_jax.jobs.preparation.prepared_examples import PreparedExamples
from uvit_jax.jobs.preparation.shards import (
    Rate,
    images_of_shards,
    make_shard,
    summary,
    write_manifest,
)
from uvit_jax.parallel import hosts
from uvit_jax.parallel.mesh import MeshConfig, make_mesh
from uvit_jax.telemetry.progress import Progress
from uvit_jax.training.codec import Codec

LOG = logging.getLogger("uvit_jax")


def run(experiment: Experiment, workdir: pathlib.Path) -> str:
    """Makes the data set in `config.prepare.out`, or checks it; returns one line on what is where.

    Raises:
      UserError: for what is wrong with the config, the source, the autoencoder or the folder,
        before any device works; for an image that can't be read or a full disk on the way, with
        finished shards left as they are.
    """
    prepare = experiment.prepare
    out = _out_folder(prepare, experiment.data.source)
    if prepare.verify:
        return hosts.on_first(_verify, out) or ""

    # --- Everything that can be wrong is found here, on whichever host it is.
    examples = hosts.on_all(open_examples, experiment)
    plan = dataclasses.asdict(examples.plan)
    hosts.agree({f"{name} of what is prepared": value for name, value in plan.items()})
    open_workdir(out, "config.prepare.out" if prepare.out else "config.data.source")
    with locked(out, "prepare"):
        return _make(examples, out)


def open_examples(experiment: Experiment) -> PreparedExamples:
    """Opens the source and the encoders, and plans what is stored; reads the first image.

    Raises:
      UserError: for a source, an autoencoder, a text encoder or a size that doesn't fit.
    """
    prepare, model = experiment.prepare, experiment.model
    if not prepare.source:
        raise UserError(
            f"config.prepare.source is empty, expected {spelled_kinds()} or a folder of the "
            "official repository's features"
        )
    if is_official_features(prepare.source):
        return open_feature_examples(prepare, experiment.autoencoder)
    decoding = prepare.decoding(3 if experiment.autoencoder.name else model.in_channels)
    texts = bool(experiment.text_encoder.name)
    try:
        source = open_image_source(
            prepare.source, prepare.split, prepare.data_dir, decoding, texts=texts
        )
    except UserError as error:
        is_field = str(error).startswith(("source", "split", "data_dir"))
        raise UserError(f"config.prepare.{error}" if is_field else str(error)) from None

    autoencoder = open_experiment_autoencoder(experiment.autoencoder) if prepare.latents else None
    mesh = make_mesh(MeshConfig(), jax.local_devices())
    text = open_text_states(experiment.text_encoder, mesh) if texts else None
    codec, (height, width) = None, model.input_size
    if autoencoder is not None:
        codec = Codec(autoencoder, mesh, experiment.autoencoder.batch_size)
        height, width = autoencoder.factor * height, autoencoder.factor * width
    if prepare.image_size:
        height, width = sides(prepare.image_size)
    return open_image_examples(
        source,
        prepare,
        square_or_sides(height, width),
        codec=codec,
        autoencoder=experiment.autoencoder,
        text=text,
    )


def _make(examples: PreparedExamples, out: pathlib.Path) -> str:
    """Makes the shards that are missing, and the manifest; returns the job's last line."""
    shards, notes = images_of_shards(len(examples), examples.plan.images_per_shard), Notes(out)
    # The first host looks for all: a shared folder may show the others an older state.
    found = hosts.on_first(notes.missing, examples.plan, list(shards))
    missing = hosts.first_says(" ".join(found or [])).split()
    if not missing:
        return hosts.on_first(_already, out) or ""

    # --- Each host makes its own shards, one after another.
    mine = list(shards)[hosts.index() :: jax.process_count()]
    done = sum(len(shards[name]) for name in mine if name not in missing)
    total = sum(len(shards[name]) for name in mine)
    if done:
        LOG.info("going on: %d of %d images are in finished shards", done, total)
    else:
        LOG.info("preparing %s", counted(total, "image"))
    began = time.monotonic()
    with Progress(total, start=done, description="prepare", active=hosts.is_first()) as progress:
        rate = Rate(progress, done)
        for name in mine:
            if name in missing:
                make_shard(examples, notes, name, shards[name], rate)
    if hosts.are_several():
        multihost_utils.sync_global_devices("prepare: all shards")

    # --- One host describes them all.
    seconds = time.monotonic() - began
    manifest = hosts.on_first(write_manifest, examples, notes, list(shards))
    if manifest is None:
        return ""
    return f"prepared {summary(manifest)} in {seconds:.1f} s: see {out}/{MANIFEST}"


def _out_folder(prepare: PrepareConfig, source: str) -> pathlib.Path:
    if not prepare.out and source in BUILT_IN:
        raise UserError(
            f"config.prepare.out is empty and config.data.source is {source!r}, expected a folder "
            "to make"
        )
    return pathlib.Path(prepare.out or source)


def _verify(out: pathlib.Path) -> str:
    shards = len(Manifest.load(out).shards)
    LOG.info("verifying %s of %s", counted(shards, "shard"), out)
    with Progress(shards, description="verify") as progress:
        manifest = verify(out, lambda done, total: progress.update(done))
    return f"verified {summary(manifest)}: every record of {out} is as it was written"


def _already(out: pathlib.Path) -> str:
    return f"already prepared, nothing to do: {summary(Manifest.load(out))}: see {out}/{MANIFEST}"
