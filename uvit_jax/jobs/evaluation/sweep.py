"""A sweep: one field of an evaluation at several values, and a chart of the scores."""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np

from uvit_jax.errors import UserError
from uvit_jax.experiment.job_sections import SampleConfig
from uvit_jax.experiment.workdir import folder_name
from uvit_jax.files import atomic_write
from uvit_jax.jobs.evaluation.report import REPORT
from uvit_jax.telemetry.sweep_chart import sweep_chart

# Fields that can be swept, and the titles of their axes.
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
    """One value of a sweep; without a field, an evaluation of the config as it is."""

    field: str = ""
    value: float = 0.0

    @property
    def folder(self) -> str:
        """Name of the point's folder."""
        return f"{self.field}_{self.value:g}" if self.field else ""

    def sample(self, sample: SampleConfig) -> SampleConfig:
        """The section at this value; an EMA's length is not in it.

        Raises:
          UserError: for a value that the sampler can't have.
        """
        changes: dict[str, dict[str, Any]] = {
            "guidance": {"guidance_scale": self.value},
            "steps": {"steps": round(self.value)},
        }
        try:
            return dataclasses.replace(sample, **changes.get(self.field, {}))
        except UserError as error:
            raise UserError(
                f"config.evaluate.sweep has {self.field} = {self.value:g}: {error}"
            ) from None


def points_of(sweep: str, sample: SampleConfig, *, p_uncond: float) -> list[Point]:
    """The points of `config.evaluate.sweep`; one without a field if it is empty.

    Its form is "field=start:stop:step", which includes both ends, or "field=a,b,c".

    Raises:
      UserError: for a field that can't be swept, or values that are not numbers or that the sampler
        can't have.
    """
    if not sweep:
        return [Point()]
    field, equals, listed = sweep.partition("=")
    field = field.strip()
    if field not in FIELDS or not equals:
        raise UserError(
            f"config.evaluate.sweep is {sweep!r}, expected one of {', '.join(FIELDS)}, an equals "
            "sign and values, as guidance=0:1:0.1 or steps=10,20,50"
        )
    points = [Point(field, value) for value in _values(sweep, listed)]
    for point in points:
        point.sample(sample)
        _check(point, p_uncond)
    return points


def _check(point: Point, p_uncond: float) -> None:
    field, value = point.field, point.value
    if field == "guidance" and value and not p_uncond:
        raise UserError(
            f"config.evaluate.sweep has guidance = {value:g}, expected 0: with "
            "config.diffusion.p_uncond = 0 the model knows no empty condition to guide away from"
        )
    if field == "ema" and value < 1:
        raise UserError(
            f"config.evaluate.sweep has ema = {value:g}, expected lengths of 1 step or more"
        )
    if field == "steps" and value != round(value):
        raise UserError(f"config.evaluate.sweep has steps = {value:g}, expected whole numbers")


def _values(text: str, listed: str) -> list[float]:
    try:
        if ":" in listed:
            start, stop, step = (float(part) for part in listed.split(":"))
            count = int(np.floor((stop - start) / step + 1e-9)) + 1
            if not 1 <= count <= _MOST:
                raise ValueError
            # Rounded, so that 0.1 + 0.2 is 0.3.
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
    out: str,
    workdir: pathlib.Path,
) -> str:
    """Writes sweep.json and sweep.png; returns the job's last line.

    Args:
      sweep: `config.evaluate.sweep`.
      reports: the points' reports.
      outs: the points' folders.
      out: `config.evaluate.out`, the folder of the chart; empty for one in the workdir named after
        the reports' plans.
    """
    plans = {"plans": [report["plan"] for report in reports]}
    name = folder_name(f"sweep_{points[0].field}", plans)
    folder = pathlib.Path(out) if out else workdir / "evaluations" / name
    field, values = points[0].field, [point.value for point in points]
    names = [name for name in reports[0]["metrics"] if not name.endswith(("_std", "_bias"))]
    distances = [name for name in names if _is_distance(name)]
    series = {name: [report["metrics"][name] for report in reports] for name in names}
    deviations = {
        name: [report["metrics"][f"{name}_std"] for report in reports]
        for name in names
        if f"{name}_std" in reports[0]["metrics"]
    }
    rows = [
        {"value": value, **report["metrics"], "report": str(out / REPORT)}
        for value, report, out in zip(values, reports, outs, strict=True)
    ]
    count = reports[0]["samples"]["count"]
    with atomic_write(folder / _SWEEP) as file:
        found = {"sweep": sweep, "field": field, "samples a point": count, "points": rows}
        file.write(json.dumps(found, indent=2).encode() + b"\n")
    sweep_chart(
        FIELDS[field],
        values,
        series,
        folder / _CHART,
        title=f"{count:,} samples a point",
        distances=distances,
        deviations=deviations,
    )
    first = series[names[0]]
    word, best = "greatest", int(np.argmax(first))
    if names[0] in distances:
        word, best = "least", int(np.argmin(first))
    return (
        f"swept {sweep}: the {word} {names[0]} is {first[best]:.4g} at {field} {values[best]:g}: "
        f"see {folder}/{_CHART}, {_SWEEP}"
    )


def _is_distance(name: str) -> bool:
    """True for a metric, whatever its prefix, that is better when it is lower."""
    return name.rpartition("_")[2] in _DISTANCES
