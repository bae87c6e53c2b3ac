"""The job `sample`: a workdir's weights in, images out, as PNGs or one .npz, and a grid of the first of them."""

import logging
import pathlib
import time

import jax
import numpy as np

from uvit_jax.data.sources import load_source
from uvit_jax.jobs import pictures
from uvit_jax.jobs.config import Experiment, check_architecture, open_workdir, sample_labels
from uvit_jax.jobs.setup import assemble
from uvit_jax.parallel.sharding import tree_shardings
from uvit_jax.telemetry.images import save_npz, save_png, to_uint8
from uvit_jax.telemetry.progress import Progress
from uvit_jax.training.checkpoint import Checkpoints

LOG = logging.getLogger("uvit_jax")

# The grid shows this many samples at most: a page that a screen can hold.
GRID_SAMPLES = 100


def run(experiment: Experiment, workdir: pathlib.Path) -> str:
    """Draws `config.sample.num_samples` images; returns one line that says what was made and where.

    Raises:
      UserError: for what is wrong with the config, the checkpoint or the folder, before any device works.
    """
    config = experiment.sample
    labels = sample_labels(experiment, config.num_samples)
    class_names = load_source(experiment.data.source).class_names
    parts = assemble(experiment, class_names)
    check_architecture(experiment, workdir)

    # --- The weights, read onto the mesh.
    shapes = jax.eval_shape(parts.init_params, jax.random.key(0))
    template = jax.tree.map(
        lambda leaf, sharding: leaf.update(sharding=sharding), shapes, tree_shardings(shapes, parts.mesh)
    )
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    params, step = checkpoints.restore_weights(
        template, weights=config.weights, step=None if config.step < 0 else config.step
    )
    out = pathlib.Path(config.out) if config.out else workdir / "samples" / f"step_{step:08d}_seed_{config.seed}"
    open_workdir(out)
    LOG.info("sampling %d images with the %s weights of step %d", config.num_samples, config.weights, step)

    # --- Batch after batch: the sampler's program is compiled once.
    sampler, began = parts.sampler(), time.monotonic()
    batches: list[np.ndarray] = []
    with Progress(config.num_samples, description="sample", active=jax.process_index() == 0) as progress:
        for first in range(0, config.num_samples, config.batch_size):
            count = min(config.batch_size, config.num_samples - first)
            batch = pictures.draw_samples(
                experiment, sampler, params, first=first, count=count, batch_size=config.batch_size
            )
            batches.append(to_uint8(batch))
            progress.update(first + count)
    images, seconds = np.concatenate(batches), time.monotonic() - began

    # --- Files.
    if config.format == "npz":
        save_npz(out / "samples.npz", images, labels)
    else:
        for i, image in enumerate(images):
            name = f"{i:06d}.png" if labels is None else f"{i:06d}_label_{labels[i]}.png"
            save_png(image, out / name)
    title = f"step {step:,}, {config.weights}, {config.solver} {config.steps}, guidance {config.guidance_scale:g}"
    pictures.save_grid(parts, images[:GRID_SAMPLES], out / "grid.png", title)
    made = "samples.npz" if config.format == "npz" else f"{len(images)} PNGs"
    return f"sampled {len(images)} images in {seconds:.1f} s: see {out}/grid.png, {made}"
