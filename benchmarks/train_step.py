"""The whole train step (loss, gradients, AdamW, EMA) of the paper's models: speed, memory, hours.

    python benchmarks/train_step.py    # every paper config
    H=configs/imagenet256.py:huge
    python benchmarks/train_step.py $H --batch-size 64    # one, at another batch a device
    python benchmarks/train_step.py $H --mesh 1,1,1 2,1,1 1,2,1    # one device, and two
    python benchmarks/train_step.py $H --batch-size 128 192 --reference U-ViT --chart step.png

The step is the one that training compiles, on random examples; MFU counts 3 forward passes of
`models/flops.py` an image, rematerialisation not counted; "of matmul" is the share of what a large
bfloat16 matrix product reaches, measured in the same run. The hours are those of the config's own
steps and batch at the rate measured, without pictures and checkpoints. --reference measures the
official PyTorch code on the same device and prints the ratios (`official_code.py`).
"""

import argparse
import dataclasses
import itertools
import json
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from official_code import Row, add_arguments, finish, print_comparison, run_reference, show_rate

from uvit_jax.errors import run_script
from uvit_jax.experiment.assembled import assemble
from uvit_jax.experiment.config import Experiment, load_experiment, parse_settings
from uvit_jax.experiment.data_card import DataCard
from uvit_jax.experiment.step_program import abstract_inputs, abstract_state, lower_train_step
from uvit_jax.models.flops import forward_flops
from uvit_jax.parallel.chips import peak_flops
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
HEADS = (
    *("  mesh", "batch", "images/s", "Mtokens/s", "TFLOP/s", "MFU", "of matmul", "GiB"),
    *("compile, s", "hours in all"),
)


@dataclasses.dataclass(frozen=True)
class Step:
    """A compiled train step, with a state and a batch for it.

    Attributes:
      experiment: what it trains.
      mesh: sizes of the mesh.
      compiled: `compiled(state, batch, None) -> (state, metrics)`; the state given is used up.
      state, batch: on the devices.
      lower_seconds, compile_seconds: tracing and lowering, which a kept program does not save, and
        the rest.
    """

    experiment: Experiment
    mesh: tuple[int, ...]
    compiled: jax.stages.Compiled
    state: Any
    batch: dict[str, jax.Array]
    lower_seconds: float
    compile_seconds: float


def compile_step(
    name: str,
    batch_size: int,
    overrides: dict[str, str] | None = None,
    mesh: MeshConfig | None = None,
    devices: list[jax.Device] | None = None,
) -> Step:
    """The step of a config at another batch size, compiled for a mesh (default: one device).

    overrides: fields replaced as on the command line ("model.remat": "none").
    """
    experiment = load_experiment(name, {"train.batch_size": str(batch_size), **(overrides or {})})
    experiment = dataclasses.replace(experiment, mesh=mesh or MeshConfig())
    assembled = assemble(experiment, DataCard(name), devices=devices or jax.devices()[:1])
    optimizer, template = abstract_state(assembled, experiment.optimizer, experiment.train.steps)
    step = abstract_inputs(experiment, assembled.batch_sharding)
    batch = {
        field: jax.device_put(_random(shape), shape.sharding) for field, shape in step.batch.items()
    }
    began = time.monotonic()
    lowered = lower_train_step(experiment, assembled, optimizer, template, step)
    between = time.monotonic()
    compiled = lowered.compile()
    seconds = between - began, time.monotonic() - between
    state = create_sharded(assembled.init_params, optimizer, 0, template)
    return Step(experiment, tuple(assembled.mesh.shape.values()), compiled, state, batch, *seconds)


