"""The job `sample`: a workdir's weights in, images out, as PNGs or one .npz, and a grid of the
first of them.
"""

import contextlib
import dataclasses
import logging
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from uvit_jax.data.image_output import npz_writer, save_png
from uvit_jax.errors import UserError, counted
from uvit_jax.experiment.config import Experiment
from uvit_jax.experiment.folder_lock import locked
from uvit_jax.experiment.weights import Weights, open_weights
from uvit_jax.experiment.workdir import folder_name, open_workdir
from uvit_jax.files import atomic_write
from uvit_jax.jobs.evaluation.report import drawn_samples
from uvit_jax.jobs.sampling import pictures
from uvit_jax.jobs.sampling.generation import (
    Generation,
    agree_on_generation,
    open_conditions,
    open_generation_parts,
)
from uvit_jax.jobs.sampling.sample_folder import NPZ, Request, claim, png_name
from uvit_jax.parallel import hosts
from uvit_jax.telemetry.progress import Progress

LOG = logging.getLogger("uvit_jax")

# The grid shows this many samples at most: a page that a screen can hold.
GRID_SAMPLES = 100


def run(experiment: Experiment, workdir: pathlib.Path) -> str:
    """Draws `config.sample.num_samples` images; returns one line that says what was made and where.

    Raises:
      UserError: for what is wrong with the config, the weights or the folder, before any device
        works.
    """
    config = experiment.sample
    parts, text = hosts.on_all(open_generation_parts, experiment, workdir)
    agree_on_generation(parts, text, workdir)
    if config.format == "png" and parts.image_shape[2] > 4:
        raise UserError(
            f"config.sample.format is 'png', expected 'npz' for images of {parts.image_shape[2]} "
            f"channels"
        )
    conditions = hosts.on_all(lambda: open_conditions(parts, text, count=config.num_samples))
    weights = open_weights(parts, workdir)
    generation = Generation(parts, conditions, config.batch_size)
    request = _request(generation, weights)
    out = (
        pathlib.Path(config.out)
        if config.out
        else workdir / "samples" / _folder(experiment, weights, request)
    )
    field = "config.sample.out" if config.out else "workdir"
    open_workdir(out, field)
    with locked(out, "sample"):
        hosts.on_all(lambda: claim(out, request, field) if hosts.is_first() else None)
        return _sample(generation, weights, out)


def _sample(generation: Generation, weights: Weights, out: pathlib.Path) -> str:
    """Fills the folder; returns the line that the job ends with."""
    conditions, config = generation.conditions, generation.parts.experiment.sample
    LOG.info("sampling %s with %s", counted(config.num_samples, "image"), weights.title)

    # --- Batch after batch: the sampler's program is compiled once, all hosts draw, and one writes.
    indices = np.arange(config.num_samples)
    labels = conditions.of(indices) if conditions.labels else None
    began, first = time.monotonic(), 0
    shown: list[np.ndarray] = []
    with (
        Progress(config.num_samples, description="sample", active=hosts.is_first()) as progress,
        _writer(generation.parts.experiment, out, labels) as write,
    ):
        for batch in generation.batches(weights.params, 0, config.num_samples):
            write(first, batch)
            if first < GRID_SAMPLES:
                shown.append(
                    batch[: GRID_SAMPLES - first].copy()
                )  # a view would keep the whole batch
            first += len(batch)
            progress.update(first)
    seconds = time.monotonic() - began

    # --- What they are, and a picture of the first of them.
    made = NPZ if config.format == "npz" else counted(config.num_samples, "PNG")
    if hosts.is_first():
        if config.prompts:
            with atomic_write(out / "prompts.txt") as file:
                file.write(
                    "".join(f"{name}\n" for name in conditions.names_of(indices) or ()).encode()
                )
        title = pictures.title_of(weights.title, config)
        pictures.save_grid(np.concatenate(shown), conditions, out / "grid.png", title)
    return (
        f"sampled {counted(config.num_samples, 'image')} in {seconds:.1f} s: see "
        f"{out}/grid.png, {made}"
    )


def _request(generation: Generation, weights: Weights) -> Request:
    """What the folder is for; all hosts call this together."""
    config = generation.parts.experiment.sample
    # Both are of as many samples as are asked for.
    asked: dict[str, Any] = drawn_samples(generation, weights, config.num_samples, "")
    asked = {name: value for name, value in asked.items() if name not in ("count", "labels sha256")}
    return Request(config.format, config.num_samples, asked)


def _folder(experiment: Experiment, weights: Weights, request: Request) -> str:
    """A name for the folder: something to read, and a word of its own for the request."""
    return folder_name(
        f"{weights.folder}_seed_{experiment.sample.seed}", dataclasses.asdict(request)
    )


@contextlib.contextmanager
def _writer(
    experiment: Experiment, out: pathlib.Path, labels: np.ndarray | None
) -> Iterator[Callable[[int, np.ndarray], None]]:
    """`write(first, images)`, called batch after batch; nothing on hosts other than the first."""
    config = experiment.sample

    def save_pngs(first: int, images: np.ndarray) -> None:
        for i, image in enumerate(images, first):
            save_png(image, out / png_name(i, None if labels is None else int(labels[i])))

    if not hosts.is_first():
        yield lambda first, images: None
    elif config.format == "png":
        yield save_pngs
    else:
        with npz_writer(out / NPZ, config.num_samples, labels) as append:
            yield lambda first, images: append(images)
