"""One whole train step (loss, gradients, AdamW, EMA) of the paper's models: images/s, MFU, memory, hours of the run.

    python benchmarks/train_step.py                                                # every paper config
    python benchmarks/train_step.py configs/imagenet256.py:huge --batch-size 64    # one, at another batch a device
    python benchmarks/train_step.py configs/imagenet256.py:huge --mesh 1,1,1 2,1,1 1,2,1    # one device, and two

The step is the one that training compiles, on random examples; MFU counts 3 forward passes of `models/flops.py` an
image, rematerialisation not counted. The hours are those of the config's own steps and batch at the rate measured,
without pictures and checkpoints.
"""

import argparse
import dataclasses
import itertools
import json
import math
import time
from typing import Any

import jax
import numpy as np

from uvit_jax.jobs.abstract_batch import abstract_inputs, abstract_state, lower_train_step
from uvit_jax.jobs.config import Experiment, load_experiment
from uvit_jax.jobs.datacard import DataCard
from uvit_jax.jobs.setup import assemble
from uvit_jax.models.flops import forward_flops
from uvit_jax.parallel.mesh import MeshConfig
from uvit_jax.telemetry.throughput import Throughput
from uvit_jax.training.state import create_sharded

# The paper's models with a batch for each device that fits 80 GB.
PAPER = {
    "configs/cifar10.py": 128,
    "configs/celeba64.py": 128,
    "configs/imagenet64.py:mid": 128,
    "configs/imagenet64.py:large": 128,
    "configs/imagenet256.py:large": 128,
    "configs/imagenet256.py:huge": 96,
    "configs/imagenet512.py:large": 128,
    "configs/imagenet512.py:huge": 96,
    "configs/mscoco256.py:small": 256,
    "configs/mscoco256.py:deep": 256,
}


@dataclasses.dataclass(frozen=True)
class Step:
    """A compiled train step, with a state and a batch for it.

    Attributes:
      experiment: what it trains.
      mesh: sizes of the mesh.
      compiled: `compiled(state, batch, None) -> (state, metrics)`; the state given is used up.
      state, batch: on the devices.
      compile_seconds: that it took.
    """

    experiment: Experiment
    mesh: tuple[int, ...]
    compiled: jax.stages.Compiled
    state: Any
    batch: dict[str, jax.Array]
    compile_seconds: float


def compile_step(
    name: str,
    batch_size: int,
    overrides: dict[str, str] | None = None,
    mesh: MeshConfig | None = None,
    devices: list[jax.Device] | None = None,
) -> Step:
    """The step of a config at another batch size, with fields replaced as on the command line ("model.remat": "none").

    mesh, devices: one device of its own where they are not given.
    """
    experiment = load_experiment(name, {"train.batch_size": str(batch_size), **(overrides or {})})
    experiment = dataclasses.replace(experiment, mesh=mesh or MeshConfig())
    parts = assemble(experiment, DataCard(name), devices=devices or jax.devices()[:1])
    optimizer, template = abstract_state(parts)
    step = abstract_inputs(experiment, parts.batch_sharding)
    batch = {field: jax.device_put(_random(shape), shape.sharding) for field, shape in step.batch.items()}
    began = time.monotonic()
    compiled = lower_train_step(parts, optimizer, template, step).compile()
    seconds = time.monotonic() - began
    state = create_sharded(parts.init_params, optimizer, 0, parts.mesh)
    return Step(experiment, tuple(parts.mesh.shape.values()), compiled, state, batch, seconds)


def measure(
    name: str,
    batch_size: int,
    mesh: MeshConfig,
    devices: list[jax.Device],
    overrides: dict[str, str],
    *,
    steps: int,
    repeats: int,
) -> dict[str, Any]:
    """The median rate of `repeats` times `steps` steps, after one of warm-up."""
    step = compile_step(name, batch_size, overrides, mesh, devices)
    state, compiled, model = step.state, step.compiled, step.experiment.model
    seconds = []
    for repeat in range(repeats + 1):
        began = time.monotonic()
        for _ in range(steps if repeat else 1):
            state, metrics = compiled(state, step.batch, None)
        jax.block_until_ready(metrics)
        seconds.append((time.monotonic() - began) / steps)
    rate = batch_size / float(np.median(seconds[1:]))
    throughput = Throughput(forward_flops(model), devices)
    mfu = throughput.window(steps=1, images=batch_size, seconds=batch_size / rate)["mfu"]
    memory = compiled.memory_analysis()
    gib = (memory.temp_size_in_bytes + memory.argument_size_in_bytes) / 2**30 if memory else float("nan")
    return {
        "config": name,
        "mesh": ",".join(map(str, step.mesh)),
        "batch": batch_size,
        "images_per_sec": rate,
        "tokens_per_sec": rate * model.num_tokens,
        "mfu": float("nan") if mfu is None else mfu,
        "tflops": 3 * forward_flops(model) * rate / 1e12,
        "gib": gib,
        "compile_seconds": step.compile_seconds,
        "hours": load_images(name) / rate / 3600,
    }


def load_images(name: str) -> int:
    """Images of the whole run that a config describes."""
    train = load_experiment(name).train
    return train.batch_size * train.steps


def _random(shape: jax.ShapeDtypeStruct) -> np.ndarray:
    """Examples like a data set's: labels and pixels are small whole numbers, the rest is normal."""
    rng = np.random.default_rng(0)
    if np.issubdtype(shape.dtype, np.integer):
        return rng.integers(0, 10, shape.shape).astype(shape.dtype)
    return rng.standard_normal(shape.shape, np.float32).astype(shape.dtype)


def main() -> None:
    """Measures and prints a table; one line of JSON a config where --json asks for it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", default=list(PAPER), help="configs/x.py:variant")
    parser.add_argument("--batch-size", type=int, default=0, help="of each device; 0: one that fits 80 GB")
    parser.add_argument(
        "--mesh", nargs="+", default=["-1,1,1"], help="data,fsdp,tensor; several are measured one after another"
    )
    parser.add_argument("--set", nargs="*", default=[], help="section.field=value, as --config.section.field=value")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    print(f"{jax.device_count()} x {jax.devices()[0].device_kind}, jax {jax.__version__}")
    heads = ("  mesh", "batch", "images/s", "Mtokens/s", "TFLOP/s", "MFU", "GiB", "compile", "hours in all")
    print(f"{'config':34}" + "".join(f"{head:>{len(head) + 3}}" for head in heads))
    for name, text in itertools.product(options.configs, options.mesh):
        sizes = [int(size) for size in text.split(",")]
        # A mesh of fewer devices than there are takes the first of them.
        devices = jax.devices() if -1 in sizes else jax.devices()[: math.prod(sizes)]
        batch_size = (options.batch_size or PAPER.get(name, 64)) * len(devices)
        overrides = dict(setting.split("=", 1) for setting in options.set)
        row = measure(
            name, batch_size, MeshConfig(*sizes), devices, overrides, steps=options.steps, repeats=options.repeats
        )
        cells = (
            row["mesh"],
            f"{row['batch']}",
            f"{row['images_per_sec']:,.0f}",
            f"{row['tokens_per_sec'] / 1e6:.2f}",
            f"{row['tflops']:.0f}",
            f"{row['mfu']:.1%}",
            f"{row['gib']:.1f}",
            f"{row['compile_seconds']:.1f}s",
            f"{row['hours']:,.0f}",
        )
        line = "".join(f"{cell:>{len(head) + 3}}" for cell, head in zip(cells, heads, strict=True))
        print(f"{name:34}{line}", flush=True)
        if options.json:
            print(json.dumps(row))


if __name__ == "__main__":
    main()
