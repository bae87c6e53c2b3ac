"""One evaluation in one folder: samples drawn or found, scored, reported; killed at any moment it
goes on.
"""

import dataclasses
import json
import logging
import pathlib
import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from uvit_jax.data.image_output import npz_writer, save_png
from uvit_jax.errors import UserError
from uvit_jax.experiment.folder_lock import locked
from uvit_jax.experiment.workdir import open_workdir
from uvit_jax.files import atomic_write
from uvit_jax.jobs.evaluation.image_streams import ImageStream
from uvit_jax.jobs.evaluation.report import REPORT, TABLE, reference_facts, versions, write_report
from uvit_jax.jobs.evaluation.scoring import ClipPair, Scoring
from uvit_jax.jobs.sampling import pictures
from uvit_jax.jobs.sampling.conditions import Conditions
from uvit_jax.jobs.sampling.sample_folder import FILE_NAME as SAMPLES
from uvit_jax.jobs.sampling.sample_folder import NPZ, Request, claim, first_difference, png_name
from uvit_jax.metrics.feature_network import Extraction
from uvit_jax.metrics.reference_file import Reference
from uvit_jax.metrics.scores import Scores, metric_name
from uvit_jax.metrics.stored_rows import StoredRows
from uvit_jax.parallel import hosts

LOG = logging.getLogger("uvit_jax")

GRID_SAMPLES = 100
# How most published statistics were made.
PYTORCH_FID = {"resize": "pytorch-fid", "dtype": "float32"}
_STATE, _PLAN, _IMAGES = ".evaluation", "plan.json", "images.rows"
_GRID, _PNGS = "grid.png", "samples"
_ADM = ("arr_0", "arr_1")
_WRITTEN_AT_ONCE = 1024


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """What is done to any samples.

    Attributes:
      metrics: which are computed.
      refused: why others are not.
      extraction: of features.
      reference: what samples are compared with.
      clip: for the CLIP score.
      save: "png", "npz" or neither.
      out_name: the field that names the folders of reports, for the sentence of an error.
    """

    metrics: tuple[str, ...]
    refused: dict[str, str]
    extraction: Extraction
    reference: Reference
    clip: ClipPair | None
    save: str
    out_name: str = "workdir"

    def plan(self, samples: dict[str, Any]) -> dict[str, Any]:
        """Everything that the numbers depend on, as JSON has it."""
        reference, network = self.reference, self.extraction.network
        plan = {
            "samples": samples,
            "metrics": self.metrics,
            "reference": {"file": reference.path.name, "sha256": reference.sha256},
            "features": network.identity,
            "clip": self.clip.identity if self.clip else {},
            "save": self.save,
        }
        return json.loads(json.dumps(plan))

    def scores(self, num_samples: int, folder: pathlib.Path | None) -> Scores:
        """Fresh accumulators, or those of a folder with a state."""
        return Scores(self.metrics, self.extraction.network, num_samples, folder)

    def run(
        self,
        stream: ImageStream,
        samples: dict[str, Any],
        out: pathlib.Path,
        title: str,
        conditions: Conditions | None = None,
    ) -> dict[str, Any]:
        """The report, made or found in `out`; all hosts call this together.

        Args:
          samples: what the stream's images are, for the report.
          title: of the grid.
          conditions: what sample i is of; None where that isn't known.

        Raises:
          UserError: for a folder that holds another evaluation, NaN images, too few samples, a full
            disk.
        """
        plan = self.plan(samples)
        hosts.agree({"what is evaluated": plan})
        open_workdir(out, self.out_name)
        with locked(out, "evaluate"):
            return self._run(stream, samples, out, title, conditions, plan)

    def _run(
        self,
        stream: ImageStream,
        samples: dict[str, Any],
        out: pathlib.Path,
        title: str,
        conditions: Conditions | None,
        plan: dict[str, Any],
    ) -> dict[str, Any]:
        state, first_host = out / _STATE, hosts.is_first()
        done = hosts.on_all(_report_of, out, plan)
        if done is not None:
            if first_host:
                shutil.rmtree(
                    state, ignore_errors=True
                )  # of a run that was killed right after the report
            return done
        hosts.on_all(lambda: self._claim(out, plan) if first_host else None)
        LOG.info("evaluating %s images: %s", f"{stream.count:,}", title)
        scores = hosts.on_all(lambda: self.scores(stream.count, state) if first_host else None)
        start = hosts.first_says(scores.count if scores else 0)
        if start:
            LOG.info("going on: %s of %s are scored already", f"{start:,}", f"{stream.count:,}")
        kept = hosts.on_all(
            lambda: (
                _Kept(state / _IMAGES, stream, start, everything=bool(self.save))
                if first_host
                else None
            )
        )

        def save() -> None:
            assert scores is not None
            assert kept is not None
            kept.rows.sync()
            scores.save()

        began = time.monotonic()
        self._scoring(conditions).run(
            stream,
            scores,
            start,
            description="evaluate",
            on_images=kept.take if kept else lambda images: None,
            save=save,
        )
        scored = time.monotonic()
        report = hosts.on_all(lambda: self._finish(scores, plan, samples) if scores else {})
        if scores is not None and kept is not None:
            report["seconds"] = {
                "samples and features": round(scored - began, 1),
                "metrics": round(time.monotonic() - scored, 1),
                "samples of this run": stream.count - start,
            }
            hosts.on_all(_write, out, report, kept, conditions, title, self.save)
            scores.close()
            shutil.rmtree(
                state, ignore_errors=True
            )  # a network's file system may keep names of open files
        else:
            hosts.on_all(lambda: None)
        return report

    def _claim(self, out: pathlib.Path, plan: dict[str, Any]) -> None:
        """Notes in a folder what is evaluated there, or compares it with what a killed run was
        asked for.
        """
        state = out / _STATE
        if (state / _PLAN).exists():
            _check_plan(state, plan)
        else:
            _check_free(out, self.save, self.out_name)
        if self.save == "png":
            asked = {name: value for name, value in plan["samples"].items() if name != "count"}
            (out / _PNGS).mkdir(exist_ok=True)
            claim(out / _PNGS, Request("png", plan["samples"]["count"], asked), self.out_name)
        _check_plan(state, plan)

    def _scoring(self, conditions: Conditions | None) -> Scoring:
        texts: Callable[[range], Sequence[str]] | None = None
        if conditions is not None and conditions.names:
            texts = lambda numbers: conditions.names_of(np.asarray(numbers)) or []  # noqa: E731
        return Scoring(self.extraction, self.clip, texts)

    def _finish(
        self, scores: Scores, plan: dict[str, Any], samples: dict[str, Any]
    ) -> dict[str, Any]:
        metrics = scores.results(self.reference)
        network = self.extraction.network
        return {
            "metrics": metrics,
            "definitions": scores.definitions(self.reference),
            "not computed": self.refused,
            "warnings": self._warnings(scores, metrics),
            "samples": samples,
            "reference": reference_facts(self.reference),
            "features": network.identity,
            "versions": versions(),
            "plan": plan,
        }

    def _warnings(self, scores: Scores, metrics: dict[str, float]) -> list[str]:
        width, found = self.extraction.network.widths["pool"], []
        if scores.count <= width and "fid" in self.metrics:
            name = metric_name("fid", self.extraction.network)
            bias = metrics.get(f"{name}_bias")
            amount = (
                f"about {bias:.3g} of {metrics[name]:.4g}"
                if bias is not None
                else "by an unknown amount"
            )
            found.append(
                f"{scores.count:,} samples are fewer than the {width:,} features: {name} is too "
                f"high ({amount} by comparison of halves, more in truth), expected {10 * width:,} "
                "samples or more"
            )
        count = self.reference.record.get("count")
        if count and count <= width:
            found.append(
                f"the reference's {count:,} images are fewer than the {width:,} features: "
                f"distances are too high"
            )
        if not self.reference.record and "fid" in self.metrics:
            settings = self.extraction.network.settings
            if any(settings.get(name, usual) != usual for name, usual in PYTORCH_FID.items()):
                found.append(
                    f"{self.reference.path.name} does not say how its images were resized and in "
                    f"what precision, here resize is {settings['resize']} and dtype "
                    f"{settings['dtype']}: where these differ, distances mean little"
                )
        for warning in found:
            LOG.warning("warning: %s", warning)
        return found


