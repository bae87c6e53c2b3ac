"""Losses of bfloat16 and fp8 runs with this machine's kernels beside a float32 run's, on the same
data and noise.

    # Digits, 200 steps; images of waves with a paper's config; without a float32 run.
    python benchmarks/loss_parity.py
    python benchmarks/loss_parity.py configs/cifar10.py --batch-size 64
    python benchmarks/loss_parity.py --forms bfloat16 fp8 --steps 2000

All start from the same weights and draw the same times and noises. Prints the mean loss of every
tenth of the run and the others' difference from the first form's, and ends with the largest.
"""

import argparse
import dataclasses
import json
import pathlib
from typing import Any

import jax
import numpy as np

from uvit_jax.data.pipeline import train_batches
from uvit_jax.data.training_data import BUILT_IN, ArrayData, TrainingData, load_built_in
from uvit_jax.errors import run_script
from uvit_jax.experiment.assembled import assemble
from uvit_jax.experiment.config import load_experiment, parse_settings
from uvit_jax.experiment.data_card import DataCard
from uvit_jax.experiment.step_program import (
    abstract_inputs,
    abstract_state,
    batch_fields,
    make_step,
)
from uvit_jax.training.state import create_sharded

FORMS = {
    "float32": {"model.dtype": "float32", "model.kernels": "xla"},
    "bfloat16": {"model.dtype": "bfloat16"},
    "fp8": {"model.dtype": "fp8"},
}


def losses(config: str, batch_size: int, steps: int, overrides: dict[str, str]) -> np.ndarray:
    """The loss of each step."""
    experiment = load_experiment(config, {"train.batch_size": str(batch_size), **overrides})
    # A short run is to learn something.
    experiment = dataclasses.replace(
        experiment,
        optimizer=dataclasses.replace(
            experiment.optimizer, warmup_steps=min(50, steps // 4), decay="none"
        ),
    )
    assembled = assemble(experiment, DataCard(config), devices=jax.devices()[:1])
    optimizer, template = abstract_state(assembled, experiment.optimizer, experiment.train.steps)
    step = abstract_inputs(experiment, assembled.batch_sharding)
    step = dataclasses.replace(step, null_condition=None)
    train_step = jax.jit(
        make_step(experiment, assembled.network, optimizer, step), donate_argnums=0
    )
    state = create_sharded(assembled.init_params, optimizer, 0, template)
    batches = train_batches(
        _source(experiment),
        fields=batch_fields(experiment.model),
        batch_size=batch_size,
        seed=0,
        sharding=assembled.batch_sharding,
    )
    found = []
    for _ in range(steps):
        state, metrics = train_step(state, next(batches))
        found.append(metrics["loss"])
    batches.close()
    return np.asarray(jax.device_get(found))


def _source(experiment: Any) -> TrainingData:
    """The config's data where a package brings them, else images of random colours and waves."""
    if experiment.data.source in BUILT_IN:
        return load_built_in(experiment.data.source)
    h, w, c = experiment.model.sample_shape
    rng = np.random.default_rng(0)
    phase = rng.uniform(0, 2 * np.pi, (2048, 1, 1, c))
    waves = rng.uniform(0.1, 1, (2, 2048, 1, 1, c))
    rows, columns = np.arange(h)[None, :, None, None], np.arange(w)[None, None, :, None]
    images = np.sin(waves[0] * rows + waves[1] * columns + phase).astype(np.float32)
    classes = max(experiment.num_real_classes, 1)
    return ArrayData(
        "waves", images, rng.integers(0, classes, 2048), [str(i) for i in range(classes)]
    )


def main() -> None:
    """Runs both and compares."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", nargs="?", default="configs/digits.py")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument(
        "--set", nargs="*", default=[], help="section.field=value, as --config.section.field=value"
    )
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=["float32", "bfloat16"])
    parser.add_argument("--out", default="")
    options = parser.parse_args()
    overrides = parse_settings(options.set)
    curves = {
        name: losses(
            options.config, options.batch_size, options.steps, {**FORMS[name], **overrides}
        )
        for name in options.forms
    }
    print(
        f"{options.config}, {options.steps} steps of {options.batch_size}: "
        f"{jax.devices()[0].device_kind}"
    )
    first, *others = options.forms
    tenths = {
        name: np.array([part.mean() for part in np.array_split(curve, 10)])
        for name, curve in curves.items()
    }
    for number in range(10):
        compared = (
            f"{name} {tenths[name][number]:.5f} {_difference(tenths, name)[number]:+.3%}"
            for name in others
        )
        print(f"tenth {number + 1:2}: {first} {tenths[first][number]:.5f}  {'  '.join(compared)}")
    for name in others:
        print(
            f"largest difference of {name} from {first}: "
            f"{np.abs(_difference(tenths, name)).max():.3%}"
        )
    if options.out:
        pathlib.Path(options.out).write_text(
            json.dumps({name: curve.tolist() for name, curve in curves.items()})
        )


def _difference(tenths: dict[str, np.ndarray], name: str) -> np.ndarray:
    """Relative, from the first form."""
    return tenths[name] / next(iter(tenths.values())) - 1


if __name__ == "__main__":
    run_script(main)
