"""The config of a workdir's run: what `--workdir DIR` alone, without `--config`, stands for."""

import pathlib

import ml_collections

from uvit_jax.errors import UserError
from uvit_jax.experiment.config import default_config
from uvit_jax.experiment.workdir import saved_config


def get_config(workdir: str) -> ml_collections.ConfigDict:
    """The config that the run in `workdir` was started with."""
    saved = saved_config(pathlib.Path(workdir))
    if saved is None:
        raise UserError(f"{workdir} holds no config.json: give --config, or the --workdir of a run")
    config = default_config()
    config.update(saved)
    return config
