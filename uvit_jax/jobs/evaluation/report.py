"""The report of an evaluation: evaluation.json with everything a number depends on, and a table for
the eye.
"""

import hashlib
import json
import pathlib
import platform
from typing import Any

import jax

from uvit_jax.experiment.workdir import version
from uvit_jax.files import atomic_write
from uvit_jax.jobs.evaluation.image_streams import ImageStream
from uvit_jax.metrics.reference import Reference
from uvit_jax.parallel import hosts

REPORT, TABLE = "evaluation.json", "evaluation.txt"
_NAME_WIDTH = 28
_PACKAGES = ("uvit-jax", "jax", "jaxlib", "flax", "numpy", "scipy", "pillow")


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
