"""The report of an evaluation: evaluation.json with all that a number depends on, and a table."""

import json
import logging
import pathlib
import platform
from typing import Any

import jax

from uvit_jax.errors import counted
from uvit_jax.experiment.workdir import version
from uvit_jax.files import atomic_write
from uvit_jax.metrics.feature_network import FeatureNetwork
from uvit_jax.metrics.reference_file import Reference
from uvit_jax.metrics.scores import Scores, metric_name

LOG = logging.getLogger("uvit_jax")

REPORT, TABLE = "evaluation.json", "evaluation.txt"
_NAME_WIDTH = 28
# Metrics in the line that the job ends with.
_HEADLINES = 4
# How most published statistics were made.
_PYTORCH_FID = {"resize": "pytorch-fid", "dtype": "float32"}
_PACKAGES = ("uvit-jax", "jax", "jaxlib", "flax", "numpy", "scipy", "pillow")


def make_report(
    scores: Scores,
    reference: Reference,
    network: FeatureNetwork,
    *,
    refused: dict[str, str],
    samples: dict[str, Any],
    plan: dict[str, Any],
) -> dict[str, Any]:
    """Computes the metrics and records everything that they depend on.

    Args:
      refused: why metrics are left out.
      samples: the record of the samples.
      plan: by which the same evaluation is known again.

    Raises:
      UserError: for fewer samples than a metric needs.
    """
    metrics = scores.results(reference)
    return {
        "metrics": metrics,
        "definitions": scores.definitions(reference),
        "not computed": refused,
        "warnings": _warnings(scores, metrics, reference, network),
        "samples": samples,
        "reference": _reference_facts(reference),
        "features": network.identity,
        "versions": _versions(),
        "plan": plan,
    }


def _warnings(
    scores: Scores, metrics: dict[str, float], reference: Reference, network: FeatureNetwork
) -> list[str]:
    """Logs and returns what makes the distances too high, or hard to compare."""
    width, found = network.widths["pool"], []
    if scores.count <= width and "fid" in scores.metrics:
        name = metric_name("fid", network)
        bias = metrics.get(f"{name}_bias")
        amount = "by an unknown amount"
        if bias is not None:
            amount = f"about {bias:.3g} of {metrics[name]:.4g}"
        found.append(
            f"{scores.count:,} samples are fewer than the {width:,} features: {name} is too "
            f"high ({amount} by comparison of halves, more in truth), expected {10 * width:,} "
            "samples or more"
        )
    count = reference.record.get("count")
    if count and count <= width:
        found.append(
            f"the reference's {count:,} images are fewer than the {width:,} features: "
            "distances are too high"
        )
    if not reference.record and "fid" in scores.metrics:
        settings = network.settings
        if any(settings.get(name, usual) != usual for name, usual in _PYTORCH_FID.items()):
            found.append(
                f"{reference.path.name} does not say how its images were resized and in "
                f"what precision, here resize is {settings['resize']} and dtype "
                f"{settings['dtype']}: where these differ, distances mean little"
            )
    for warning in found:
        LOG.warning("warning: %s", warning)
    return found


def _reference_facts(reference: Reference) -> dict[str, Any]:
    unknown = "unknown: the file does not say"
    return {
        "file": reference.path.name,
        "sha256": reference.sha256,
        **(reference.record or dict.fromkeys(("count", "shape", "extractor"), unknown)),
        "features kept": 0 if reference.features is None else len(reference.features),
    }


def _versions() -> dict[str, str]:
    """Versions of the packages that computed the numbers, and the devices."""
    found = {name: version(name) for name in _PACKAGES}
    device = jax.devices()[0]
    return {
        **found,
        "python": platform.python_version(),
        "devices": f"{jax.device_count()} x {device.device_kind}",
    }


def write_report(report: dict[str, Any], folder: pathlib.Path) -> None:
    """Writes the table, then the JSON, each atomically."""
    with atomic_write(folder / TABLE) as file:
        file.write(table(report).encode())
    with atomic_write(folder / REPORT) as file:
        file.write(json.dumps(report, indent=2).encode() + b"\n")


def table(report: dict[str, Any]) -> str:
    """The report as text: the numbers first, then what they depend on."""
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
    """A line for each fact, and for each part of a fact that has parts."""
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


def summary(report: dict[str, Any], out: pathlib.Path) -> str:
    """The line that the job ends with: the first few metrics, and where the report is."""
    if not report:
        return ""
    names = [name for name in report["metrics"] if not name.endswith(("_std", "_bias"))]
    # The CLIP score is always shown: it is there only if it was asked for.
    shown = [*names[:_HEADLINES], *(name for name in names[_HEADLINES:] if name == "clip_score")]
    numbers = ", ".join(f"{name} {report['metrics'][name]:.4g}" for name in shown)
    images = counted(report["samples"]["count"], "image")
    return f"evaluated {images}: {numbers}: see {out}/{REPORT}, evaluation.txt, grid.png"
