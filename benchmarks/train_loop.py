"""Cost of the train loop beside its steps: data, logging, checkpoints, in the job `train` itself.

    python benchmarks/train_loop.py configs/digits.py --steps 300
    python benchmarks/train_loop.py configs/imagenet256.py:large --batch-size 256 --steps 60 \\
        --set model.remat=none

The job runs as a user's does, in a temporary folder, until the steps are made. Prepared data are
written there first, random numbers of the config's shapes, unless --set data.source=FOLDER names
some; built-in data are the config's own. The bare step is the job's own compiled program, on one
batch over and over, before the job's loop and after the job.

The difference is that of wall-clock times; one window of steps warms up, pictures are left out. Its
parts are what `training.loop` accounts for: time of the host, of which nothing is lost while the
devices have steps queued, so that the parts of data and logging may add up to more than the
difference. A checkpoint is started in the middle of the steps and written while they go on: it
costs what holds the loop up ("blocking"), and what the steps that follow take longer ("in all", as
far as they last and as the noise of the machine allows). The last line is the steps' share without
checkpoints, and that of a checkpoint every `train.save_every` steps, as the config has it.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import jax
import numpy as np

from uvit_jax.data.prepared.empty_context import save_empty_context
from uvit_jax.data.prepared.manifest import Manifest
from uvit_jax.data.prepared.shard_writer import ShardWriter
from uvit_jax.data.training_data import BUILT_IN
from uvit_jax.errors import Preempted, run_script
from uvit_jax.experiment.config import Experiment, load_experiment, parse_settings
from uvit_jax.files import atomic_write
from uvit_jax.jobs import train
from uvit_jax.parallel.compile_cache import keep_compiled_programs
from uvit_jax.parallel.gpu_memory import use_cuda_allocator
from uvit_jax.training.loop import Hook, Log, Window, fit

# Windows that the measured steps are logged in at least, half of them before the checkpoint.
WINDOWS = 4
# Looks at the clock before and after the job, with at least so many steps of the bare program in
# between.
REPEATS, BARE_STEPS = 2, 10
# Shares at the config's own `log_every` and `save_every`.
_OWN_SHARES = ("log_share", "save_blocking_share", "save_share", "share")


def write_data(experiment: Experiment, folder: pathlib.Path, examples: int) -> None:
    """Writes a prepared data set of random numbers: moments where the config has an autoencoder."""
    model, section = experiment.model, experiment.autoencoder
    rng, classes = np.random.default_rng(0), experiment.num_real_classes
    height, width, channels = model.sample_shape
    latent = bool(section.name)
    shape = (height, width, channels * (2 if latent else 1))
    dtype = np.dtype(experiment.prepare.dtype if latent else "uint8")
    mirror = latent and experiment.data.flip
    states = (model.context_length, model.context_dim)
    text: dict[str, Any] = {}
    if model.context_dim:
        text = {"context_shape": states, "context_dtype": experiment.prepare.dtype}

    def array(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        if dtype == np.uint8:
            return rng.integers(256, size=shape, dtype=np.uint8)
        return rng.standard_normal(shape, np.float32).astype(dtype)

    with ShardWriter(folder, "00000.array_record", shape, dtype, mirror=mirror, **text) as writer:
        for i in range(examples):
            captions = (
                [(array(states, np.dtype(experiment.prepare.dtype)), str(i))] if text else None
            )
            images = [array(shape, dtype) for _ in range(1 + mirror)]
            writer.write(i % classes if classes else -1, *images, captions=captions)
    if text:
        empty = np.zeros(states, experiment.prepare.dtype)
        text |= {
            "text_encoder_sha256": "0" * 64,
            "empty_context_sha256": save_empty_context(folder, empty),
        }
    Manifest(
        source="random numbers",
        split="train",
        kind="moments" if latent else "pixels",
        image_size=8 * height if latent else height,
        shape=shape,
        dtype=dtype.name,
        mirror=mirror,
        class_names=(),
        num_classes=classes,
        autoencoder=section.name,
        autoencoder_sha256="",
        scale=section.scale,
        shift=0.0,
        mean=(0.0,) * channels,
        std=(1.0,) * channels,
        text_encoder="random numbers" if text else "",
        crop="none",
        skipped=0,
        shards=(writer.shard,),
        **text,
    ).save(folder)


class _Once(Hook):
    """Due at one step alone."""

    def is_due(self, step: int, steps: int) -> bool:
        return step == self.every


@dataclasses.dataclass
class Measured:
    """A `fit` that measures the bare step, then the loop, for some steps after a warm-up window.

    Attributes:
      steps: to measure; a whole number of windows, so perhaps some more.
      log_every: steps of a window.
      bare: seconds of a bare step, before the job's loop and after the job.
      windows: those measured, by their last steps.
      saved: the step of the checkpoint; its time is in the window after it.
      last: the last step.
      checkpoint_bytes: of a checkpoint's arrays.
    """

    steps: int
    log_every: int = 0
    bare: list[list[float]] = dataclasses.field(default_factory=list)
    windows: dict[int, Window] = dataclasses.field(default_factory=dict)
    saved: int = 0
    last: int = 0
    checkpoint_bytes: int = 0
    _again: Callable[[], None] = lambda: None

    def fit(
        self,
        train_step: Callable,
        state: Any,
        batches: Any,
        *,
        log: Log,
        hooks: Sequence[Hook],
        should_stop: Callable[[int], bool],
        **options: Any,
    ) -> Any:
        """In place of `training.loop.fit`, which it calls."""
        batch = next(batches)
        self.checkpoint_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        state = self._run_bare(train_step, state, batch)

        count = max(1, min(WINDOWS, self.steps))
        self.log_every = min(log.every, self.steps // count)
        first = -(-(int(state.step) + self.log_every) // self.log_every) * self.log_every
        windows = -(-self.steps // self.log_every)
        self.saved = first + windows // 2 * self.log_every
        self.last = first + windows * self.log_every

        def measured(step: int, window: Window) -> None:
            if step > first:
                self.windows[step] = window
            log.run(step, window)

        # Due at the multiples of a step, and so the first time at that step.
        hooks = [
            dataclasses.replace(hook, every=self.saved, at_end=False) if hook.timed else hook
            for hook in hooks
        ]
        # Before an untimed hook no step is under way: the first window to be measured begins with
        # none, as the last before the checkpoint ends.
        hooks.append(_Once(lambda state: None, first, at_end=False, timed=False))
        state = fit(
            train_step,
            state,
            batches,
            log=Log(self.log_every, measured),
            hooks=hooks,
            should_stop=lambda step: should_stop(step) or step == self.last,
            **options,
        )

        def again() -> None:
            self._run_bare(train_step, state, batch)

        self._again = again
        return state

    @property
    def is_done(self) -> bool:
        """True if all steps were measured."""
        return bool(self.last) and self.last in self.windows

    def after(self) -> None:
        """The bare step once more, when nothing of the job is under way any more."""
        self._again()

    def _run_bare(self, train_step: Callable, state: Any, batch: Any) -> Any:
        seconds, steps = [], max(BARE_STEPS, self.steps // 8)
        for repeat in range(1 + REPEATS):
            began = time.monotonic()
            for _ in range(steps if repeat else 1):
                state, metrics = train_step(state, batch)
            jax.block_until_ready(metrics)
            seconds.append((time.monotonic() - began) / steps)
        self.bare.append(seconds[1:])
        return state


def summary(measured: Measured, experiment: Experiment) -> dict[str, Any]:
    """Seconds a step and shares of the bare step (`*_share`), as the module's docstring says."""
    bare = float(np.median([seconds for repeats in measured.bare for seconds in repeats]))
    before = [window for step, window in measured.windows.items() if step <= measured.saved]
    after = [window for step, window in measured.windows.items() if step > measured.saved]
    loop, without, rest = (
        _per_step(windows, "seconds") for windows in (before + after, before, after)
    )
    blocking = sum(window.hook_seconds for window in after)
    save = (rest - without) * sum(window.steps for window in after)
    log = sum(window.log_seconds for window in before + after) / len(before + after)
    data = _per_step(before + after, "data_seconds")
    config = experiment.train
    each = config.save_every * bare
    return {
        "batch": config.batch_size,
        "steps": sum(window.steps for window in before + after),
        "bare_seconds": bare,
        "bare_seconds_each": measured.bare,
        "loop_seconds": loop,
        "loop_seconds_each": [window.seconds / window.steps for window in before + after],
        "share": loop / bare - 1,
        "without_checkpoints_seconds": without,
        "without_checkpoints_share": without / bare - 1,
        "data_seconds": data,
        "data_share": data / bare,
        "log_every": measured.log_every,
        "log_seconds": log,
        "log_share": log / measured.log_every / bare,
        "checkpoint_bytes": measured.checkpoint_bytes,
        "save_blocking_seconds": blocking,
        "save_seconds": save,
        "own_log_every": config.log_every,
        "own_log_share": log / config.log_every / bare,
        "own_save_every": config.save_every,
        "own_save_blocking_share": blocking / each if each else 0.0,
        "own_save_share": save / each if each else 0.0,
        "own_share": without / bare - 1 + (max(save, blocking) / each if each else 0.0),
    }


