"""The job `train`: data in; checkpoints, metrics and pictures out.

The same command again continues.
"""

import contextlib
import functools
import logging
import math
import pathlib
import time
from collections.abc import Callable, Mapping

import grain
import jax
import optax
from clu.parameter_overview import get_parameter_overview

from uvit_jax.data.pipeline import train_batches
from uvit_jax.data.prepared.prepared_data import PreparedData
from uvit_jax.errors import Preempted, UserError
from uvit_jax.experiment.config import Experiment
from uvit_jax.experiment.data_card import identity
from uvit_jax.experiment.folder_lock import locked
from uvit_jax.experiment.opened import OpenedForTraining, open_for_training
from uvit_jax.experiment.saved_config import changes, save_config, saved_config, to_save
from uvit_jax.experiment.start import ema_rates, newest_step, state_of_weights
from uvit_jax.experiment.step_program import (
    abstract_state,
    batch_fields,
    lower_train_step,
    source_inputs,
)
from uvit_jax.experiment.text_states import read_prompts
from uvit_jax.experiment.weights import initial_weights
from uvit_jax.experiment.workdir import open_workdir
from uvit_jax.files import atomic_write
from uvit_jax.jobs.evaluation.while_training import TrainEvaluation
from uvit_jax.jobs.sampling.conditions import Conditions, open_conditions
from uvit_jax.jobs.sampling.gallery import open_gallery
from uvit_jax.models.flops import forward_flops
from uvit_jax.parallel import hosts
from uvit_jax.parallel.batches import Batch
from uvit_jax.parallel.chips import peak_flops
from uvit_jax.parallel.preemption import PreemptionNotice
from uvit_jax.telemetry.curves import loss_curve
from uvit_jax.telemetry.progress import Progress
from uvit_jax.telemetry.throughput import Throughput
from uvit_jax.telemetry.writers import MetricWriter, read_metrics
from uvit_jax.training.checkpoint import Checkpoints, Rates
from uvit_jax.training.loop import Hook, Window, fit
from uvit_jax.training.metrics_log import MetricsLog
from uvit_jax.training.state import TrainState, create_sharded
from uvit_jax.training.step import Metrics

LOG = logging.getLogger("uvit_jax")


def run(experiment: Experiment, workdir: pathlib.Path) -> str:
    """Trains until `config.train.steps`; returns one line that says what was made and where.

    Raises:
      UserError: for what is wrong with the config, the data or the workdir, before any device
        works; for a loss that is not a number, while training.
      Preempted: after a SIGTERM, with a checkpoint of the step that was reached.
    """
    # --- Everything that can be wrong is found first, on whichever host it is.
    opened = hosts.on_all(open_for_training, experiment, workdir)
    card, source, text = opened.assembled.card, opened.source, opened.text
    prompts = read_prompts(experiment.sample.prompts) if text else ()
    hosts.agree({**identity(card, source), "config.sample.prompts": prompts})
    captions = source if experiment.model.context_dim and text is None else None
    assert captions is None or isinstance(captions, PreparedData)  # no other has captions
    conditions = open_conditions(
        experiment,
        card,
        count=experiment.train.num_images,
        text=text,
        captions=captions,
        spread=True,
    )
    open_workdir(workdir)
    with locked(workdir, "train"):
        return _train(experiment, opened, conditions, workdir)


