"""Samples of a config as the job draws them: images/s of the network alone and with the decoder,
TFLOP/s.

    # U-ViT-H/2 at 256x256, guided; the second also guided in an interval alone.
    python benchmarks/sampling.py
    python benchmarks/sampling.py --batch-size 64 256 --guidance-interval 0.1,0.8
    python benchmarks/sampling.py --batch-size 64 256 --reference U-ViT \\
        --out sampling.json --chart sampling.png

Weights are random: no rate depends on them. TFLOP/s are the network's alone: one forward pass of
`models/flops.py` an evaluation, two where it is guided, which within an interval only some are. "Of
matmul" is the share of what a large bfloat16 matrix product reaches, measured in the same run.
--reference measures the official PyTorch code's latents on the same device, by its own DPM-Solver++
with as many evaluations (`official_code.py`).
"""

import argparse
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from evaluate import autoencoder, rate
from jaxtyping import Array, Float
from official_code import Row, add_arguments, finish, print_comparison, run_reference, show_rate
from train_step import matmul_ceiling

from uvit_jax.diffusion.sampler import Sampler
from uvit_jax.errors import UserError, run_script
from uvit_jax.experiment.assembled import Assembled, assemble
from uvit_jax.experiment.config import Experiment, load_experiment, parse_settings
from uvit_jax.experiment.data_card import DataCard
from uvit_jax.experiment.job_sections import SampleConfig
from uvit_jax.jobs.sampling.conditions import Conditions, open_conditions
from uvit_jax.models.flops import forward_flops
from uvit_jax.models.latents import Normalization

