"""The job `sample`: draws images with a workdir's weights, as PNGs or one .npz, and a grid."""

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
from uvit_jax.experiment.job_sections import SampleConfig
from uvit_jax.experiment.opened import open_for_sampling
from uvit_jax.experiment.text_states import read_prompts
from uvit_jax.experiment.weights import Weights, open_weights
from uvit_jax.experiment.workdir import folder_name, open_workdir
from uvit_jax.files import atomic_write
from uvit_jax.jobs.sampling import pictures
from uvit_jax.jobs.sampling.conditions import open_conditions
from uvit_jax.jobs.sampling.generation import Generation, make_generation
from uvit_jax.jobs.sampling.record import agree_on_samples, drawn_samples
from uvit_jax.jobs.sampling.sample_folder import NPZ, Request, claim, png_name
from uvit_jax.parallel import hosts
from uvit_jax.telemetry.progress import Progress

LOG = logging.getLogger("uvit_jax")

# The grid shows at most this many samples: a page that fits a screen.
GRID_SAMPLES = 100


def run(experiment: Experiment, workdir: pathlib.Path) -> str:
    """Draws `config.sample.num_samples` images; returns one line that says what was made and where.

    Raises:
      UserError: for what is wrong with the config, the weights or the folder, before any device
        works.
    """
    sample = experiment.sample
    opened = hosts.on_all(open_for_sampling, experiment, workdir)
    assembled, text = opened.assembled, opened.text
    prompts = read_prompts(sample.prompts) if text else ()
    agree_on_samples(assembled.card, prompts, experiment.init_from, workdir)
    channels = assembled.image_shape[2]
    if sample.format == "png" and channels > 4:
        raise UserError(
            f"config.sample.format is 'png', expected 'npz' for images of {channels} channels"
        )
    count = sample.num_samples
    conditions = hosts.on_all(
        lambda: open_conditions(experiment, assembled.card, count=count, text=text)
    )
    weights = open_weights(experiment, assembled, workdir)
    record = drawn_samples(experiment, assembled, conditions, weights, count=count)
    request = request_of(sample, record)
    name = folder_name(f"{weights.folder}_seed_{sample.seed}", dataclasses.asdict(request))
    out = pathlib.Path(sample.out) if sample.out else workdir / "samples" / name
    field = "config.sample.out" if sample.out else "workdir"
    open_workdir(out, field)
    generation = make_generation(assembled, experiment.diffusion, sample, conditions)
    with locked(out, "sample"):
        hosts.on_first(claim, out, request, field)
        return _sample(generation, weights, sample, out)


def request_of(sample: SampleConfig, record: dict[str, Any]) -> Request:
    """The request that a folder is for: the record of its samples, whatever their number."""
    varying = ("count", "labels sha256")
    asked = {name: value for name, value in record.items() if name not in varying}
    return Request(sample.format, sample.num_samples, asked)


def _sample(
    generation: Generation, weights: Weights, sample: SampleConfig, out: pathlib.Path
) -> str:
    """Fills the folder; returns the line that the job ends with."""
    conditions, count = generation.conditions, sample.num_samples
    LOG.info("sampling %s with %s", counted(count, "image"), weights.title)

    # --- Batch after batch: the sampler's program is compiled once, all hosts draw, and one writes.
    indices = np.arange(count)
    labels = conditions.of(indices) if conditions.labels else None
    began, first = time.monotonic(), 0
    shown: list[np.ndarray] = []
    with (
        Progress(count, description="sample", active=hosts.is_first()) as progress,
        _writer(sample, out, labels) as write,
    ):
        for batch in generation.batches(weights.params, 0, count):
            write(first, batch)
            if first < GRID_SAMPLES:
                # A copy: a view would keep the whole batch in memory.
                shown.append(batch[: GRID_SAMPLES - first].copy())
            first += len(batch)
            progress.update(first)
    seconds = time.monotonic() - began

    # --- The prompts, and a grid of the first samples.
    if hosts.is_first():
        if sample.prompts:
            with atomic_write(out / "prompts.txt") as file:
                names = conditions.names_of(indices) or ()
                file.write("".join(f"{name}\n" for name in names).encode())
        title = pictures.title_of(weights.title, sample)
        pictures.save_grid(np.concatenate(shown), conditions, out / "grid.png", title)
    made = NPZ if sample.format == "npz" else counted(count, "PNG")
    return f"sampled {counted(count, 'image')} in {seconds:.1f} s: see {out}/grid.png, {made}"


@contextlib.contextmanager
def _writer(
    sample: SampleConfig, out: pathlib.Path, labels: np.ndarray | None
) -> Iterator[Callable[[int, np.ndarray], None]]:
    """Opens `write(first, images)`, called batch after batch; on the first host it writes files."""

    def save_pngs(first: int, images: np.ndarray) -> None:
        for i, image in enumerate(images, first):
            save_png(image, out / png_name(i, None if labels is None else int(labels[i])))

    if not hosts.is_first():
        yield lambda first, images: None
    elif sample.format == "png":
        yield save_pngs
    else:
        with npz_writer(out / NPZ, sample.num_samples, labels) as append:
            yield lambda first, images: append(images)
