"""One whole train step (loss, gradients, AdamW, EMA) of the paper's models: images/s, MFU, memory, hours of the run.

    python benchmarks/train_step.py                                                # every paper config
    python benchmarks/train_step.py configs/imagenet256.py:huge --batch-size 64    # one, at another batch

The step is the one that training compiles, on random examples; MFU counts 3 forward passes of `models/flops.py` an
image, rematerialisation not counted. The hours are those of the config's own steps and batch at the rate measured,
without pictures and checkpoints.
"""

import argparse
import dataclasses
import importlib.util
import json
import pathlib
import time
from typing import Any

import jax
import numpy as np

from uvit_jax.jobs.config import Experiment, resolve
from uvit_jax.jobs.datacard import DataCard
from uvit_jax.jobs.setup import assemble
from uvit_jax.models.flops import forward_flops
from uvit_jax.models.latents import Normalization
from uvit_jax.telemetry.throughput import Throughput
from uvit_jax.training.inputs import latents, pixels
from uvit_jax.training.optimizer import make_optimizer
from uvit_jax.training.state import abstract, create_sharded

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


def load(name: str) -> Experiment:
    """The experiment of `configs/x.py:variant`."""
    path, _, variant = name.partition(":")
    spec = importlib.util.spec_from_file_location("config", path)
    if spec is None or spec.loader is None or not pathlib.Path(path).exists():
        raise SystemExit(f"there is no config {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return resolve(module.get_config(*[variant] if variant else []))


def measure(name: str, batch_size: int, *, steps: int, repeats: int) -> dict[str, Any]:
    """The median rate of `repeats` times `steps` steps, after one of warm-up."""
    experiment = load(name)
    whole = experiment.train.batch_size * experiment.train.steps
    experiment = dataclasses.replace(
        experiment,
        train=dataclasses.replace(experiment.train, batch_size=batch_size),
        sample=dataclasses.replace(experiment.sample, batch_size=batch_size),
    )
    h, w, c = experiment.model.sample_shape
    rng = np.random.default_rng(0)
    if experiment.autoencoder.name:
        normalization = Normalization.constant(experiment.autoencoder.scale or 1.0, c)
        inputs, x = latents("moments", normalization), rng.standard_normal((batch_size, h, w, 2 * c)).astype(np.float16)
    else:
        inputs, x = pixels, rng.integers(0, 256, (batch_size, h, w, c), np.uint8)
    batch = {"x": x}
    if experiment.model.num_classes:
        batch["label"] = rng.integers(0, experiment.num_real_classes, batch_size, np.int32)

    if experiment.model.context_dim:
        shape = (batch_size, experiment.model.context_length, experiment.model.context_dim)
        batch["context"] = rng.standard_normal(shape).astype(np.float16)

    parts = assemble(experiment, DataCard(name))
    optimizer = make_optimizer(experiment.optimizer, experiment.train.steps)
    template = abstract(parts.init_params, optimizer, parts.mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, template)
    batch = jax.device_put(batch, parts.batch_sharding)
    null = None
    if experiment.model.context_dim:
        null = np.zeros((experiment.model.context_length, experiment.model.context_dim), np.float16)
    step = jax.jit(parts.train_step(optimizer, inputs, null), donate_argnums=0, out_shardings=(shardings, None))
    began = time.monotonic()
    compiled = step.lower(template, batch, None).compile()
    compile_seconds = time.monotonic() - began

    state = create_sharded(parts.init_params, optimizer, 0, parts.mesh)
    seconds = []
    for repeat in range(repeats + 1):
        began = time.monotonic()
        for _ in range(steps if repeat else 1):
            state, metrics = compiled(state, batch, None)
        jax.block_until_ready(metrics)
        seconds.append((time.monotonic() - began) / steps)
    rate = batch_size / float(np.median(seconds[1:]))
    throughput = Throughput(forward_flops(experiment.model), jax.devices())
    mfu = throughput.window(steps=1, images=batch_size, seconds=batch_size / rate)["mfu"]
    memory = compiled.memory_analysis()
    gib = (memory.temp_size_in_bytes + memory.argument_size_in_bytes) / 2**30 if memory else float("nan")
    return {
        "config": name,
        "batch": batch_size,
        "images_per_sec": rate,
        "tokens_per_sec": rate * experiment.model.num_tokens,
        "mfu": float("nan") if mfu is None else mfu,
        "tflops": 3 * forward_flops(experiment.model) * rate / 1e12,
        "gib": gib,
        "compile_seconds": compile_seconds,
        "hours": whole / rate / 3600,
    }


def main() -> None:
    """Measures and prints a table; one line of JSON a config where --json asks for it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", default=list(PAPER), help="configs/x.py:variant")
    parser.add_argument(
        "--batch-size", type=int, default=0, help="of all devices together; 0: one that fits 80 GB each"
    )
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    devices = jax.devices()
    print(f"{len(devices)} x {devices[0].device_kind}, jax {jax.__version__}")
    heads = ("batch", "images/s", "Mtokens/s", "TFLOP/s", "MFU", "GiB", "compile", "hours in all")
    print(f"{'config':34}" + "".join(f"{head:>{len(head) + 3}}" for head in heads))
    for name in options.configs:
        batch_size = options.batch_size or PAPER.get(name, 64) * len(devices)
        row = measure(name, batch_size, steps=options.steps, repeats=options.repeats)
        cells = (
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
