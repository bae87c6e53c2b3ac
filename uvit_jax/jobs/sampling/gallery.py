"""The pictures of a run: a grid of samples now and then and, at the end, one batch denoised."""

import dataclasses
import pathlib

import numpy as np

from uvit_jax.diffusion.sampler import Sampler
from uvit_jax.experiment.assembled import Assembled
from uvit_jax.experiment.job_sections import SampleConfig
from uvit_jax.experiment.sections import DiffusionConfig
from uvit_jax.jobs.sampling import pictures
from uvit_jax.jobs.sampling.conditions import Conditions
from uvit_jax.jobs.sampling.generation import Generation, make_generation
from uvit_jax.parallel import hosts
from uvit_jax.parallel.batches import round_up
from uvit_jax.parallel.mesh import batch_parts
from uvit_jax.telemetry.writers import MetricWriter
from uvit_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Draws samples with the EMA weights; all hosts call it together, the first one writes.

    Attributes:
      generation: of the samples in a grid, all in one batch.
      strip: sampler that returns a trajectory (`pictures.save_strip`).
      count: samples in a grid.
      writer: of TensorBoard's events.
      folder: that PNGs are written to.
    """

    generation: Generation
    strip: Sampler
    count: int
    writer: MetricWriter
    folder: pathlib.Path

    def draw_step(self, state: TrainState) -> None:
        """Draws the grid of a step."""
        self._grid(state, f"step_{int(state.step):08d}.png")

    def draw_last(self, state: TrainState) -> None:
        """Draws the last grid, and one batch being denoised."""
        self._grid(state, "final.png")
        path = self.folder / "denoising.png"
        pictures.save_strip(self.strip, self.generation, state.ema, path)

    def _grid(self, state: TrainState, name: str) -> None:
        generation, step = self.generation, int(state.step)
        images = np.concatenate(list(generation.batches(state.ema, 0, self.count)))
        if not hosts.is_first():
            return
        title = f"step {step:,}, guidance {generation.guidance_scale:g}"
        page = pictures.save_grid(images, generation.conditions, self.folder / name, title)
        self.writer.write_image("samples", step, page)


def open_gallery(
    assembled: Assembled,
    diffusion: DiffusionConfig,
    sample: SampleConfig,
    conditions: Conditions,
    *,
    count: int,
    writer: MetricWriter,
    folder: pathlib.Path,
) -> Gallery:
    """Builds the gallery of a run, of `count` samples in a grid."""
    rows = round_up(count, batch_parts(assembled.mesh))
    generation = make_generation(assembled, diffusion, sample, conditions, batch_size=rows)
    shown = pictures.strip_sample(sample)
    strip = assembled.sampler(diffusion, shown, conditions.null, return_trajectory=True)
    return Gallery(generation, strip, count, writer, folder)
