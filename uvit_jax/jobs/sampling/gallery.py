"""The pictures of a run: a grid of samples now and then and, at the end, one batch denoised."""

import pathlib

import numpy as np

from uvit_jax.experiment.assembled import Assembled
from uvit_jax.experiment.sections import DiffusionConfig, SampleConfig
from uvit_jax.jobs.sampling import pictures
from uvit_jax.jobs.sampling.conditions import Conditions
from uvit_jax.jobs.sampling.generation import make_generation
from uvit_jax.parallel import hosts
from uvit_jax.parallel.batches import round_up
from uvit_jax.parallel.mesh import batch_parts
from uvit_jax.telemetry.writers import MetricWriter
from uvit_jax.training.state import TrainState


class Gallery:
    """Draws samples with the EMA weights; all hosts call it together, the first one writes."""

    def __init__(
        self,
        assembled: Assembled,
        diffusion: DiffusionConfig,
        sample: SampleConfig,
        conditions: Conditions,
        *,
        count: int,
        writer: MetricWriter,
        folder: pathlib.Path,
    ):
        """count: samples in a grid. folder: that PNGs are written to."""
        self._assembled, self._diffusion, self._sample = assembled, diffusion, sample
        self._count, self._writer, self._folder = count, writer, folder
        rows = round_up(count, batch_parts(assembled.mesh))
        self._generation = make_generation(
            assembled, diffusion, sample, conditions, batch_size=rows
        )

    def draw_step(self, state: TrainState) -> None:
        """Draws the grid of a step."""
        self._grid(state, f"step_{int(state.step):08d}.png")

    def draw_last(self, state: TrainState) -> None:
        """Draws the last grid, and one batch being denoised."""
        self._grid(state, "final.png")
        pictures.save_strip(
            self._assembled,
            self._diffusion,
            self._sample,
            self._generation.conditions,
            state.ema,
            self._folder / "denoising.png",
        )

    def _grid(self, state: TrainState, name: str) -> None:
        generation, step = self._generation, int(state.step)
        images = np.concatenate(list(generation.batches(state.ema, 0, self._count)))
        if not hosts.is_first():
            return
        title = f"step {step:,}, guidance {generation.guidance_scale:g}"
        page = pictures.save_grid(images, generation.conditions, self._folder / name, title)
        self._writer.write_image("samples", step, page)
