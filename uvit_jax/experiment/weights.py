"""Weights that a run starts from or samples with: official files, or checkpoints of a run."""

import contextlib
import dataclasses
import functools
import logging
import pathlib
from collections.abc import Sequence

import jax
from jax.tree_util import tree_leaves_with_path

from uvit_jax.errors import UserError
from uvit_jax.experiment.assembled import Assembled
from uvit_jax.experiment.config import Experiment
from uvit_jax.experiment.data_card import DataCard, read_card
from uvit_jax.experiment.init_from import find_weights
from uvit_jax.experiment.saved_config import check_architecture, check_run, saved_config
from uvit_jax.experiment.sections import DiffusionConfig
from uvit_jax.experiment.workdir import has_checkpoints
from uvit_jax.fingerprints import sha256_of_arrays
from uvit_jax.interop import official
from uvit_jax.models.uvit_config import UViTConfig
from uvit_jax.parallel import hosts
from uvit_jax.parallel.arrays import fetch, place
from uvit_jax.parallel.sharding import path_name
from uvit_jax.training.checkpoint import Checkpoints
from uvit_jax.training.ema_config import EMAConfig
from uvit_jax.training.posthoc_ema import combination_for, ema_of_length
from uvit_jax.training.state import Params

LOG = logging.getLogger("uvit_jax")


@dataclasses.dataclass(frozen=True, eq=False)
class Weights:
    """Weights to sample with.

    Attributes:
      params: on the mesh.
      title: for a picture.
      folder: part of the name of a folder of samples.
      record: for a report: kind ("ema", "params" or the file's), step or file.
    """

    params: Params
    title: str
    folder: str
    record: dict[str, str | int | float]

    @functools.cached_property
    def sha256(self) -> str:
        """SHA-256 of the parameters, name by name, as float32; all hosts call this together."""
        leaves = {path_name(path): leaf for path, leaf in tree_leaves_with_path(self.params)}
        return sha256_of_arrays((name, fetch(leaves[name])) for name in sorted(leaves))


def uses_other_weights(init_from: str, workdir: pathlib.Path) -> bool:
    """True if init_from names other weights than those this workdir's run started from."""
    began_with = (saved_config(workdir) or {}).get("init_from")
    if not init_from or not began_with:
        return bool(init_from)
    return pathlib.Path(init_from).resolve() != pathlib.Path(began_with).resolve()


def run_of_samples(init_from: str, workdir: pathlib.Path) -> pathlib.Path | None:
    """The workdir of the run whose weights are sampled; None for weights of a file."""
    if not uses_other_weights(init_from, workdir):
        return workdir
    run = pathlib.Path(init_from)
    return run if run.is_dir() else None


def open_weights(experiment: Experiment, assembled: Assembled, workdir: pathlib.Path) -> Weights:
    """Reads the weights of `config.init_from`, or the workdir's own where its run began with those.

    Of a run, they are of the kind and the step that `config.sample` asks for.

    Raises:
      UserError: for a step that is not there, or weights of another architecture than the config's.
    """
    config, init_from, model = experiment.sample, experiment.init_from, experiment.model
    elsewhere = uses_other_weights(init_from, workdir)
    run = hosts.on_all(find_weights, init_from, config.weights) if elsewhere else workdir
    if elsewhere and not run.is_dir():
        if config.step >= 0:
            raise UserError(
                f"config.sample.step is {config.step}, and config.init_from is {init_from!r}: "
                "expected no step (-1) with a file, which holds the weights of one"
            )
        # ImageNet's 1,000 classes alone are the published 64x64 models'.
        if model.num_classes not in (0, 1000) and not experiment.diffusion.p_uncond:
            LOG.warning(
                "warning: config.diffusion.p_uncond is 0, so all %d rows of the label table in %s "
                "are taken for classes: in the published models that are guided the last is the "
                "empty label, which any number above 0 says",
                model.num_classes,
                init_from,
            )
        record: dict[str, str | int | float] = {
            "kind": "as published in the file",
            "from": init_from,
        }
        params = initial_weights(assembled.abstract_params, model, init_from, config.weights)
        return Weights(params, run.stem, run.stem, record)
    hosts.on_all(check_run, model, experiment.diffusion, run)
    with _checkpoints(run) as checkpoints:
        params, step = checkpoints.restore_weights(
            assembled.abstract_params,
            weights=config.weights,
            step=_step_asked(config.step),
        )
    title, folder = f"the {config.weights} weights of step {step:,}", f"step_{step:08d}"
    record = {"kind": config.weights, "step": step}
    if elsewhere:
        name = run.resolve().name
        return Weights(
            params, f"{name}: {title}", f"{name}_{folder}", {**record, "from": init_from}
        )
    return Weights(params, title, folder, record)


