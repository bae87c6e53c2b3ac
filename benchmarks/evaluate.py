"""Cost of an evaluation of 50,000 samples by part: network, decoder, features, metrics.

    python benchmarks/evaluate.py                       # all parts, U-ViT-H/2 at 256x256
    python benchmarks/evaluate.py extraction --out extraction.json

The parts are extraction, decoder, whole and metrics.

Weights are random: no rate depends on them. `whole` draws, decodes and scores samples by the job's
own code, and again without scoring: the difference is the evaluation's overhead.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx

from uvit_jax.errors import run_script
from uvit_jax.experiment.assembled import Assembled, assemble
from uvit_jax.experiment.config import load_experiment, parse_settings
from uvit_jax.experiment.data_card import DataCard
from uvit_jax.interop.autoencoder import Autoencoder
from uvit_jax.jobs.evaluation.image_streams import ImageStream
from uvit_jax.jobs.evaluation.resumable_evaluation import Evaluation
from uvit_jax.jobs.sampling.conditions import open_conditions
from uvit_jax.jobs.sampling.generation import Generation, make_generation
from uvit_jax.metrics.feature_network import Extraction, FeatureNetwork
from uvit_jax.metrics.frechet import FrechetReference, frechet_bias
from uvit_jax.metrics.kid import kid
from uvit_jax.metrics.moments import SplitMoments
from uvit_jax.metrics.precision_recall import density_coverage, precision_recall
from uvit_jax.metrics.reference_file import Reference
from uvit_jax.models.frozen.autoencoder import AutoencoderConfig, AutoencoderKL
from uvit_jax.models.frozen.inception import WIDTHS, Inception, preprocess
from uvit_jax.models.latents import Normalization
from uvit_jax.parallel.mesh import MeshConfig, make_mesh

CONFIG = "configs/imagenet256.py:huge"
KINDS = {"pool": "pool2048", "spatial": "spatial2023", "logits": "logits1008"}
SAMPLES = 50_000
# dtype, side of the images, images of a device at a time
EXTRACTIONS = (
    ("bfloat16", 299, 64),
    ("bfloat16", 299, 128),
    ("bfloat16", 299, 256),
    ("bfloat16", 256, 128),
    ("float32", 299, 128),
    ("float32", 256, 128),
)


def network(dtype: str) -> FeatureNetwork:
    """An Inception-v3 with random weights."""
    graphdef, state = nnx.split(Inception(dtype, rngs=nnx.Rngs(0)))

    def apply(params: Any, images: jax.Array, kinds: Any) -> dict[str, jax.Array]:
        found = nnx.merge(graphdef, params)(preprocess(images, "pytorch-fid"))
        return {kind: found[KINDS[kind]] for kind in kinds}

    widths = {kind: WIDTHS[name] for kind, name in KINDS.items()}
    params = nnx.to_pure_dict(state)
    settings = {"dtype": dtype}
    return FeatureNetwork(
        name="random",
        sha256="",
        prefix="random_",
        widths=widths,
        settings=settings,
        params=params,
        apply=apply,
    )


def autoencoder(dtype: str) -> Autoencoder:
    """Stable Diffusion's KL-f8 with random weights."""
    graphdef, state = nnx.split(AutoencoderKL(AutoencoderConfig(dtype=dtype), rngs=nnx.Rngs(0)))
    return Autoencoder(
        name="random",
        sha256="",
        has_variance=True,
        scale=0.18215,
        latent_channels=4,
        factor=8,
        params=nnx.to_pure_dict(state),
        graphdef=graphdef,
    )


def rate(run: Callable[[], Any], images: int, *, repeats: int = 5) -> float:
    """Images a second: the median of `repeats`, after one to warm up."""
    jax.block_until_ready(run())
    seconds = []
    for _ in range(repeats):
        began = time.monotonic()
        jax.block_until_ready(run())
        seconds.append(time.monotonic() - began)
    return images / float(np.median(seconds))


def measure_extraction(rows: list[dict[str, Any]]) -> None:
    """Inception features of uint8 images, from and to the host's memory."""
    mesh = make_mesh(MeshConfig())
    for dtype, side, chunk in EXTRACTIONS:
        extraction = Extraction(network(dtype), mesh, ("pool", "spatial", "logits"), chunk=chunk)
        count = 8 * extraction.rows
        images = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
        found = rate(functools.partial(extraction, images), count)
        rows.append(
            {
                "part": "extraction",
                "dtype": dtype,
                "side": side,
                "chunk": chunk,
                "images_per_sec": found,
            }
        )
        show(rows[-1])


def measure_decoder(rows: list[dict[str, Any]]) -> None:
    """KL-f8's decoder on latents of 32x32, which stay on the device."""
    for dtype in ("bfloat16", "float32"):
        model = autoencoder(dtype)
        params = jax.device_put(model.params)
        decode = jax.jit(model.decode)
        for batch in (16, 64):
            z = jax.random.normal(jax.random.key(0), (batch, 32, 32, 4))
            found = rate(functools.partial(_several, decode, params, z), 4 * batch)
            rows.append(
                {"part": "decoder", "dtype": dtype, "batch": batch, "images_per_sec": found}
            )
            show(rows[-1])


def _several(decode: Callable[..., Any], params: Any, z: jax.Array) -> list[Any]:
    return [decode(params, z) for _ in range(4)]


