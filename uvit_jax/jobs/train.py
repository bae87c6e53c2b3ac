"""The job `train`: data in; checkpoints, metrics and pictures out. The same command again
continues.
"""

import contextlib
import functools
import logging
import math
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import grain
import jax
import numpy as np
import optax
from clu.parameter_overview import get_parameter_overview

from uvit_jax.data.pipeline import train_batches
from uvit_jax.data.prepared.record_source import RecordSource
from uvit_jax.data.sources import Source
from uvit_jax.errors import Preempted, UserError
from uvit_jax.experiment.assembled import Parts, assemble, open_experiment_autoencoder, open_source
from uvit_jax.experiment.checks import check_encoded, check_source
from uvit_jax.experiment.config import Experiment
from uvit_jax.experiment.data_card import card_of_source, identity
from uvit_jax.experiment.folder_lock import locked
from uvit_jax.experiment.step_program import StepInputs, batch_fields, lower_train_step
from uvit_jax.experiment.text_states import TextStates, open_text_states
from uvit_jax.experiment.weights import check_start, initial_weights
from uvit_jax.experiment.workdir import changes, open_workdir, save_config, saved_config
from uvit_jax.files import atomic_write
from uvit_jax.jobs.evaluation.while_training import TrainEvaluation
from uvit_jax.jobs.sampling import pictures
from uvit_jax.jobs.sampling.conditions import (
    Conditions,
    caption_conditions,
    data_labels,
    label_conditions,
    prompt_conditions,
    read_prompts,
)
from uvit_jax.jobs.sampling.generation import Generation
from uvit_jax.models.flops import forward_flops
from uvit_jax.parallel import hosts
from uvit_jax.parallel.chips import peak_flops
from uvit_jax.parallel.mesh import batch_parts
from uvit_jax.parallel.preemption import PreemptionNotice
from uvit_jax.telemetry.curves import loss_curve
from uvit_jax.telemetry.progress import Progress
from uvit_jax.telemetry.throughput import Throughput
from uvit_jax.telemetry.writers import MetricWriter, read_metrics
from uvit_jax.training.checkpoint import Checkpoints, Rates
from uvit_jax.training.inputs import Inputs, encoded, latents, pixels
from uvit_jax.training.loop import Hook, Window, fit
from uvit_jax.training.optimizer import learning_rate, make_optimizer
from uvit_jax.training.state import TrainState, abstract, create, create_sharded

LOG = logging.getLogger("uvit_jax")


def run(experiment: Experiment, workdir: pathlib.Path) -> str:
    """Trains until `config.train.steps`; returns one line that says what was made and where.

    Raises:
      UserError: for what is wrong with the config, the data or the workdir, before any device
        works; for a loss that is no number, while training.
      Preempted: after a SIGTERM, with a checkpoint of the step that was reached.
    """
    with contextlib.ExitStack() as locks:
        return _run(experiment, workdir, locks)


