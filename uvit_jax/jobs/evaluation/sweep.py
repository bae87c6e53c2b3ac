"""A sweep: one field of an evaluation at several values, and a chart of the scores against them."""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np

from uvit_jax.errors import UserError
from uvit_jax.experiment.assembled import Assembled
from uvit_jax.experiment.config import Experiment
from uvit_jax.experiment.job_sections import SampleConfig
from uvit_jax.experiment.sections import DiffusionConfig
from uvit_jax.files import atomic_write
from uvit_jax.jobs.evaluation.report import REPORT
from uvit_jax.jobs.sampling.generation import Generation
from uvit_jax.telemetry.sweep_chart import sweep_chart

# What may be swept, and what it is called on an axis.
FIELDS = {
    "guidance": "guidance scale s (the usual w - 1)",
    "steps": "network evaluations",
    "ema": "EMA length (training steps)",
}
_MOST = 1000
_DISTANCES = ("fid", "sfid", "kid", "fd", "sfd", "kd")
_SWEEP, _CHART = "sweep.json", "sweep.png"


@dataclasses.dataclass(frozen=True)
class Point:
    """One value of a sweep; without a field, an evaluation as the config says."""

    field: str = ""
    value: float = 0.0

    @property
    def folder(self) -> str:
        """A name for its folder."""
        return f"{self.field}_{self.value:g}" if self.field else ""

    def generation(
        self,
        generation: Generation,
        assembled: Assembled,
        diffusion: DiffusionConfig,
        sample: SampleConfig,
    ) -> Generation:
        """The generation at this value, which `sample` has; only other steps compile a program."""
        if self.field == "guidance":
            return dataclasses.replace(generation, guidance_scale=sample.guidance_scale)
        if self.field == "steps":
            sampler = assembled.sampler(diffusion, sample, generation.conditions.null)
            return dataclasses.replace(generation, sampler=sampler)
        return generation

    def experiment(self, experiment: Experiment) -> Experiment:
        """The config at this value.

        Raises:
          UserError: for a value that the sampler can't have.
        """
        changes: dict[str, Any] = {
            "guidance": {"guidance_scale": self.value},
            "steps": {"steps": round(self.value)},
        }
        try:
            sample = dataclasses.replace(experiment.sample, **changes.get(self.field, {}))
        except UserError as error:
            raise UserError(
                f"config.evaluate.sweep has {self.field} = {self.value:g}: {error}"
            ) from None
        return dataclasses.replace(experiment, sample=sample)


def points_of(experiment: Experiment) -> list[Point]:
    """The points of `config.evaluate.sweep`: "field=start:stop:step", both ends in it, or
    "field=a,b,c".

    Raises:
      UserError: for a field that can't be swept, or values that are no numbers or that the sampler
        can't have.
    """
    text = experiment.evaluate.sweep
    if not text:
        return [Point()]
    field, equals, listed = text.partition("=")
    field = field.strip()
    if field not in FIELDS or not equals:
        raise UserError(
            f"config.evaluate.sweep is {text!r}, expected one of {', '.join(FIELDS)}, an equals "
            "sign and values, as guidance=0:1:0.1 or steps=10,20,50"
        )
    points = [Point(field, value) for value in _values(text, listed)]
    for point in points:
        point.experiment(experiment)
        if field == "guidance" and point.value and not experiment.diffusion.p_uncond:
            raise UserError(
                f"config.evaluate.sweep has guidance = {point.value:g}, expected 0: with "
                "config.diffusion.p_uncond = 0 the model knows no empty condition to guide away "
                "from"
            )
        if field == "ema" and point.value < 1:
            raise UserError(
                f"config.evaluate.sweep has ema = {point.value:g}, expected lengths of 1 step or "
                f"more"
            )
        if field == "steps" and point.value != round(point.value):
            raise UserError(
                f"config.evaluate.sweep has steps = {point.value:g}, expected whole numbers"
            )
    return points


def _values(text: str, listed: str) -> list[float]:
    try:
        if ":" in listed:
            start, stop, step = (float(part) for part in listed.split(":"))
            count = int(np.floor((stop - start) / step + 1e-9)) + 1
            if not 1 <= count <= _MOST:
                raise ValueError
            # Rounded, so that 0.1 + 0.2 reads as it was meant.
            return [round(start + i * step, 10) for i in range(count)]
        values = [float(part) for part in listed.split(",")]
    except (ValueError, ZeroDivisionError, OverflowError):
        raise UserError(
            f"config.evaluate.sweep is {text!r}, expected values as 0:1:0.1 (start, stop and step, "
            f"{_MOST} at most) or 10,20,50"
        ) from None
    if not np.isfinite(values).all():
        raise UserError(f"config.evaluate.sweep is {text!r}, expected finite numbers")
    return values


def report_sweep(
    sweep: str,
    points: list[Point],
    reports: list[dict[str, Any]],
    outs: list[pathlib.Path],
    folder: pathlib.Path,
) -> str:
    """Writes sweep.json and sweep.png; returns the job's last line."""
    field, values = points[0].field, [point.value for point in points]
    names = [name for name in reports[0]["metrics"] if not name.endswith(("_std", "_bias"))]
    series = {name: [report["metrics"][name] for report in reports] for name in names}
    deviations = {
        name: [report["metrics"][f"{name}_std"] for report in reports]
        for name in names
        if f"{name}_std" in reports[0]["metrics"]
    }
    count, distances = (
        reports[0]["samples"]["count"],
        [name for name in names if _is_distance(name)],
    )
    rows = [
        {"value": value, **report["metrics"], "report": str(out / REPORT)}
        for value, report, out in zip(values, reports, outs, strict=True)
    ]
    with atomic_write(folder / _SWEEP) as file:
        found = {"sweep": sweep, "field": field, "samples a point": count, "points": rows}
        file.write(json.dumps(found, indent=2).encode() + b"\n")
    title = f"{count:,} samples a point"
    sweep_chart(
        FIELDS[field],
        values,
        series,
        folder / _CHART,
        title=title,
        distances=distances,
        deviations=deviations,
    )
    first = series[names[0]]
    word, best = (
        ("least", int(np.argmin(first)))
        if names[0] in distances
        else ("greatest", int(np.argmax(first)))
    )
    return (
        f"swept {sweep}: the {word} {names[0]} is {first[best]:.4g} at {field} {values[best]:g}: "
        f"see {folder}/{_CHART}, {_SWEEP}"
    )


def _is_distance(name: str) -> bool:
    """Whether a metric is better the less it is, whatever its prefix."""
    return name.rpartition("_")[2] in _DISTANCES
