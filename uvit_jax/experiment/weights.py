"""Weights that a run starts from or samples with: official files, and the checkpoints of another
run.
"""

import contextlib
import dataclasses
import functools
import logging
import pathlib
from collections.abc import Sequence

import jax
from jax.tree_util import tree_leaves_with_path

from uvit_jax.errors import UserError
from uvit_jax.experiment.assembled import Parts
from uvit_jax.experiment.config import Experiment
from uvit_jax.experiment.data_card import DataCard, read_card
from uvit_jax.experiment.init_from import find_weights
from uvit_jax.experiment.workdir import check_run, has_checkpoints, saved_config
from uvit_jax.fingerprints import sha256_of_arrays
from uvit_jax.interop import official
from uvit_jax.parallel import hosts
from uvit_jax.parallel.arrays import fetch, place
from uvit_jax.parallel.sharding import path_name
from uvit_jax.training.checkpoint import Checkpoints
from uvit_jax.training.ema import EMAConfig
from uvit_jax.training.posthoc_ema import combination_for, ema_of_length
from uvit_jax.training.state import Params

LOG = logging.getLogger("uvit_jax")


@dataclasses.dataclass(frozen=True, eq=False)
class Weights:
    """What is sampled with.

    Attributes:
      params: on the mesh.
      title: for a picture.
      folder: a name for a folder.
      record: which weights they are, for a report: kind ("ema", "params" or the file's), step or
        file.
    """

    params: Params
    title: str
    folder: str
    record: dict[str, str | int | float]

    @functools.cached_property
    def sha256(self) -> str:
        """Of the parameters, name by name, as float32; all hosts ask for it together."""
        leaves = {path_name(path): leaf for path, leaf in tree_leaves_with_path(self.params)}
        return sha256_of_arrays((name, fetch(leaves[name])) for name in sorted(leaves))


def samples_from_elsewhere(experiment: Experiment, workdir: pathlib.Path) -> bool:
    """Whether `config.init_from` is what is asked for, and not just what the workdir's run began
    with.
    """
    init_from, began_with = experiment.init_from, (saved_config(workdir) or {}).get("init_from")
    if not init_from or not began_with:
        return bool(init_from)
    return pathlib.Path(init_from).resolve() != pathlib.Path(began_with).resolve()


def run_of_samples(experiment: Experiment, workdir: pathlib.Path) -> pathlib.Path | None:
    """The run whose weights are sampled with; None for those of a file."""
    if not samples_from_elsewhere(experiment, workdir):
        return workdir
    run = pathlib.Path(experiment.init_from)
    return run if run.is_dir() else None


def open_weights(parts: Parts, workdir: pathlib.Path) -> Weights:
    """The weights of `config.init_from`, or the workdir's own where its run began with those; of a
    run the kind and the step that `config.sample` asks for.

    Raises:
      UserError: for a step that is not there, or weights of another architecture than the config's.
    """
    config, init_from = parts.experiment.sample, parts.experiment.init_from
    elsewhere = samples_from_elsewhere(parts.experiment, workdir)
    run = hosts.on_all(find_weights, init_from, config.weights) if elsewhere else workdir
    if elsewhere and not run.is_dir():
        if config.step >= 0:
            raise UserError(
                f"config.sample.step is {config.step}, and config.init_from is {init_from!r}: "
                "expected no step (-1) with a file, which holds the weights of one"
            )
        if parts.experiment.model.num_classes and not parts.experiment.diffusion.p_uncond:
            LOG.warning(
                "warning: config.diffusion.p_uncond is 0, so all %d rows of the label table in %s "
                "are taken for classes: in the published models the last is the empty label, which "
                "any number above 0 says",
                parts.experiment.model.num_classes,
                init_from,
            )
        record: dict[str, str | int | float] = {
            "kind": "as published in the file",
            "from": init_from,
        }
        return Weights(
            initial_weights(parts, init_from, config.weights), run.stem, run.stem, record
        )
    hosts.on_all(check_run, parts.experiment, run)
    with _checkpoints(run) as checkpoints:
        params, step = checkpoints.restore_weights(
            parts.abstract_params,
            weights=config.weights,
            step=None if config.step < 0 else config.step,
        )
    title, folder = f"the {config.weights} weights of step {step:,}", f"step_{step:08d}"
    record = {"kind": config.weights, "step": step}
    if elsewhere:
        name = run.resolve().name
        return Weights(
            params, f"{name}: {title}", f"{name}_{folder}", {**record, "from": init_from}
        )
    return Weights(params, title, folder, record)


