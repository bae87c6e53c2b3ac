"""The job `sample`: a workdir's weights in, images out, as PNGs or one .npz, and a grid of the first of them."""

import contextlib
import dataclasses
import logging
import pathlib
import time
from collections.abc import Callable, Iterator

import numpy as np

from uvit_jax.errors import UserError
from uvit_jax.jobs import pictures
from uvit_jax.jobs.config import Experiment
from uvit_jax.jobs.generation import Generation, agree_on_generation, open_conditions, open_generation_parts
from uvit_jax.jobs.weights import Weights, open_weights
from uvit_jax.jobs.workdir import folder_name, open_workdir
from uvit_jax.parallel import hosts
from uvit_jax.telemetry.atomic import atomic_write
from uvit_jax.telemetry.counts import counted
from uvit_jax.telemetry.images import npz_writer, save_png
from uvit_jax.telemetry.progress import Progress

LOG = logging.getLogger("uvit_jax")

# The grid shows this many samples at most: a page that a screen can hold.
GRID_SAMPLES = 100
# What has no part in what a sample is.
_HOW = ("num_samples", "batch_size", "format", "out", "weights", "step")


def run(experiment: Experiment, workdir: pathlib.Path) -> str:
    """Draws `config.sample.num_samples` images; returns one line that says what was made and where.

    Raises:
      UserError: for what is wrong with the config, the weights or the folder, before any device works.
    """
    config = experiment.sample
    parts, text = hosts.together(open_generation_parts, experiment, workdir)
    agree_on_generation(parts, text, workdir)
    if config.format == "png" and parts.image_shape[2] > 4:
        raise UserError(f"config.sample.format is 'png', expected 'npz' for images of {parts.image_shape[2]} channels")
    conditions = hosts.together(lambda: open_conditions(parts, text, count=config.num_samples))
    weights = open_weights(parts, workdir)
    out = pathlib.Path(config.out) if config.out else workdir / "samples" / _folder(experiment, weights)
    open_workdir(out, "config.sample.out" if config.out else "workdir")
    LOG.info("sampling %s with %s", counted(config.num_samples, "image"), weights.title)

    # --- Batch after batch: the sampler's program is compiled once, all hosts draw, and one writes.
    indices = np.arange(config.num_samples)
    labels = conditions.of(indices) if conditions.labels else None
    generation = Generation(parts, conditions, config.batch_size)
    began, first = time.monotonic(), 0
    shown: list[np.ndarray] = []
    with (
        Progress(config.num_samples, description="sample", active=hosts.is_first()) as progress,
        _writer(experiment, out, labels) as write,
    ):
        for batch in generation.batches(weights.params, 0, config.num_samples):
            write(first, batch)
            if first < GRID_SAMPLES:
                shown.append(batch[: GRID_SAMPLES - first].copy())  # a view would keep the whole batch
            first += len(batch)
            progress.update(first)
    seconds = time.monotonic() - began

    # --- What they are, and a picture of the first of them.
    made = "samples.npz" if config.format == "npz" else counted(config.num_samples, "PNG")
    if hosts.is_first():
        if config.prompts:
            with atomic_write(out / "prompts.txt") as file:
                file.write("".join(f"{name}\n" for name in conditions.names_of(indices) or ()).encode())
        title = pictures.title_of(weights.title, config)
        pictures.save_grid(np.concatenate(shown), conditions, out / "grid.png", title)
    return f"sampled {counted(config.num_samples, 'image')} in {seconds:.1f} s: see {out}/grid.png, {made}"


def _folder(experiment: Experiment, weights: Weights) -> str:
    """A name for the folder: something to read, and a word of its own for all that decides what sample i is."""
    asked = {name: value for name, value in dataclasses.asdict(experiment.sample).items() if name not in _HOW}
    asked |= {"weights": weights.record, "source": experiment.data.source if experiment.sample.labels == "data" else ""}
    return folder_name(f"{weights.folder}_seed_{experiment.sample.seed}", asked)


@contextlib.contextmanager
def _writer(
    experiment: Experiment, out: pathlib.Path, labels: np.ndarray | None
) -> Iterator[Callable[[int, np.ndarray], None]]:
    """`write(first, images)`, called batch after batch; nothing on hosts other than the first."""
    config = experiment.sample

    def save_pngs(first: int, images: np.ndarray) -> None:
        for i, image in enumerate(images, first):
            save_png(image, out / (f"{i:06d}.png" if labels is None else f"{i:06d}_label_{labels[i]}.png"))

    if not hosts.is_first():
        yield lambda first, images: None
    elif config.format == "png":
        yield save_pngs
    else:
        with npz_writer(out / "samples.npz", config.num_samples, labels) as append:
            yield lambda first, images: append(images)