def measure_whole(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """The network alone, with the decoder, and a whole evaluation."""
    experiment = load_experiment(options.config, parse_settings(options.set))
    experiment = dataclasses.replace(
        experiment,
        autoencoder=dataclasses.replace(
            experiment.autoencoder, dtype="bfloat16", batch_size=options.batch_size
        ),
        sample=dataclasses.replace(
            experiment.sample, batch_size=options.batch_size * jax.device_count()
        ),
    )
    card = DataCard("random", normalization=Normalization.constant(0.18215, 4))
    assembled = assemble(experiment, card, autoencoder("bfloat16"), section="sample")
    params = jax.jit(
        assembled.init_params,
        out_shardings=jax.tree.map(lambda leaf: leaf.sharding, assembled.abstract_params),
    )(jax.random.key(0))
    count = options.batches * experiment.sample.batch_size
    latents_alone = dataclasses.replace(assembled, codec=None, card=DataCard("random"))
    stages = {"network": latents_alone, "network and decoder": assembled}
    conditions = open_conditions(experiment, card, count=count)
    seconds: dict[str, float] = {}
    for name, stage in stages.items():
        generation = make_generation(stage, experiment.diffusion, experiment.sample, conditions)
        for _ in generation.batches(params, 0, experiment.sample.batch_size):
            pass
        began = time.monotonic()
        for _ in generation.batches(params, 0, count):
            pass
        seconds[name] = time.monotonic() - began
        rows.append({"part": name, "images": count, "images_per_sec": count / seconds[name]})
        show(rows[-1])
    seconds["whole"] = whole(assembled, generation, params, count)
    overhead = 1 - seconds["network and decoder"] / seconds["whole"]
    rows.append(
        {
            "part": "whole",
            "images": count,
            "images_per_sec": count / seconds["whole"],
            "overhead": overhead,
        }
    )
    show(rows[-1])


def whole(assembled: Assembled, generation: Generation, params: Any, count: int) -> float:
    """Seconds to draw and score with FID, sFID and IS, after compiling, without final metrics."""
    extraction = Extraction(network("bfloat16"), assembled.mesh, ("pool", "spatial", "logits"))
    extraction(np.zeros((1, *assembled.image_shape), np.uint8))
    widths = {kind: extraction.network.widths[kind] for kind in ("pool", "spatial")}
    zero = {kind: (np.zeros(width), np.eye(width)) for kind, width in widths.items()}
    mean, covariance = zero["pool"]
    reference = Reference(
        path=pathlib.Path("random.npz"),
        sha256="",
        mean=mean,
        covariance=covariance,
        spatial=zero["spatial"],
    )
    evaluation = Evaluation(("fid", "sfid", "is"), {}, extraction, reference)
    stream = ImageStream(
        "random",
        count,
        assembled.image_shape,
        lambda first: generation.batches(params, first, count),
    )
    with tempfile.TemporaryDirectory() as folder:
        report = evaluation.run(stream, {"count": count}, pathlib.Path(folder, "out"), "random")
    return report["seconds"]["samples and features"]


def measure_metrics(rows: list[dict[str, Any]]) -> None:
    """Times the metrics of 50,000 samples' features, against 10,000 of a reference."""
    rng = np.random.default_rng(0)
    fake = rng.standard_normal((SAMPLES, 2048), np.float32)
    real = rng.standard_normal((10_000, 2048), np.float32) + np.float32(0.1)
    moments = SplitMoments(2048)

    def accumulate() -> None:
        for first in range(0, SAMPLES, 128):
            moments.update(fake[first : first + 128], first)

    def distance() -> None:
        reference = FrechetReference(np.zeros(2048), np.eye(2048))
        frechet_bias(reference, moments)

    timed: dict[str, Callable[[], Any]] = {
        "moments of 50,000": accumulate,
        "FID and its bias": distance,
        "KID": lambda: kid(real, fake),
        "precision and recall": lambda: precision_recall(real, fake),
        "density and coverage": lambda: density_coverage(real, fake),
    }
    for name, run in timed.items():
        began = time.monotonic()
        run()
        rows.append({"part": name, "seconds": time.monotonic() - began})
        show(rows[-1])


def summary(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The time of FID-50k, part by part, from the measured rates."""
    best = {
        part: max(
            row["images_per_sec"]
            for row in rows
            if row["part"] == part and row.get("side", 256) == 256
        )
        for part in ("network", "decoder", "extraction")
        if any(row["part"] == part for row in rows)
    }
    for part, found in best.items():
        yield f"{part:12} {found:10,.1f} images/s {SAMPLES / found / 60:8.1f} min for {SAMPLES:,}"


def show(row: dict[str, Any]) -> None:
    """A line for one measurement."""
    cells = (
        f"{name} {value:,.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in row.items()
    )
    print("  ".join(cells), flush=True)


def main() -> None:
    """Measures the parts asked for and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", default=["extraction", "decoder", "whole", "metrics"])
    parser.add_argument("--config", default=CONFIG, help="of `whole`: a model of 4-channel latents")
    parser.add_argument(
        "--set", nargs="*", default=[], help="section.field=value, as --config.section.field=value"
    )
    parser.add_argument(
        "--batch-size", type=int, default=64, help="samples of each device at a time, of `whole`"
    )
    parser.add_argument("--batches", type=int, default=6, help="of `whole`")
    parser.add_argument("--out", help="a JSON file of all measurements")
    options = parser.parse_args()
    print(f"{jax.device_count()} x {jax.devices()[0].device_kind}, jax {jax.__version__}")
    rows: list[dict[str, Any]] = []
    measures: dict[str, Callable[[], None]] = {
        "extraction": lambda: measure_extraction(rows),
        "decoder": lambda: measure_decoder(rows),
        "whole": lambda: measure_whole(rows, options),
        "metrics": lambda: measure_metrics(rows),
    }
    for part in options.parts:
        measures[part]()
    print()
    for line in summary(rows):
        print(line)
    if options.out:
        pathlib.Path(options.out).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    run_script(main)