def averaged_weights(parts: Parts, workdir: pathlib.Path, length: float) -> Weights:
    """The EMA of another length than the one that was trained with, made of the workdir's
    checkpoints.

    length: of the average, in training steps.

    Raises:
      UserError: for a workdir whose checkpoints don't hold enough of the training for it.
    """
    experiment = parts.experiment
    hosts.on_all(check_run, experiment, workdir)
    with _checkpoints(workdir) as checkpoints:
        step = checkpoints.find_step(None if experiment.sample.step < 0 else experiment.sample.step)
        params, combination = ema_of_length(
            checkpoints,
            parts.abstract_params,
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


def check_lengths(parts: Parts, workdir: pathlib.Path, lengths: Sequence[float]) -> None:
    """Raises a UserError for EMAs that `averaged_weights` can't make, before the first of them is
    made.
    """
    experiment = parts.experiment
    if samples_from_elsewhere(experiment, workdir):
        raise UserError(
            f"config.evaluate.sweep has ema, and config.init_from is {experiment.init_from!r}: "
            "expected the --workdir of the run itself, of whose checkpoints averages of other "
            "lengths are made"
        )
    check_run(experiment, workdir)
    with _checkpoints(workdir) as checkpoints:
        step = checkpoints.find_step(None if experiment.sample.step < 0 else experiment.sample.step)
        rate = _ema_rate(checkpoints, workdir, step)
        for length in lengths:
            combination_for(checkpoints, rate=rate, length=length, step=step)


def _ema_rate(checkpoints: Checkpoints, workdir: pathlib.Path, step: int) -> float | int:
    """The one rate that a run's EMA has had up to a step, whatever the config says now; of older
    checkpoints, which don't say, that of the workdir's config.

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
    """Raises a UserError where `config.init_from` is set and leads to no weights: before anything
    large is read.
    """
    if init_from:
        find_weights(init_from)


def check_start(experiment: Experiment, workdir: pathlib.Path) -> DataCard | None:
    """Checks what training would start from, before anything large is read or written: the
    workdir's own weights, or, where it has none, those of `config.init_from`.

    Returns:
      What these weights have learned; None where that is not known, or there are none.

    Raises:
      UserError: for a run of another architecture, or whose weights mean something else than the
        config says.
    """
    check_run(experiment, workdir)
    if has_checkpoints(workdir):
        return read_card(workdir)
    if not experiment.init_from:
        return None
    run = find_weights(experiment.init_from)
    if not run.is_dir():
        return None
    check_run(experiment, run)
    return read_card(run)


def initial_weights(parts: Parts, init_from: str, weights: str = "ema") -> Params:
    """The weights in `config.init_from`, laid over the mesh: an official file's, or the EMA of a
    workdir's newest step.

    weights: "ema" or "params", of a file (or a folder of the official code) that holds both.

    Raises:
      UserError: for a file that is missing, damaged or of another architecture than the config.
    """
    path = hosts.on_all(find_weights, init_from, weights)
    template = parts.abstract_params
    if path.is_dir():
        hosts.on_all(check_run, parts.experiment, path)
        with _checkpoints(path) as checkpoints:
            return checkpoints.restore_weights(template, weights="ema")[0]
    params = hosts.on_all(_read_official, parts, path, weights)
    return place(params, jax.tree.map(lambda leaf: leaf.sharding, template))


def _checkpoints(run: pathlib.Path) -> contextlib.AbstractContextManager[Checkpoints]:
    return contextlib.closing(Checkpoints(run / "checkpoints", read_only=True))


def _read_official(parts: Parts, path: pathlib.Path, weights: str) -> Params:
    try:
        return official.params(official.read_weights(path, weights=weights), parts.experiment.model)
    except UserError as error:
        raise UserError(f"config.init_from is {str(path)!r}: {error}") from None