def _per_step(windows: Sequence[Window], field: str) -> float:
    return sum(getattr(window, field) for window in windows) / sum(
        window.steps for window in windows
    )


def measure(
    experiment: Experiment, *, steps: int, examples: int, own_data: bool, parent: str | None
) -> dict[str, Any]:
    """The summary of an experiment's loop.

    Args:
      experiment: its `train.steps` are the schedule's, and more where they don't suffice.
      steps: to measure.
      examples: of the data made.
      own_data: whether `data.source` is there.
      parent: of the temporary folder; the system's own for None.
    """
    measured = Measured(max(steps, 2))
    # Warm-up and bare steps are fewer than four times these and fifty.
    enough = dataclasses.replace(
        experiment.train, steps=max(experiment.train.steps, 5 * measured.steps + 50)
    )
    experiment = dataclasses.replace(experiment, train=enough)
    with tempfile.TemporaryDirectory(dir=parent) as name:
        folder = pathlib.Path(name)
        if not own_data and experiment.data.source not in BUILT_IN:
            write_data(experiment, folder / "data", examples)
            experiment = dataclasses.replace(
                experiment,
                data=dataclasses.replace(experiment.data, source=str(folder / "data")),
                # Pictures need the autoencoder and the tower of texts; steps on prepared data
                # don't.
                autoencoder=dataclasses.replace(experiment.autoencoder, name=""),
                sample=dataclasses.replace(experiment.sample, prompts="", negative_prompt=""),
            )
        with mock.patch.object(train, "fit", measured.fit):
            try:
                train.run(experiment, folder / "run")
            except Preempted:
                # So ends a run that is stopped before its last step, without the last pictures.
                if not measured.is_done:
                    raise
        measured.after()
    return summary(measured, experiment)


