"""Runs to evaluate, made in a second: checkpoints of weights from a formula, not trained."""

import json
import pathlib
from collections.abc import Sequence

import grain
import jax
import numpy as np
from safetensors.numpy import save_file

from tests.interop.test_clip_vision import CONFIG as IMAGE_TOWER
from tests.interop.test_clip_vision import SMALL as SMALL_IMAGE_TOWER
from tests.jobs.images import write_clip
from tests.jobs.runs import tiny_experiment
from tests.reference_weights import formula_weight, uvit_weights
from uvit_jax.experiment.assembled import Assembled, assemble
from uvit_jax.experiment.config import Experiment
from uvit_jax.experiment.data_card import card_of_source
from uvit_jax.experiment.opened import open_experiment_autoencoder, open_source
from uvit_jax.experiment.saved_config import save_config, to_save
from uvit_jax.experiment.weights import Weights, open_weights
from uvit_jax.interop import official
from uvit_jax.interop.clip_vision_layouts import vision_layout
from uvit_jax.parallel.arrays import place
from uvit_jax.training.checkpoint import Checkpoints
from uvit_jax.training.state import TrainState

# Enough for the Inception Score, neighbours and two halves; more than one batch of 16, and the last
# one not full.
COUNT = 40
STEP = 8


def evaluation(**changes) -> Experiment:
    """The tiny digits experiment with a few samples to score."""
    own = {
        "model__depth": 1,
        "sample__steps": 3,
        "evaluate__num_samples": COUNT,
        "evaluate__num_features": 300,
    }
    return tiny_experiment(**{**own, **changes})


def assembled_of(experiment: Experiment) -> Assembled:
    """Assembles an experiment whose data are there."""
    autoencoder = open_experiment_autoencoder(experiment.autoencoder)
    source = open_source(experiment.data.source)
    card = card_of_source(source, autoencoder, experiment.autoencoder.scale, experiment.model)
    return assemble(experiment, card, autoencoder)


def weights_of(experiment: Experiment, workdir: pathlib.Path) -> Weights:
    """The weights that an experiment samples with."""
    return open_weights(experiment, assembled_of(experiment), workdir)


def write_run(
    workdir: pathlib.Path, experiment: Experiment | None = None, steps: Sequence[int] = (STEP,)
) -> pathlib.Path:
    """A workdir with checkpoints of these steps, raw and averaged weights all different."""
    experiment = experiment or evaluation()
    assembled = assembled_of(experiment)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, assembled.abstract_params)

    def weights(seed: int):
        return place(
            official.params(uvit_weights(experiment.model, seed), experiment.model), shardings
        )

    checkpoints = Checkpoints(workdir / "checkpoints", keep_last=len(steps))
    for step in steps:
        state = TrainState(
            np.int32(step),
            weights(2 * step),
            weights(2 * step + 1),
            {"count": np.zeros(1, np.int32)},
        )
        checkpoints.save(state, iter(grain.MapDataset.range(1).to_iter_dataset()))
    checkpoints.close()
    save_config(to_save(experiment), workdir)
    assembled.card.save(workdir)
    return workdir


def write_whole_clip(folder: pathlib.Path) -> str:
    """A tiny CLIP with both towers and a tokenizer of bytes; returns its name."""
    write_clip(folder)
    text = json.loads((folder / "config.json").read_text())
    state = official.read_weights(folder / "model.safetensors")
    shapes = {name: entry.shape for name, entry in vision_layout(SMALL_IMAGE_TOWER).items()}
    names = {
        key: key if key == "visual_projection.weight" else f"vision_model.{key}" for key in shapes
    }
    images = {name: formula_weight(name, shapes[key]) for key, name in names.items()}
    images[
        "visual_projection.weight"
    ] *= -1  # so that images are nearer to texts than to their opposites
    save_file(state | images, folder / "model.safetensors")
    whole = {
        "model_type": "clip",
        "projection_dim": 16,
        "text_config": text,
        "vision_config": IMAGE_TOWER,
    }
    (folder / "config.json").write_text(json.dumps(whole))
    return str(folder)