def _train(
    experiment: Experiment,
    opened: OpenedForTraining,
    conditions: Conditions,
    workdir: pathlib.Path,
) -> str:
    """Trains in a workdir that is this process's own; conditions: of the pictures."""
    train, main_host = experiment.train, hosts.is_first()
    assembled, source, config = opened.assembled, opened.source, to_save(experiment)
    before = hosts.on_all(saved_config, workdir) or {}
    for change in changes(config, before):
        LOG.info(change)
    evaluation = TrainEvaluation(experiment, opened, workdir) if experiment.evaluate.every else None
    checkpoints = Checkpoints(
        workdir / "checkpoints", keep_last=train.keep_last, keep_every=train.keep_every
    )
    newest = newest_step(checkpoints, train.steps)

    # --- Data, and the state: the newest checkpoint's, or a fresh one born on the mesh.
    batches = train_batches(
        source,
        fields=batch_fields(experiment.model),
        batch_size=train.batch_size,
        seed=train.seed,
        sharding=assembled.batch_sharding,
        flip=experiment.data.flip,
        prefetch=experiment.data.prefetch,
        workers=experiment.data.workers,
    )
    optimizer, template = abstract_state(assembled, experiment.optimizer, train.steps)
    if newest is not None:
        state = checkpoints.restore(
            template, batches, newest, batch_size=before.get("train", {}).get("batch_size")
        )
    elif experiment.init_from:
        params = initial_weights(template.params, experiment.model, experiment.init_from)
        LOG.info("starting from the weights of %s", experiment.init_from)
        state = state_of_weights(params, optimizer, template)
    else:
        state = create_sharded(assembled.init_params, optimizer, train.seed, template)
    start, seen = int(state.step), batches.get_state()["next_example"]
    rates = ema_rates(checkpoints, newest, before, experiment.ema.rate)
    if main_host:
        save_config(config, workdir)
        assembled.card.save(workdir)
        _write_overview(template, workdir / "parameters.txt")
    num_params = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(template.params))
    LOG.info(
        "%s parameters, %s examples, from step %d", f"{num_params:,}", f"{len(source):,}", start
    )

    # --- The loop, with metrics on disk and a bar on the screen.
    with (
        contextlib.closing(batches),
        contextlib.closing(checkpoints),
        MetricWriter(workdir, start, active=main_host) as writer,
    ):
        save_state = _saver(checkpoints, batches, writer, rates)
        if newest is None and train.keep_every:
            save_state(state)  # the averages of every later step begin with it
        gallery = open_gallery(
            assembled,
            experiment.diffusion,
            experiment.sample,
            conditions,
            count=train.num_images,
            writer=writer,
            folder=workdir / "samples",
        )
        every, evaluate = experiment.evaluate.every, _evaluator(evaluation, writer, LOG.info)
        if start and every and start % every == 0:
            evaluate(state)  # a run that was stopped right after this checkpoint had no time for it
        if start < train.steps:
            with (
                Progress(train.steps, start=start, active=main_host) as progress,
                PreemptionNotice() as preempted,
            ):
                batches.start_prefetch()  # while the step compiles
                train_step = _compile(experiment, opened, optimizer, template, progress)
                kinds = [device.device_kind for device in assembled.mesh.devices.flat]
                log = MetricsLog(
                    writer,
                    progress,
                    Throughput(forward_flops(experiment.model), peak_flops(kinds)),
                    experiment.optimizer,
                    batch_size=train.batch_size,
                    steps=train.steps,
                    start=start,
                    seen=seen,
                )
                measure = _evaluator(evaluation, writer, progress.write)
                hooks = (
                    Hook(save_state, train.save_every, at_end=True, timed=True),
                    # After the save: a picture that fails costs no checkpoint.
                    Hook(gallery.draw_step, train.image_every, at_end=False, timed=False),
                    # Not at the end: a run that is stopped has no time for thousands of samples.
                    Hook(measure, every, at_end=False, timed=False),
                )
                state = fit(
                    train_step,
                    state,
                    batches,
                    steps=train.steps,
                    log_every=train.log_every,
                    on_step=progress.update,
                    on_log=functools.partial(_log_finite, log),
                    hooks=hooks,
                    check=_check_finite,
                    should_stop=preempted,
                )
        stopped = int(state.step) < train.steps
        if not stopped:
            gallery.draw_last(state)
            evaluate(state)

    # --- The line that says what was made.
    if stopped:
        raise Preempted(
            f"preempted at step {int(state.step):,}: the checkpoint is saved, the same command "
            f"continues"
        )
    return _report(workdir, num_params, int(state.step), main_host=main_host)


def _report(workdir: pathlib.Path, num_params: int, step: int, *, main_host: bool) -> str:
    """Draws the curve of the loss; returns the line that the run ends with."""
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


def _write_overview(template: TrainState, path: pathlib.Path) -> None:
    with atomic_write(path) as file:
        file.write(
            get_parameter_overview(template.params, include_stats="sharding").encode() + b"\n"
        )


def _compile(
    experiment: Experiment,
    opened: OpenedForTraining,
    optimizer: optax.GradientTransformation,
    template: TrainState,
    progress: Progress,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Compiles the train step ahead of the loop, so that no step's time has it in."""
    inputs = source_inputs(
        opened.assembled,
        opened.source,
        batch_size=experiment.train.batch_size,
        drops_conditions=bool(experiment.diffusion.p_uncond),
    )
    began = time.monotonic()
    lowered = lower_train_step(experiment, opened.assembled, optimizer, template, inputs)
    compiled = lowered.compile()
    progress.write(f"compiled the train step in {time.monotonic() - began:.1f} s")
    return lambda state, batch: compiled(state, batch, inputs.frozen)


def _evaluator(
    evaluation: TrainEvaluation | None, writer: MetricWriter, say: Callable[[str], None]
) -> Callable[[TrainState], None]:
    """Binds an evaluation to the writer and the log; without one, does nothing."""
    return (
        functools.partial(evaluation, writer=writer, say=say) if evaluation else lambda state: None
    )


def _saver(
    checkpoints: Checkpoints, batches: grain.DatasetIterator, writer: MetricWriter, rates: Rates
) -> Callable[[TrainState], None]:
    """Makes `save(state)`, which writes a checkpoint.

    The metrics of the steps before it are flushed first: a resumed run expects them on disk.
    """

    def save(state: TrainState) -> None:
        writer.flush()
        checkpoints.save(state, batches, rates)

    return save


def _log_finite(log: Callable[[int, Window], None], step: int, window: Window) -> None:
    _check_finite(step, window.metrics)
    log(step, window)


def _check_finite(step: int, metrics: Mapping[str, float]) -> None:
    """Raises a UserError once training has broken down."""
    for name, what in (("loss", "loss"), ("grad_norm", "norm of the gradients")):
        if not math.isfinite(metrics[name]):
            raise UserError(
                f"the {what} is {metrics[name]} at step {step}: lower config.optimizer.lr or "
                f"compute in float32"
            )