def _run(experiment: Experiment, workdir: pathlib.Path, locks: contextlib.ExitStack) -> str:
    config, main_host = experiment.train, hosts.is_first()

    # --- Everything that can be wrong is found here, on whichever host it is.
    source, parts, text = hosts.on_all(_open, experiment, workdir)
    prompts = read_prompts(experiment.sample.prompts) if text else ()
    hosts.agree({**identity(parts.card, source), "config.sample.prompts": prompts})
    conditions = _conditions(parts, source, text)
    open_workdir(workdir)
    locks.enter_context(locked(workdir, "train"))
    before = hosts.on_all(saved_config, workdir) or {}
    for change in changes(experiment, before):
        LOG.info(change)
    evaluation = (
        TrainEvaluation(parts, source, text, workdir) if experiment.evaluate.every else None
    )
    checkpoints = Checkpoints(
        workdir / "checkpoints", keep_last=config.keep_last, keep_every=config.keep_every
    )
    newest = _newest_step(checkpoints, config.steps)

    # --- Data, and the state: the newest checkpoint's, or a fresh one born on the mesh.
    batches = _batches(parts, source)
    optimizer = make_optimizer(experiment.optimizer, config.steps)
    template = abstract(parts.init_params, optimizer, parts.mesh)
    if newest is None:
        state = _first_state(parts, optimizer, template)
    else:
        state = checkpoints.restore(
            template, batches, newest, batch_size=before.get("train", {}).get("batch_size")
        )
    start, seen = int(state.step), batches.get_state()["next_example"]
    rates = _ema_rates(checkpoints, newest, before, experiment.ema.rate)
    if main_host:
        save_config(experiment, workdir)
        parts.card.save(workdir)
        _write_overview(template, workdir / "parameters.txt")
    num_params = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(template.params))
    mesh_text = " x ".join(f"{axis} {size}" for axis, size in parts.mesh.shape.items())
    LOG.info(
        "%s parameters, %d examples, mesh %s, from step %d",
        f"{num_params:,}",
        len(source),
        mesh_text,
        start,
    )

    # --- The loop, between the host's two accounts of it: metrics on disk and a bar on the screen.
    with (
        contextlib.closing(batches),
        contextlib.closing(checkpoints),
        MetricWriter(workdir, start, active=main_host) as writer,
    ):
        save_state = _saver(checkpoints, batches, writer, rates)
        if newest is None and config.keep_every:
            save_state(state)  # the averages of every later step begin with it
        gallery = _Gallery(parts, conditions, writer, workdir / "samples")
        every, evaluate = experiment.evaluate.every, _evaluator(evaluation, writer, LOG.info)
        if start and every and start % every == 0:
            evaluate(
                state
            )  # what a run that was stopped right after this checkpoint had no time for
        if start < config.steps:
            with (
                Progress(config.steps, start=start, active=main_host) as progress,
                PreemptionNotice() as preempted,
            ):
                batches.start_prefetch()  # while the step compiles
                train_step = _compile(parts, source, optimizer, template, progress)
                save = Hook(save_state, config.save_every, at_end=True, timed=True)
                draw = Hook(gallery.draw_step, config.image_every, at_end=False, timed=False)
                # Not at the end: who is told to stop has no time for thousands of samples.
                measure = Hook(
                    _evaluator(evaluation, writer, progress.write), every, at_end=False, timed=False
                )
                state = fit(
                    train_step,
                    state,
                    batches,
                    steps=config.steps,
                    log_every=config.log_every,
                    on_step=progress.update,
                    on_log=_logger(parts, writer, progress, start, seen),
                    hooks=(save, draw, measure),  # no picture that fails costs a checkpoint
                    check=_check_finite,
                    should_stop=preempted,
                )
        stopped = int(state.step) < config.steps
        if not stopped:
            gallery.draw_last(state)
            evaluate(state)

    # --- What came of it.
    if stopped:
        raise Preempted(
            f"preempted at step {int(state.step):,}: the checkpoint is saved, the same command "
            f"continues"
        )
    return _report(workdir, num_params, int(state.step), main_host=main_host)


def _report(workdir: pathlib.Path, num_params: int, step: int, *, main_host: bool) -> str:
    """The line that a run ends with; its losses as a picture."""
    loss = ""
    if main_host:
        metrics = read_metrics(workdir / "metrics.jsonl")
        loss_curve(metrics, workdir / "loss.png")
        losses = [line["loss"] for line in metrics if "loss" in line]
        loss = f", loss {losses[-1]:.4f}" if losses else ""
    return (
        f"trained {num_params:,} parameters to step {step:,}{loss}: "
        f"see {workdir}/samples/final.png, samples/denoising.png, loss.png, checkpoints/"
    )


def _open(experiment: Experiment, workdir: pathlib.Path) -> tuple[Source, Parts, TextStates | None]:
    """The data, the parts and what encodes prompts, where there are any, opened and checked against
    each other.
    """
    learned = check_start(experiment, workdir)
    source = open_source(experiment)
    check_source(experiment, source)
    autoencoder = open_experiment_autoencoder(experiment)
    parts = assemble(
        experiment, card_of_source(experiment, source, autoencoder, learned), autoencoder
    )
    if autoencoder is not None and _kind(source) == "pixels":
        check_encoded(experiment, source, autoencoder)
    if not (experiment.model.context_dim and experiment.sample.prompts):
        return source, parts, None
    read_prompts(experiment.sample.prompts)
    text = open_text_states(experiment, parts.mesh)
    parts.card.check_text(text.encoder)
    return source, parts, text