def show(row: dict[str, Any]) -> None:
    """The summary in a few lines."""
    before, after = (1e3 * np.median(repeats) for repeats in row["bare_seconds_each"])
    mib, own = (
        row["checkpoint_bytes"] / 2**20,
        {name: f"{row[f'own_{name}']:.2%}" for name in _OWN_SHARES},
    )
    for name, field, note in (
        ("bare step", "bare", f"{before:.2f} before the job's loop, {after:.2f} after the job"),
        ("in the loop", "loop", f"{row['share']:+.2%}, {row['steps']} steps"),
        (
            "  before the checkpoint",
            "without_checkpoints",
            f"{row['without_checkpoints_share']:+.2%}",
        ),
        ("  waiting for data", "data", f"{row['data_share']:.2%} of a step, host time"),
        ("  a log", "log", f"{row['log_share']:.2%} at every {row['log_every']} steps, host time"),
        (
            "  a checkpoint",
            "save_blocking",
            f"blocking; {1e3 * row['save_seconds']:.0f} ms in all, of {mib:,.0f} MiB",
        ),
    ):
        print(f"  {name:24}{1e3 * row[f'{field}_seconds']:10.2f} ms   {note}")
    print(
        f"  log_every={row['own_log_every']}, save_every={row['own_save_every']}: logs "
        f"{own['log_share']} (host time), checkpoints {own['save_blocking_share']} blocking and "
        f"{own['save_share']} in all; the loop {own['share']}",
        flush=True,
    )


def main() -> None:
    """Measures one config and prints what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="configs/x.py:variant")
    parser.add_argument(
        "--batch-size", type=int, help="of all devices together; the config's by default"
    )
    parser.add_argument(
        "--set", nargs="*", default=[], help="section.field=value, as --config.section.field=value"
    )
    parser.add_argument("--steps", type=int, default=200, help="that are measured")
    parser.add_argument("--examples", type=int, default=4096, help="of the data that are made")
    parser.add_argument("--folder", help="where the temporary files go (default: the system's)")
    parser.add_argument("--out", help="a JSON file for what was found")
    parser.add_argument("--figures", help="a JSON file of figures, as docs/figures.json")
    options = parser.parse_args()
    overrides = parse_settings(options.set)
    if options.batch_size:
        overrides["train.batch_size"] = str(options.batch_size)
    experiment = load_experiment(options.config, overrides)
    use_cuda_allocator(os.environ)
    keep_compiled_programs(os.environ)
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    print(
        f"{options.config}, batch {experiment.train.batch_size}, {device}, jax {jax.__version__}",
        flush=True,
    )
    row = measure(
        experiment,
        steps=options.steps,
        examples=options.examples,
        own_data="data.source" in overrides,
        parent=options.folder,
    )
    show(row)
    if options.out:
        with atomic_write(options.out) as file:
            file.write(
                json.dumps({"config": options.config, "device": device, **row}, indent=2).encode()
                + b"\n"
            )
    if options.figures:
        from figures import record, slug  # beside this script, which tests import from elsewhere

        prefix = f"train_loop.{slug(options.config)}.{slug(jax.devices()[0].device_kind)}"
        loop, data = 100 * row["own_share"], 100 * row["data_share"]
        figures = {f"{prefix}.loop_share": (loop, "%"), f"{prefix}.data_share": (data, "%")}
        record(options.figures, device, figures)


if __name__ == "__main__":
    run_script(main)