class _Kept:
    """Images that a report shows or saves: all, or the first of them for the grid."""

    def __init__(self, path: pathlib.Path, stream: ImageStream, start: int, *, everything: bool):
        self._limit = stream.count if everything else min(stream.count, GRID_SAMPLES)
        self.rows = StoredRows(path, stream.shape, np.uint8, count=min(start, self._limit))

    def take(self, images: np.ndarray) -> None:
        room = self._limit - self.rows.count
        if room > 0:
            self.rows.append(images[:room])


def _report_of(out: pathlib.Path, plan: dict[str, Any]) -> dict[str, Any] | None:
    """The finished report of this very plan; None where there is none."""
    path = out / REPORT
    if not path.exists():
        return None
    try:
        report = json.loads(path.read_text())
    except (ValueError, OSError):
        raise UserError(
            f"{path} can't be read as a report: delete it, and it is made again"
        ) from None
    if report.get("plan") != plan:
        raise UserError(
            f"{out} holds another evaluation ({first_difference(report.get('plan') or {}, plan)}): "
            "expected a new config.evaluate.out"
        )
    LOG.info("already evaluated: %s", path)
    return report


def _check_free(out: pathlib.Path, save: str, field: str) -> None:
    """Raises a UserError for files that an evaluation would write over: another job's, or a
    person's.
    """
    names = [SAMPLES]
    if not (out / TABLE).exists():  # the files beside that table are an evaluation's own
        names += [_GRID, *[NPZ] * (save == "npz")]
    for name in names:
        if (out / name).exists():
            raise UserError(
                f"{field} {out} holds {name!r} of something else, expected a folder for this "
                f"report alone"
            )


def _check_plan(state: pathlib.Path, plan: dict[str, Any]) -> None:
    """Notes what is asked for, or compares it with what a killed run was asked for."""
    path = state / _PLAN
    if not path.exists():
        with atomic_write(path) as file:
            file.write(json.dumps(plan, indent=1).encode())
        return
    try:
        found = json.loads(path.read_text())
    except (ValueError, OSError):
        found = {}
    if found != plan:
        raise UserError(
            f"{state.parent} holds half of another evaluation ({first_difference(found, plan)}): "
            f"expected another config.evaluate.out, or {state} deleted"
        )


def _write(
    out: pathlib.Path,
    report: dict[str, Any],
    kept: _Kept,
    conditions: Conditions | None,
    title: str,
    save: str,
) -> None:
    images = kept.rows.read()
    shown = images[:GRID_SAMPLES]
    pictures.save_grid(np.asarray(shown), conditions or Conditions(), out / _GRID, title)
    labels = (
        conditions.of(np.arange(len(images)))
        if conditions is not None and conditions.labels
        else None
    )
    if save == "npz":
        with npz_writer(out / NPZ, len(images), labels, names=_ADM) as append:
            for first in range(0, len(images), _WRITTEN_AT_ONCE):
                append(images[first : first + _WRITTEN_AT_ONCE])
    elif save == "png":
        for i, image in enumerate(images):
            save_png(np.asarray(image), out / _PNGS / png_name(i))
    kept.rows.close()
    write_report(report, out)