def _ema_rates(
    checkpoints: Checkpoints, newest: int | None, before: dict[str, Any], rate: float | int
) -> Rates:
    """The rates that the EMA has had, and the one it has from here on."""
    if newest is None:
        return ((0, rate),)
    rates = checkpoints.ema_rates(newest) or ((0, before.get("ema", {}).get("rate", rate)),)
    return rates if rates[-1][1] == rate else (*rates, (newest, rate))


def _write_overview(template: TrainState, path: pathlib.Path) -> None:
    with atomic_write(path) as file:
        file.write(
            get_parameter_overview(template.params, include_stats="sharding").encode() + b"\n"
        )


def _newest_step(checkpoints: Checkpoints, steps: int) -> int | None:
    """The step to go on from, the same on all hosts, each of which lists the folder by itself; None
    for a fresh run.

    Raises:
      UserError: for a run that has made more steps than are asked for.
    """
    own = checkpoints.latest_step
    newest = hosts.largest(-1 if own is None else own)
    if newest < 0:
        return None
    if newest > steps:
        raise UserError(
            f"config.train.steps is {steps}, expected at least {newest}, the step that the run in "
            f"{checkpoints.directory.parent} is at, or another --workdir"
        )
    hosts.on_all(checkpoints.await_step, newest)
    return newest


def _first_state(
    parts: Parts, optimizer: optax.GradientTransformation, template: TrainState
) -> TrainState:
    """The state of step 0: of fresh weights, or those of `config.init_from`."""
    experiment = parts.experiment
    if not experiment.init_from:
        return create_sharded(parts.init_params, optimizer, experiment.train.seed, parts.mesh)
    params = initial_weights(parts, experiment.init_from)
    LOG.info("starting from the weights of %s", experiment.init_from)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, template)
    # Donated: the weights become the state's, and no other are made.
    make = jax.jit(
        lambda params: create(lambda key: params, optimizer, 0),
        donate_argnums=0,
        out_shardings=shardings,
    )
    return make(params)


def _batches(parts: Parts, source: Source) -> grain.DatasetIterator:
    config = parts.experiment
    return train_batches(
        source,
        fields=batch_fields(config),
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        sharding=parts.batch_sharding,
        flip=config.data.flip,
        prefetch=config.data.prefetch,
        workers=config.data.workers,
    )


def _kind(source: Source) -> str:
    return source.manifest.kind if isinstance(source, RecordSource) else "pixels"


def _conditions(parts: Parts, source: Source, text: TextStates | None) -> Conditions:
    """What the pictures are of: the classes or prompts asked for, or captions of the data."""
    experiment = parts.experiment
    if not experiment.model.context_dim:
        if experiment.sample.labels.strip() == "data":
            return data_labels(experiment, source, experiment.train.num_images)
        return label_conditions(experiment, parts.card.class_names)
    if text is not None:
        return prompt_conditions(experiment, text)
    assert isinstance(source, RecordSource)  # no other has captions
    return caption_conditions(experiment, source, experiment.train.num_images)


def _inputs(parts: Parts, source: Source) -> tuple[Inputs, Any]:
    """What the step makes of stored examples, and the frozen parameters it does that with."""
    normalization, kind = parts.card.normalization, _kind(source)
    if normalization is None:
        return pixels, None
    if kind != "pixels":
        return latents(kind, normalization), None
    assert (
        parts.codec is not None
    )  # pixels have latents, and those a normalization, only where there is an autoencoder
    return encoded(parts.codec.encode, parts.codec.kind, normalization), parts.codec.params


def _compile(
    parts: Parts,
    source: Source,
    optimizer: optax.GradientTransformation,
    template: TrainState,
    progress: Progress,
) -> Callable:
    """The train step, compiled ahead of the loop, so that a step's time is a step's time."""
    config = parts.experiment
    inputs, frozen = _inputs(parts, source)
    drops_text = config.model.context_dim > 0 and config.diffusion.p_uncond > 0
    null = source.empty_context if drops_text and isinstance(source, RecordSource) else None
    fields = batch_fields(config)
    one = source.read(np.zeros(1, np.int64), np.zeros(1, bool), fields=fields)
    batch = {
        name: jax.ShapeDtypeStruct(
            (config.train.batch_size, *one[name].shape[1:]),
            one[name].dtype,
            sharding=parts.batch_sharding,
        )
        for name in fields
    }
    began = time.monotonic()
    compiled = lower_train_step(
        parts, optimizer, template, StepInputs(inputs, batch, null, frozen)
    ).compile()
    progress.write(f"compiled the train step in {time.monotonic() - began:.1f} s")
    return lambda state, batch: compiled(state, batch, frozen)