def averaged_weights(
    template: Params, workdir: pathlib.Path, *, length: float, step: int
) -> Weights:
    """Combines the workdir's checkpoints to an EMA of another length than the one trained with.

    Args:
      template: shapes, dtypes and shardings of the parameters.
      length: of the average, in training steps.
      step: the step at which the average ends; -1 for the newest.

    Raises:
      UserError: for a workdir whose checkpoints don't hold enough of the training for it.
    """
    with _checkpoints(workdir) as checkpoints:
        step = checkpoints.find_step(_step_asked(step))
        params, combination = ema_of_length(
            checkpoints,
            template,
            rate=_ema_rate(checkpoints, workdir, step),
            length=length,
            step=step,
        )
    title = f"the EMA of length {length:g} at step {step:,}"
    record: dict[str, str | int | float] = {
        "kind": "ema made of checkpoints",
        "length": length,
        "step": step,
        "error": round(combination.error, 6),
        "weight misplaced from step 0": round(combination.misplaced, 6),
    }
    return Weights(params, title, f"step_{step:08d}_ema_{length:g}", record)


def check_lengths(
    init_from: str, workdir: pathlib.Path, lengths: Sequence[float], *, step: int
) -> None:
    """Raises a UserError for EMAs of these lengths that `averaged_weights` can't make."""
    if uses_other_weights(init_from, workdir):
        raise UserError(
            f"config.evaluate.sweep has ema, and config.init_from is {init_from!r}: "
            "expected the --workdir of the run itself, of whose checkpoints averages of other "
            "lengths are made"
        )
    with _checkpoints(workdir) as checkpoints:
        step = checkpoints.find_step(_step_asked(step))
        rate = _ema_rate(checkpoints, workdir, step)
        for length in lengths:
            combination_for(checkpoints, rate=rate, length=length, step=step)


def _ema_rate(checkpoints: Checkpoints, workdir: pathlib.Path, step: int) -> float | int:
    """The one rate that a run's EMA has had up to a step.

    Older checkpoints don't hold it: their rate is that of the workdir's config.

    Raises:
      UserError: for a run that went on with another rate.
    """
    saved = (saved_config(workdir) or {}).get("ema", {}).get("rate", EMAConfig().rate)
    (_, rate), *others = checkpoints.ema_rates(step) or ((0, saved),)
    if others:
        first, other = others[0]
        raise UserError(
            f"the EMA of {workdir} has had the rate {rate} up to step {first} and {other} from "
            "there on, expected one rate: averages of other lengths can be made with a "
            f"config.sample.step of at most {first}"
        )
    return rate


def check_init_from(init_from: str) -> None:
    """Raises a UserError for a `config.init_from` without weights, before much is read."""
    if init_from:
        find_weights(init_from)


def check_start(
    model: UViTConfig, diffusion: DiffusionConfig, init_from: str, workdir: pathlib.Path
) -> DataCard | None:
    """Checks the weights that training would start from, before anything large is read or written.

    These are the workdir's own or, where it has none, those of `config.init_from`.

    Returns:
      The card of the data they learned; None where that is not known, or there are none.

    Raises:
      UserError: for a run of another architecture, or whose weights mean something else than the
        config says.
    """
    check_run(model, diffusion, workdir)
    if has_checkpoints(workdir):
        return read_card(workdir)
    if not init_from:
        return None
    run = find_weights(init_from)
    if not run.is_dir():
        return None
    check_run(model, diffusion, run)
    return read_card(run)


def initial_weights(
    template: Params, model: UViTConfig, init_from: str, weights: str = "ema"
) -> Params:
    """Reads the weights in `config.init_from`: a file's, or the EMA of a workdir's newest step.

    Args:
      template: shapes, dtypes and shardings of the parameters.
      weights: "ema" or "params", of a file (or a folder of the official code) that holds both.

    Raises:
      UserError: for a file that is missing, damaged or of another architecture than the config.
    """
    path = hosts.on_all(find_weights, init_from, weights)
    if path.is_dir():
        hosts.on_all(check_architecture, model, path)
        with _checkpoints(path) as checkpoints:
            return checkpoints.restore_weights(template, weights="ema")[0]
    params = hosts.on_all(_read_official, model, path, weights)
    placed: Params = place(params, jax.tree.map(lambda leaf: leaf.sharding, template))
    return placed


def _step_asked(step: int) -> int | None:
    """`config.sample.step` as a checkpoint's; None for the newest."""
    return None if step < 0 else step


def _checkpoints(run: pathlib.Path) -> contextlib.AbstractContextManager[Checkpoints]:
    return contextlib.closing(Checkpoints(run / "checkpoints", read_only=True))


def _read_official(model: UViTConfig, path: pathlib.Path, weights: str) -> Params:
    try:
        return official.params(official.read_weights(path, weights=weights), model)
    except UserError as error:
        raise UserError(f"config.init_from is {str(path)!r}: {error}") from None
