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
from uvit_jax.data.prepared.record_source import RecordSource
from uvit_jax.data.sources import Source
from uvit_jax.errors import Preempted, UserError
from uvit_jax.experiment.assembled import Assembled
from uvit_jax.experiment.config import Experiment
from uvit_jax.experiment.data_card import identity
from uvit_jax.experiment.folder_lock import locked
from uvit_jax.experiment.opened import Opened, open_for_training
from uvit_jax.experiment.saved_config import changes, save_config, saved_config
from uvit_jax.experiment.start import ema_rates, first_state, newest_step
from uvit_jax.experiment.step_program import batch_fields, lower_train_step, source_inputs
from uvit_jax.experiment.text_states import read_prompts
from uvit_jax.experiment.workdir import open_workdir
from uvit_jax.files import atomic_write
from uvit_jax.jobs.evaluation.while_training import TrainEvaluation
from uvit_jax.jobs.sampling.conditions import Conditions, open_conditions
from uvit_jax.jobs.sampling.gallery import Gallery
from uvit_jax.models.flops import forward_flops
from uvit_jax.parallel import hosts
from uvit_jax.parallel.chips import peak_flops
from uvit_jax.parallel.preemption import PreemptionNotice
from uvit_jax.telemetry.curves import loss_curve
from uvit_jax.telemetry.progress import Progress
from uvit_jax.telemetry.throughput import Throughput
from uvit_jax.telemetry.writers import MetricWriter, read_metrics
from uvit_jax.training.checkpoint import Checkpoints, Rates
from uvit_jax.training.loop import Hook, Window, fit
from uvit_jax.training.metrics_log import MetricsLog
from uvit_jax.training.optimizer import make_optimizer
from uvit_jax.training.state import TrainState, abstract

LOG = logging.getLogger("uvit_jax")


def run(experiment: Experiment, workdir: pathlib.Path) -> str:
    """Trains until `config.train.steps`; returns one line that says what was made and where.

    Raises:
      UserError: for what is wrong with the config, the data or the workdir, before any device
        works; for a loss that is not a number, while training.
      Preempted: after a SIGTERM, with a checkpoint of the step that was reached.
    """
    with contextlib.ExitStack() as locks:
        return _run(experiment, workdir, locks)


def _run(experiment: Experiment, workdir: pathlib.Path, locks: contextlib.ExitStack) -> str:
    train, main_host = experiment.train, hosts.is_first()

    # --- Everything that can be wrong is found here, on whichever host it is.
    opened = hosts.on_all(open_for_training, experiment, workdir)
    assembled, source, text = opened.assembled, opened.source, opened.text
    assert source is not None  # training opens one
    prompts = read_prompts(experiment.sample.prompts) if text else ()
    hosts.agree({**identity(assembled.card, source), "config.sample.prompts": prompts})
    conditions = _shown_conditions(experiment, opened)
    open_workdir(workdir)
    locks.enter_context(locked(workdir, "train"))
    before = hosts.on_all(saved_config, workdir) or {}
    for change in changes(experiment, before):
        LOG.info(change)
    evaluation = TrainEvaluation(experiment, opened, workdir) if experiment.evaluate.every else None
    checkpoints = Checkpoints(
        workdir / "checkpoints", keep_last=train.keep_last, keep_every=train.keep_every
    )
    newest = newest_step(checkpoints, train.steps)

    # --- Data, and the state: the newest checkpoint's, or a fresh one born on the mesh.
    batches = _batches(experiment, assembled, source)
    optimizer = make_optimizer(experiment.optimizer, train.steps)
    template = abstract(assembled.init_params, optimizer, assembled.mesh)
    if newest is None:
        state = first_state(
            assembled, optimizer, template, init_from=experiment.init_from, seed=train.seed
        )
    else:
        state = checkpoints.restore(
            template, batches, newest, batch_size=before.get("train", {}).get("batch_size")
        )
    start, seen = int(state.step), batches.get_state()["next_example"]
    rates = ema_rates(checkpoints, newest, before, experiment.ema.rate)
    if main_host:
        save_config(experiment, workdir)
        assembled.card.save(workdir)
        _write_overview(template, workdir / "parameters.txt")
    num_params = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(template.params))
    mesh_text = " x ".join(f"{axis} {size}" for axis, size in assembled.mesh.shape.items())
    LOG.info(
        "%s parameters, %d examples, mesh %s, from step %d",
        f"{num_params:,}",
        len(source),
        mesh_text,
        start,
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
        gallery = Gallery(
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


def _batches(experiment: Experiment, assembled: Assembled, source: Source) -> grain.DatasetIterator:
    train, data = experiment.train, experiment.data
    return train_batches(
        source,
        fields=batch_fields(experiment.model),
        batch_size=train.batch_size,
        seed=train.seed,
        sharding=assembled.batch_sharding,
        flip=data.flip,
        prefetch=data.prefetch,
        workers=data.workers,
    )


def _shown_conditions(experiment: Experiment, opened: Opened) -> Conditions:
    """Conditions of the pictures: the classes or prompts asked for, or captions of the data."""
    captions = opened.source if experiment.model.context_dim and opened.text is None else None
    assert captions is None or isinstance(captions, RecordSource)  # no other has captions
    return open_conditions(
        experiment,
        opened.assembled.card,
        count=experiment.train.num_images,
        text=opened.text,
        captions=captions,
        spread=True,
    )


def _compile(
    experiment: Experiment,
    opened: Opened,
    optimizer: optax.GradientTransformation,
    template: TrainState,
    progress: Progress,
) -> Callable:
    """Compiles the train step ahead of the loop, so that no step's time has it in."""
    assembled, source = opened.assembled, opened.source
    assert source is not None  # training opens one
    drops = bool(experiment.diffusion.p_uncond)
    inputs = source_inputs(
        assembled, source, batch_size=experiment.train.batch_size, drops_conditions=drops
    )
    began = time.monotonic()
    compiled = lower_train_step(experiment, assembled, optimizer, template, inputs).compile()
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
