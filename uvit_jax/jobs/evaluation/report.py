"""The report of an evaluation: evaluation.json with everything a number depends on, and a table for
the eye.
"""

import dataclasses
import hashlib
import json
import pathlib
import platform
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from uvit_jax.experiment.weights import Weights
from uvit_jax.experiment.workdir import HOW_FIELDS, version
from uvit_jax.files import atomic_write
from uvit_jax.interop.state_dict import sha256_of
from uvit_jax.jobs.evaluation.image_streams import ImageStream
from uvit_jax.jobs.sampling.generation import Generation
from uvit_jax.metrics.reference_file import Reference
from uvit_jax.parallel import hosts

REPORT, TABLE = "evaluation.json", "evaluation.txt"
_NAME_WIDTH = 28
_ROUNDING = "8 bits a channel, to nearest, a half upwards, as in a PNG"
_PACKAGES = ("uvit-jax", "jax", "jaxlib", "flax", "numpy", "scipy", "pillow")
# What of the sampler's batches and place has no part in what is sampled.
_HOW = (
    "num_samples",
    "batch_size",
    "format",
    "out",
    "weights",
    "step",
    "prompts",
    "negative_prompt",
    "labels",
)


def drawn_samples(
    generation: Generation, weights: Weights, count: int, captions: str
) -> dict[str, Any]:
    """What samples drawn from a model are, for a report; all hosts call this together."""
    parts = generation.parts
    experiment, sample = parts.experiment, parts.experiment.sample
    decoder: dict[str, Any] = {}
    if parts.codec is not None:
        normalization = parts.card.normalization
        decoder = {
            "latents normalized by": dataclasses.asdict(normalization) if normalization else {},
            "decoder": experiment.autoencoder.name,
            "decoder sha256": sha256_of(dict(flatten_dict(parts.codec.autoencoder.params))),
            "decoder dtype": experiment.autoencoder.dtype,
        }
    return {
        "count": count,
        "weights": {**weights.record, "sha256": weights.sha256},
        **_asked(generation, count, captions),
        "sampler": {
            name: value for name, value in dataclasses.asdict(sample).items() if name not in _HOW
        },
        "network evaluations": sample.evaluations
        if sample.evaluations is not None
        else "chosen by the solver",
        "schedule": experiment.diffusion.schedule,
        "prediction": experiment.diffusion.prediction,
        "model": {
            name: value
            for name, value in dataclasses.asdict(experiment.model).items()
            if name not in HOW_FIELDS
        },
        "network dtype": experiment.model.dtype,
        **decoder,
        "rounding": _ROUNDING,
    }


def _asked(generation: Generation, count: int, captions: str) -> dict[str, Any]:
    """What samples are of. Files of prompts and data sets may change, hence a hash of what was
    found in them.
    """
    experiment, conditions = generation.parts.experiment, generation.conditions
    sample = experiment.sample
    if experiment.model.context_dim:
        texts = {"captions": captions} if captions else {"prompts": sample.prompts}
        return {
            **texts,
            "texts sha256": hashlib.sha256("\n".join(conditions.names).encode()).hexdigest(),
            "negative prompt": sample.negative_prompt,
            **conditions.record,
        }
    if not experiment.model.num_classes:
        return {}
    if sample.labels.strip() != "data":
        return {"labels": sample.labels}
    labels = np.asarray(conditions.of(np.arange(count)), np.int32)
    return {
        "labels": f"as in {experiment.data.source}",
        "labels sha256": hashlib.sha256(labels.tobytes()).hexdigest(),
    }


def found_samples(stream: ImageStream) -> dict[str, Any]:
    """What samples that were there already are, for a report; all hosts call this together."""
    digest = hosts.first_says(
        hosts.on_all(lambda: _fingerprint(stream) if hosts.is_first() else "")
    )
    return {
        "count": stream.count,
        "from": stream.name,
        "sha256" if stream.is_npz else "sha256 of names, sizes and times": digest,
        "rounding": "as they were found",
    }


def _fingerprint(stream: ImageStream) -> str:
    """What changes when the samples do."""
    if stream.is_npz:
        with stream.files[0].open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    # Reading the files of a folder once more to hash them would take as long as scoring them.
    files = [(str(file), file.stat()) for file in stream.files]
    known = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in files]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()


def reference_facts(reference: Reference) -> dict[str, Any]:
    """What samples were compared with, for a report."""
    unknown = "unknown: the file does not say"
    return {
        "file": reference.path.name,
        "sha256": reference.sha256,
        **(reference.record or dict.fromkeys(("count", "shape", "extractor"), unknown)),
        "features kept": 0 if reference.features is None else len(reference.features),
    }


def versions() -> dict[str, str]:
    """What computed the numbers."""
    found = {name: version(name) for name in _PACKAGES}
    device = jax.devices()[0]
    return {
        **found,
        "python": platform.python_version(),
        "devices": f"{jax.device_count()} x {device.device_kind}",
    }


def write_report(report: dict[str, Any], folder: pathlib.Path) -> None:
    """Writes the table, then the JSON, each whole or not at all."""
    with atomic_write(folder / TABLE) as file:
        file.write(table(report).encode())
    with atomic_write(folder / REPORT) as file:
        file.write(json.dumps(report, indent=2).encode() + b"\n")


def table(report: dict[str, Any]) -> str:
    """The report as text: its numbers first, then what they depend on."""
    metrics = report["metrics"]
    lines = [
        f"{name:{_NAME_WIDTH}} {_number(value):>10}{_remark(name, metrics)}"
        for name, value in metrics.items()
        if not name.endswith(("_std", "_bias"))
    ]
    lines += [
        f"{name:{_NAME_WIDTH}} {'-':>10}  {why}" for name, why in report["not computed"].items()
    ]
    lines += [f"\nwarning: {warning}" for warning in report["warnings"]]
    for title in ("definitions", "samples", "reference", "features", "versions"):
        lines += ["", title, *_facts(report[title])]
    return "\n".join(lines) + "\n"


def _facts(facts: dict[str, Any]) -> list[str]:
    """A line for each fact, those that have parts spread over lines of their own."""
    lines = []
    for name, value in facts.items():
        if isinstance(value, dict):
            lines += [
                f"  {name}",
                *(f"    {part:{_NAME_WIDTH - 4}} {found}" for part, found in value.items()),
            ]
        elif value != "":
            lines.append(f"  {name:{_NAME_WIDTH - 2}} {value}")
    return lines


def _remark(name: str, metrics: dict[str, float]) -> str:
    if (std := metrics.get(f"{name}_std")) is not None:
        return f"  +- {_number(std)} over its parts"
    if (bias := metrics.get(f"{name}_bias")) is not None:
        return f"  of which about {_number(bias)} is because samples are finitely many"
    return ""


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
