"""The trained network of a workdir, for programs of one's own."""

import contextlib
import os
import pathlib

import jax
from flax import nnx
from jax.sharding import SingleDeviceSharding

from uvit_jax.errors import UserError, check_choice
from uvit_jax.experiment.config import resolve
from uvit_jax.experiment.saved_config import config_of_run
from uvit_jax.models.uvit import UViT
from uvit_jax.training.checkpoint import Checkpoints
from uvit_jax.training.network import abstract_network


def load_model(
    workdir: str | os.PathLike[str], *, weights: str = "ema", step: int | None = None
) -> UViT:
    """The network of a run with its trained weights, float32, on this process's first device.

    What it predicts (`diffusion.prediction`) of which schedule is in the workdir's `config.json`,
    the names of classes in its `data.json`. Nothing is written, also while the run goes on.

    Args:
      workdir: of a run, on any mesh and number of hosts.
      weights: "ema", the averaged ones that are sampled with, or "params", the trained ones.
      step: of a checkpoint that is there; None: the newest.

    Raises:
      UserError: for a folder that is not a workdir, or a step that is not there or is damaged.
    """
    check_choice("weights", weights, ("ema", "params"))
    folder = pathlib.Path(workdir)
    if not (folder / "checkpoints").is_dir():
        raise UserError(f"{folder} holds no checkpoints, expected the workdir of a trained model")
    config = resolve(config_of_run(folder)).model
    graphdef, _, init_params = abstract_network(config)
    device = SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.eval_shape(init_params, jax.random.key(0))
    template = jax.tree.map(lambda leaf: leaf.update(sharding=device), shapes)
    with contextlib.closing(Checkpoints(folder / "checkpoints", read_only=True)) as checkpoints:
        params, _ = checkpoints.restore_weights(template, weights=weights, step=step)
    model: UViT = nnx.merge(graphdef, params)
    return model
