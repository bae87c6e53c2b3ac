"""Pictures of samples: a labelled grid, and one batch being denoised."""

import dataclasses
import pathlib

import numpy as np
from jaxtyping import UInt8

from uvit_jax.data.image_output import save_png
from uvit_jax.diffusion.sampler import Sampler
from uvit_jax.errors import counted
from uvit_jax.experiment.job_sections import SampleConfig
from uvit_jax.jobs.sampling.conditions import Conditions
from uvit_jax.jobs.sampling.generation import Generation
from uvit_jax.parallel import hosts
from uvit_jax.parallel.arrays import fetch
from uvit_jax.parallel.batches import round_up
from uvit_jax.telemetry import images as telemetry
from uvit_jax.training.state import Params

# The strip's columns: the noise, the image, and as many states between as fit a screen.
STRIP_COLUMNS = 9


def save_grid(
    images: UInt8[np.ndarray, "n h w c"], conditions: Conditions, path: pathlib.Path, title: str
) -> UInt8[np.ndarray, "height width 3"]:
    """Writes a labelled grid of the first samples; returns the picture as an array."""
    names = conditions.names_of(np.arange(len(images)))
    page = telemetry.labelled_grid(
        telemetry.shown_channels(images), names, conditions.columns(len(images)), title=title
    )
    save_png(page, path)
    return np.asarray(page)


def title_of(weights: str, sample: SampleConfig) -> str:
    """Title of a grid of samples: the weights, and how they were sampled."""
    count = sample.evaluations
    steps = "adaptive steps" if count is None else counted(count, "evaluation")
    return f"{weights}, {sample.solver}, {steps}, guidance {sample.guidance_scale:g}"


def strip_sample(sample: SampleConfig) -> SampleConfig:
    """The section for a batch being denoised, whose samples must share their times."""
    if not sample.adaptive:
        return sample
    # The adaptive method's steps are each sample's own. It ignores `steps`, which may be 1 there.
    steps = max(sample.steps, 2)
    return dataclasses.replace(sample, method="multistep", order=2, steps=steps)


def save_strip(
    sampler: Sampler, generation: Generation, params: Params, path: pathlib.Path
) -> None:
    """Writes one batch being denoised: a row per sample, a column per time.

    All hosts draw, the first one writes.

    Args:
      sampler: returns a trajectory, of the section `strip_sample`.
      generation: of everything else.
    """
    conditions = generation.conditions
    rows = 8 if conditions.values is None else min(len(conditions.values), 10)
    indices = np.arange(round_up(rows, generation.row_multiple), dtype=np.int32)
    _, trajectory = sampler(
        params,
        seed=generation.seed,
        indices=indices,
        condition=conditions.of(indices),
        guidance_scale=generation.guidance_scale,
    )
    # Only the states that are shown are decoded.
    times = fetch(trajectory.times)
    picks = np.unique(np.linspace(0, len(times) - 1, STRIP_COLUMNS).round().astype(int))
    states = telemetry.shown_channels(
        np.stack([fetch(generation.decode(trajectory.states[pick])) for pick in picks])
    )
    if hosts.is_first():
        names = conditions.names_of(indices)
        save_png(
            telemetry.denoising_strip(states, times[picks], names, rows, columns=STRIP_COLUMNS),
            path,
        )
