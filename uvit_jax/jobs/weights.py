"""Weights that a run starts from or samples with: official files, and the checkpoints of another run."""

import pathlib

import jax

from uvit_jax.errors import UserError
from uvit_jax.interop import official
from uvit_jax.jobs.setup import Parts
from uvit_jax.jobs.workdir import check_architecture
from uvit_jax.parallel import hosts
from uvit_jax.parallel.arrays import place
from uvit_jax.training.checkpoint import Checkpoints
from uvit_jax.training.state import Params


def check_init_from(init_from: str) -> None:
    """Raises a UserError where `config.init_from` is set and nothing is there: before anything large is read."""
    if init_from and not pathlib.Path(init_from).exists():
        raise UserError(f"config.init_from is {init_from!r}, expected a weights file or a workdir: there is neither")


def initial_weights(parts: Parts, init_from: str) -> Params:
    """The weights in `config.init_from`, laid over the mesh: an official file's, or the EMA of a workdir's newest step.

    Raises:
      UserError: for a file that is missing, damaged or of another architecture than the config.
    """
    path = pathlib.Path(init_from)
    template = parts.abstract_params
    if path.is_dir():
        hosts.together(check_architecture, parts.experiment, path)
        return Checkpoints(path / "checkpoints", read_only=True).restore_weights(template, weights="ema")[0]
    params = hosts.together(_read_official, parts, path)
    return place(params, jax.tree.map(lambda leaf: leaf.sharding, template))


def _read_official(parts: Parts, path: pathlib.Path) -> Params:
    try:
        return official.params(official.read_weights(path), parts.experiment.model)
    except UserError as error:
        raise UserError(f"config.init_from is {str(path)!r}: {error}") from None
