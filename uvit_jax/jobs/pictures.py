"""The pictures that jobs draw of samples: a labelled grid, and one batch being denoised."""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8

from uvit_jax.diffusion.sampler import Sampler
from uvit_jax.jobs.checks import sample_labels
from uvit_jax.jobs.setup import Parts
from uvit_jax.parallel.mesh import batch_parts
from uvit_jax.telemetry import images as telemetry
from uvit_jax.training.state import Params

# Of the picture of denoising: noise, image, and as many states between as a screen shows side by side.
STRIP_COLUMNS = 9


def draw_samples(
    parts: Parts, sampler: Sampler, params: Params, *, first: int, count: int, batch_size: int
) -> Float[np.ndarray, "count h w c"]:
    """Images number first .. first + count - 1 of `config.sample.seed`, float32 in about [-1, 1].

    Batches are all of one size (the last is filled up), so that one compiled program serves.
    """
    experiment = parts.experiment
    labels = sample_labels(experiment, first + count + batch_size)
    batches = []
    for start in range(first, first + count, batch_size):
        indices = np.arange(start, start + batch_size, dtype=np.int32)
        batch = sampler(
            params,
            seed=experiment.sample.seed,
            indices=indices,
            condition=None if labels is None else labels[indices],
            guidance_scale=experiment.sample.guidance_scale,
        )
        assert not isinstance(batch, tuple)  # such a sampler keeps no trajectory
        batches.append(parts.to_images(batch))
    return np.concatenate(batches)[:count]


def save_grid(
    parts: Parts, images: UInt8[np.ndarray, "n h w c"], path: pathlib.Path, title: str
) -> UInt8[np.ndarray, "height width 3"]:
    """Writes a grid of the first samples with their labels; returns the picture as an array."""
    labels = sample_labels(parts.experiment, len(images))
    # A column for each class where that reads well, else about a square.
    classes = parts.experiment.num_real_classes
    columns = classes if 2 < classes <= 16 else int(np.ceil(np.sqrt(len(images))))
    page = telemetry.labelled_grid(images, label_texts(labels, parts.card.class_names), columns, title=title)
    telemetry.save_png(page, path)
    return np.asarray(page)


def save_strip(parts: Parts, params: Params, path: pathlib.Path) -> None:
    """Writes one batch being denoised: a row a sample, a column a time."""
    experiment = parts.experiment
    if experiment.sample.adaptive:  # Its steps are each sample's own: there are no common times to show.
        sample = dataclasses.replace(experiment.sample, method="multistep", order=2)
        parts = dataclasses.replace(parts, experiment=dataclasses.replace(experiment, sample=sample))
    rows = min(experiment.num_real_classes or 8, 10)
    count = round_up(rows, batch_parts(parts.mesh))
    labels = sample_labels(experiment, count)
    sampler = parts.sampler(return_trajectory=True)
    _, trajectory = sampler(
        params,
        seed=experiment.sample.seed,
        indices=np.arange(count, dtype=np.int32),
        condition=labels,
        guidance_scale=experiment.sample.guidance_scale,
    )
    # Only the states that are shown are decoded.
    picks = np.unique(np.linspace(0, len(trajectory.times) - 1, STRIP_COLUMNS).round().astype(int))
    states = np.stack([parts.to_images(trajectory.states[pick]) for pick in picks])
    texts = label_texts(labels, parts.card.class_names)
    telemetry.save_png(
        telemetry.denoising_strip(states, np.asarray(trajectory.times)[picks], texts, rows, columns=STRIP_COLUMNS), path
    )


def label_texts(labels: Int[np.ndarray, " n"] | None, class_names: Sequence[str]) -> list[str] | None:
    """What is written beside samples: the class's name, or its number where it has none."""
    if labels is None:
        return None
    return [class_names[label] if label < len(class_names) else str(label) for label in labels]


def round_up(count: int, multiple: int) -> int:
    """The smallest multiple that is at least count."""
    return -(-count // multiple) * multiple