def _evaluator(
    evaluation: TrainEvaluation | None, writer: MetricWriter, say: Callable[[str], None]
) -> Callable[[TrainState], None]:
    """Measures samples of the EMA weights, writes the number and says it; does nothing without an
    evaluation.
    """
    return (
        functools.partial(evaluation, writer=writer, say=say) if evaluation else lambda state: None
    )


def _saver(
    checkpoints: Checkpoints, batches: grain.DatasetIterator, writer: MetricWriter, rates: Rates
) -> Callable[[TrainState], None]:
    """Saves a checkpoint, once the lines of the steps before it are on the disk: a resumed run
    expects them there.
    """

    def save(state: TrainState) -> None:
        writer.flush()
        checkpoints.save(state, batches, rates)

    return save


def _logger(
    parts: Parts, writer: MetricWriter, progress: Progress, start: int, seen: int
) -> Callable[[int, Window], None]:
    """What is done with a window of metrics: checked, written, shown.

    seen: images of the steps up to `start`, of whatever batches these had.
    """
    config = parts.experiment
    throughput = Throughput(
        forward_flops(config.model),
        peak_flops(device.device_kind for device in parts.mesh.devices.flat),
    )

    def log(step: int, window: Window) -> None:
        _check_finite(step, window.metrics)
        rates = throughput.window(
            steps=window.steps,
            images=window.steps * config.train.batch_size,
            seconds=window.seconds,
        )
        lr = float(learning_rate(config.optimizer, step - 1, config.train.steps))
        waits = {
            "data_wait": window.data_seconds,
            "log_wait": window.log_seconds,
            "save_wait": window.hook_seconds,
        }
        shares = {name: seconds / window.seconds for name, seconds in waits.items()}
        images = seen + (step - start) * config.train.batch_size
        writer.write(step, {"images": images, **window.metrics, "lr": lr, **rates, **shares})
        progress.update(step, loss=window.metrics["loss"], images_per_sec=rates["images_per_sec"])

    return log


def _check_finite(step: int, metrics: Mapping[str, float]) -> None:
    """Raises a UserError once training has broken down."""
    for name, what in (("loss", "loss"), ("grad_norm", "norm of the gradients")):
        if not math.isfinite(metrics[name]):
            raise UserError(
                f"the {what} is {metrics[name]} at step {step}: lower config.optimizer.lr or "
                f"compute in float32"
            )


class _Gallery:
    """The samples drawn with the EMA weights: a grid now and then, and the last pictures."""

    def __init__(
        self, parts: Parts, conditions: Conditions, writer: MetricWriter, folder: pathlib.Path
    ):
        self._parts, self._conditions, self._writer, self._folder = (
            parts,
            conditions,
            writer,
            folder,
        )
        self._count = parts.experiment.train.num_images
        self._generation = Generation(
            parts, conditions, pictures.round_up(self._count, batch_parts(parts.mesh))
        )

    def draw_step(self, state: TrainState) -> None:
        self._grid(state, f"step_{int(state.step):08d}.png")

    def draw_last(self, state: TrainState) -> None:
        self._grid(state, "final.png")
        pictures.save_strip(
            self._parts, state.ema, self._conditions, self._folder / "denoising.png"
        )

    def _grid(self, state: TrainState, name: str) -> None:
        experiment, step = self._parts.experiment, int(state.step)
        images = np.concatenate(list(self._generation.batches(state.ema, 0, self._count)))
        if not hosts.is_first():
            return
        title = f"step {step:,}, guidance {experiment.sample.guidance_scale:g}"
        page = pictures.save_grid(images, self._conditions, self._folder / name, title)
        self._writer.write_image("samples", step, page)