def measure(
    name: str,
    batch_size: int,
    mesh: MeshConfig,
    devices: list[jax.Device],
    overrides: dict[str, str],
    *,
    steps: int,
    repeats: int,
    ceiling: float,
) -> Row:
    """The median rate of `repeats` times `steps` steps, after one of warm-up.

    ceiling: of one device, in FLOP/s.
    """
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
    throughput = Throughput(
        forward_flops(model), peak_flops(device.device_kind for device in devices)
    )
    mfu = throughput.window(steps=1, images=batch_size, seconds=batch_size / rate)["mfu"]
    memory = compiled.memory_analysis()
    gib = (
        (memory.temp_size_in_bytes + memory.argument_size_in_bytes) / 2**30
        if memory
        else float("nan")
    )
    flops = 3 * forward_flops(model) * rate
    return {
        "who": "ours",
        "config": name,
        "devices": len(devices),
        "mesh": ",".join(map(str, step.mesh)),
        "batch": batch_size,
        "images_per_sec": rate,
        "tokens_per_sec": rate * model.num_tokens,
        "mfu": mfu,
        "tflops": flops / 1e12,
        "share": flops / (ceiling * len(devices)),
        "gib": gib,
        "lower_seconds": step.lower_seconds,
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


def matmul_ceiling() -> float:
    """FLOP/s of one device in products of bfloat16 matrices, 8192x8192 (1024x1024 on a CPU).

    The median of 5 runs of about 0.1 s.
    """
    size, products = (1024, 2) if jax.default_backend() == "cpu" else (8192, 64)
    a, b = (
        jax.random.normal(key, (size, size), jnp.bfloat16)
        for key in jax.random.split(jax.random.key(0))
    )
    multiply = jax.jit(jnp.matmul)
    jax.block_until_ready(multiply(a, b))
    seconds = []
    for _ in range(5):
        began = time.monotonic()
        jax.block_until_ready([multiply(a, b) for _ in range(products)][-1])
        seconds.append(time.monotonic() - began)
    return products * 2 * size**3 / float(np.median(seconds))


def show(row: Row) -> None:
    """A line of the table."""
    cells = (
        row["mesh"],
        f"{row['batch']}",
        show_rate(row["images_per_sec"]),
        f"{row['tokens_per_sec'] / 1e6:.2f}",
        f"{row['tflops']:.3g}",
        "-" if row["mfu"] is None else f"{row['mfu']:.1%}",
        f"{row['share']:.1%}",
        f"{row['gib']:.1f}",
        f"{row['lower_seconds']:.1f}+{row['compile_seconds']:.1f}",
        f"{row['hours']:,.0f}",
    )
    line = "".join(f"{cell:>{len(head) + 3}}" for cell, head in zip(cells, HEADS, strict=True))
    print(f"{row['config']:34}{line}", flush=True)


def measure_config(
    name: str, options: argparse.Namespace, overrides: dict[str, str], ceiling: float
) -> list[Row]:
    """Rows of one config on every mesh at every batch size that fits, printed one by one."""
    rows = []
    for text, size in itertools.product(options.mesh, options.batch_size or [PAPER.get(name, 64)]):
        sizes = [int(length) for length in text.split(",")]
        # A mesh of fewer devices than there are takes the first of them.
        devices = jax.devices() if -1 in sizes else jax.devices()[: math.prod(sizes)]
        counts: Any = {"steps": options.steps, "repeats": options.repeats, "ceiling": ceiling}
        try:
            row = measure(
                name, size * len(devices), MeshConfig(*sizes), devices, overrides, **counts
            )
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            print(f"{name:34}{text:>9}{size * len(devices):>8}   does not fit", flush=True)
            continue
        rows.append(row)
        show(row)
        if options.json:
            print(json.dumps(row))
    return rows


def main() -> None:
    """Measures and prints a table; one line of JSON a row where --json asks for it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", nargs="*", default=list(PAPER), help="configs/x.py:variant")
    parser.add_argument(
        "--batch-size", type=int, nargs="+", help="of each device, one after another; one that fits"
    )
    parser.add_argument(
        "--mesh",
        nargs="+",
        default=["-1,1,1"],
        help="data,fsdp,tensor; several are measured one after another",
    )
    parser.add_argument(
        "--set", nargs="*", default=[], help="section.field=value, as --config.section.field=value"
    )
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    add_arguments(parser, batch_size=128)
    options = parser.parse_args()
    overrides = parse_settings(options.set)
    experiments = {name: load_experiment(name, overrides) for name in options.configs}
    # Before JAX takes the GPU's memory for itself.
    theirs = {
        name: run_reference(options, name, experiment, "train", options.steps)
        if options.reference
        else []
        for name, experiment in experiments.items()
    }
    device, ceiling = jax.devices()[0].device_kind, matmul_ceiling()
    title = (
        f"{jax.device_count()} x {device}, jax {jax.__version__}, matrix products "
        f"{ceiling / 1e12:.3g} TFLOP/s"
    )
    print(title)
    print(f"{'config':34}" + "".join(f"{head:>{len(head) + 3}}" for head in HEADS))
    rows: list[Row] = []
    for name, experiment in experiments.items():
        ours = measure_config(name, options, overrides, ceiling)
        print_comparison(ours, theirs[name], 3 * forward_flops(experiment.model), ceiling)
        rows += [*ours, *theirs[name]]
    finish(options, rows, title, "train")


if __name__ == "__main__":
    run_script(main)