CONFIG = "configs/imagenet256.py:huge"
HEADS = ("batch", "images/s", "TFLOP/s", "of matmul", "minutes for 50,000")


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A sampler with random weights, all of whose batches have the same numbers.

    Attributes:
      assembled: mesh, network and decoder.
      sample: seed and guidance scale.
      params: of the network.
      sampler: compiled at its first call.
      conditions: what sample i is of.
      batch_size: on all devices together.
    """

    assembled: Assembled
    sample: SampleConfig
    params: Any
    sampler: Sampler
    conditions: Conditions
    batch_size: int

    def latents(self) -> Float[Array, "b h w c"]:
        """One batch of what the network draws."""
        indices = np.arange(self.batch_size, dtype=np.int32)
        drawn = self.sampler(
            self.params,
            seed=self.sample.seed,
            indices=indices,
            condition=self.conditions.of(indices),
            guidance_scale=self.sample.guidance_scale,
        )
        assert not isinstance(drawn, tuple)  # such a sampler keeps no trajectory
        return drawn

    def images(self) -> Float[Array, "b i j d"]:
        """One batch, decoded, on the devices."""
        return self.assembled.decode(self.latents())


def make_assembled(name: str, experiment: Experiment) -> Assembled:
    """Assembles a config, with a random decoder where its network draws latents."""
    if not experiment.autoencoder.name:
        return assemble(experiment, DataCard(name), section="sample")
    card = DataCard(
        "random", normalization=Normalization.constant(0.18215, experiment.model.in_channels)
    )
    return assemble(experiment, card, autoencoder(experiment.autoencoder.dtype), section="sample")


def measure(
    name: str, experiment: Experiment, params: Any, repeats: int, ceiling: float
) -> Iterator[Row]:
    """A row of the network alone and, for a network of latents, one with the decoder; `ceiling` of
    one device.
    """
    assembled, size, interval = (
        make_assembled(name, experiment),
        experiment.sample.batch_size,
        experiment.sample.guidance_interval,
    )
    conditions = random_conditions(experiment)
    sampler = assembled.sampler(experiment.diffusion, experiment.sample, conditions.null)
    drawing = Drawing(assembled, experiment.sample, params, sampler, conditions, size)
    latents = assembled.codec is not None
    within = "" if interval is None else f", guided in {interval[0]:g} to {interval[1]:g}"
    runs: dict[str, Callable[[], Any]] = {"latents" if latents else "images": drawing.latents}
    if latents:
        runs["images"] = drawing.images
    for what, run in runs.items():
        found = rate(run, size, repeats=repeats)
        row: Row = {
            "who": "ours",
            "config": name,
            "form": f"ours, {what}{within}",
            "batch": size,
            "devices": assembled.mesh.size,
            "images_per_sec": found,
        }
        if interval is None and run == drawing.latents:
            flops = sample_flops(experiment) * found
            row |= {"tflops": flops / 1e12, "share": flops / (ceiling * assembled.mesh.size)}
        yield row


def random_conditions(experiment: Experiment) -> Conditions:
    """All classes in turn, random states of texts, or nothing."""
    model = experiment.model
    if not model.context_dim:
        return open_conditions(experiment, DataCard("random"), count=0)
    texts = np.random.default_rng(0).standard_normal(
        (9, model.context_length, model.context_dim), np.float32
    )
    return Conditions(texts[1:], texts[0])


def sample_flops(experiment: Experiment) -> int:
    """FLOPs of one sample, guided everywhere."""
    passes = 2 if experiment.sample.guidance_scale else 1
    return forward_flops(experiment.model) * evaluations(experiment) * passes


def evaluations(experiment: Experiment) -> int:
    """Network evaluations to a sample, a guided one counted once.

    Raises UserError where the solver chooses its steps.
    """
    found = experiment.sample.sampler().evaluations
    if found is None:
        raise UserError(
            "config.sample.method is 'adaptive', expected one whose number of evaluations is fixed"
        )
    return found


def random_params(experiment: Experiment) -> Any:
    """Fresh parameters of the network, laid over the devices."""
    assembled = assemble(experiment, DataCard("random"), section="sample")
    shardings = jax.tree.map(lambda leaf: leaf.sharding, assembled.abstract_params)
    return jax.jit(assembled.init_params, out_shardings=shardings)(jax.random.key(0))


def variants(experiment: Experiment, options: argparse.Namespace) -> Iterator[Experiment]:
    """The experiment at each batch size; guided everywhere first, then within the interval."""
    intervals = [(0.0, 1.0)]
    if options.guidance_interval:
        low, high = (float(end) for end in options.guidance_interval.split(","))
        intervals.append((low, high))
    for low, high in intervals:
        for size in options.batch_size:
            size *= jax.device_count()
            sample = dataclasses.replace(
                experiment.sample, batch_size=size, guidance_low=low, guidance_high=high
            )
            yield dataclasses.replace(experiment, sample=sample)


def show(row: Row) -> None:
    """A line of the table."""
    cells = (
        f"{row['batch']}",
        show_rate(row["images_per_sec"]),
        f"{row['tflops']:.3g}" if "tflops" in row else "-",
        f"{row['share']:.1%}" if "share" in row else "-",
        f"{50_000 / row['images_per_sec'] / 60:,.1f}",
    )
    line = "".join(f"{cell:>{len(head) + 3}}" for cell, head in zip(cells, HEADS, strict=True))
    print(f"{row['form']:44}{line}", flush=True)


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", nargs="?", default=CONFIG, help="configs/x.py:variant")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[64], help="of each device")
    parser.add_argument(
        "--guidance-interval", metavar="LOW,HIGH", help="measured besides, in t from 0 to 1"
    )
    parser.add_argument(
        "--set", nargs="*", default=[], help="section.field=value, as --config.section.field=value"
    )
    parser.add_argument("--repeats", type=int, default=3)
    add_arguments(parser, batch_size=64)
    options = parser.parse_args()
    # The decoder in the network's dtype, as an evaluation on a GPU has it; --set may say otherwise.
    overrides = {"autoencoder.dtype": "bfloat16", "autoencoder.batch_size": "64"}
    overrides |= parse_settings(options.set)
    name, experiment = options.config, load_experiment(options.config, overrides)
    count = evaluations(experiment)
    # Before JAX takes the GPU's memory for itself.
    theirs = run_reference(options, name, experiment, "sample", count) if options.reference else []
    device, ceiling = jax.devices()[0].device_kind, matmul_ceiling()
    title = (
        f"{jax.device_count()} x {device}, jax {jax.__version__}, matrix products "
        f"{ceiling / 1e12:.3g} TFLOP/s"
    )
    guidance = (
        f"guidance {experiment.sample.guidance_scale:g}"
        if experiment.sample.guidance_scale
        else "no guidance"
    )
    print(f"{title}\n{name}: {experiment.sample.solver}, {count} evaluations, {guidance}")
    print(f"{'':44}" + "".join(f"{head:>{len(head) + 3}}" for head in HEADS))
    ours: list[Row] = []
    params = random_params(experiment)
    for variant in variants(experiment, options):
        for row in measure(name, variant, params, options.repeats, ceiling):
            ours.append(row)
            show(row)
    alike = [
        row for row in ours if "tflops" in row
    ]  # latents, guided everywhere, as the reference draws them
    print_comparison(alike, theirs, sample_flops(experiment), ceiling)
    finish(options, [*ours, *theirs], title, "sample")


if __name__ == "__main__":
    run_script(main)
