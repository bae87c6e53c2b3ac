"""One evaluation in one folder, which goes on after a kill at any moment with the same bits."""

import dataclasses
import json
import logging
import pathlib
import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from uvit_jax.experiment.folder_lock import locked
from uvit_jax.experiment.job_sections import EvaluateConfig
from uvit_jax.experiment.workdir import open_workdir
from uvit_jax.jobs.evaluation.clip_pair import ClipPair
from uvit_jax.jobs.evaluation.feature_networks import open_feature_network
from uvit_jax.jobs.evaluation.image_streams import ImageStream, Shape
from uvit_jax.jobs.evaluation.kept_images import KeptImages
from uvit_jax.jobs.evaluation.metric_choice import choose_metrics
from uvit_jax.jobs.evaluation.reference_images import ReferenceSource
from uvit_jax.jobs.evaluation.reference_statistics import (
    num_features,
    obtain_reference,
    with_features,
)
from uvit_jax.jobs.evaluation.report import make_report, write_report
from uvit_jax.jobs.evaluation.report_folder import STATE, claim_folder, finished_report
from uvit_jax.jobs.evaluation.scoring import Scoring
from uvit_jax.jobs.sampling.conditions import Conditions
from uvit_jax.metrics.feature_network import Extraction
from uvit_jax.metrics.metric_names import SAMPLE_METRICS
from uvit_jax.metrics.reference_file import Reference
from uvit_jax.metrics.scores import Scores, kinds
from uvit_jax.parallel import hosts

LOG = logging.getLogger("uvit_jax")

_IMAGES = "images.rows"


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """The metrics, features and reference that any samples are scored with.

    Attributes:
      metrics: the metrics that are computed.
      refused: why others are not.
      extraction: the metrics' features.
      reference: the data set that samples are compared with.
      clip: for the CLIP score.
      save: "png", "npz" or neither.
      out_field: the config field that names the folders of reports, for error sentences.
    """

    metrics: tuple[str, ...]
    refused: dict[str, str]
    extraction: Extraction
    reference: Reference
    clip: ClipPair | None = None
    save: str = ""
    out_field: str = "workdir"

    def plan(self, samples: dict[str, Any]) -> dict[str, Any]:
        """Everything that the numbers depend on, as JSON.

        samples: the record of the samples.
        """
        plan = {
            "samples": samples,
            "metrics": self.metrics,
            "reference": {"file": self.reference.path.name, "sha256": self.reference.sha256},
            "features": self.extraction.network.identity,
            "clip": self.clip.identity if self.clip else {},
            "save": self.save,
        }
        as_json: dict[str, Any] = json.loads(json.dumps(plan))
        return as_json

    def run(
        self,
        stream: ImageStream,
        samples: dict[str, Any],
        out: pathlib.Path,
        title: str,
        conditions: Conditions | None = None,
    ) -> dict[str, Any]:
        """Makes or finds the report in `out`; all hosts call this together.

        Args:
          samples: the record of the stream's images.
          title: title of the grid.
          conditions: what sample i is of; None if that isn't known.

        Returns:
          The report on the first host, and on all hosts if it was found; {} on the others.

        Raises:
          UserError: for a folder that holds another evaluation, NaN images, too few samples, or a
            full disk.
        """
        plan = self.plan(samples)
        hosts.agree({"what is evaluated": plan})
        open_workdir(out, self.out_field)
        with locked(out, "evaluate"):
            found = hosts.on_all(finished_report, out, plan)
            if found is not None:
                hosts.on_first(_remove_state, out)  # a run may be killed right after its report
                return found
            hosts.on_first(claim_folder, out, plan, self.save, self.out_field)
            return self._score(stream, samples, plan, out, title, conditions)

    def _score(
        self,
        stream: ImageStream,
        samples: dict[str, Any],
        plan: dict[str, Any],
        out: pathlib.Path,
        title: str,
        conditions: Conditions | None,
    ) -> dict[str, Any]:
        LOG.info("evaluating %s images: %s", f"{stream.count:,}", title)
        # On the first host alone: the others compute features and keep nothing.
        state = hosts.on_first(self._open_state, stream, out / STATE)
        start = hosts.first_says(state.scores.count if state else 0)
        if start:
            LOG.info("going on: %s of %s are scored already", f"{start:,}", f"{stream.count:,}")

        began = time.monotonic()
        Scoring(self.extraction, self.clip, _texts(conditions)).run(
            stream,
            state.scores if state else None,
            start,
            description="evaluate",
            on_images=state.images.append if state else None,
            save=state.save if state else None,
        )
        scored = time.monotonic()

        def finish(state: _State) -> dict[str, Any]:
            report = make_report(
                state.scores,
                self.reference,
                self.extraction.network,
                refused=self.refused,
                samples=samples,
                plan=plan,
            )
            report["seconds"] = {
                "samples and features": round(scored - began, 1),
                "metrics": round(time.monotonic() - scored, 1),
                "samples of this run": stream.count - start,
            }
            state.images.write_and_close(out, conditions, title, self.save)
            write_report(report, out)
            state.scores.close()
            _remove_state(out)
            return report

        return hosts.on_first(finish, state) or {}

    def _open_state(self, stream: ImageStream, folder: pathlib.Path) -> "_State":
        scores = Scores(self.metrics, self.extraction.network, stream.count, folder)
        images = KeptImages(folder / _IMAGES, stream, scores.count, everything=bool(self.save))
        return _State(scores, images)


@dataclasses.dataclass(frozen=True)
class _State:
    """What an unfinished evaluation keeps in its folder."""

    scores: Scores
    images: KeptImages

    def save(self) -> None:
        # Images first: those that the scores count must be on the disk.
        self.images.sync()
        self.scores.save()


def _remove_state(out: pathlib.Path) -> None:
    # A network's file system may keep names of open files for a while.
    shutil.rmtree(out / STATE, ignore_errors=True)


def _texts(conditions: Conditions | None) -> Callable[[range], Sequence[str]] | None:
    """The function from sample numbers to their texts; None for samples without texts."""
    if conditions is None or not conditions.names:
        return None
    return lambda numbers: conditions.names_of(np.asarray(numbers)) or []


def open_evaluation(
    evaluate: EvaluateConfig,
    source: ReferenceSource,
    workdir: pathlib.Path,
    mesh: Mesh,
    shape: Shape,
    *,
    num_samples: int,
    has_texts: bool = False,
    tokenizer: str = "",
) -> Evaluation:
    """Opens the networks and the reference, and chooses the metrics that the two allow.

    Args:
      shape: (h, w, c) of the samples.
      has_texts: True if samples are drawn from texts.
      tokenizer: in place of the CLIP's own.

    Raises:
      UserError: for what can't be had; no samples were drawn yet.
    """
    network = hosts.on_all(open_feature_network, evaluate)
    clip = None
    if evaluate.clip and has_texts:
        clip = hosts.on_all(ClipPair, evaluate.clip, tokenizer, mesh)
    every = Extraction(network, mesh, network.reference_kinds)
    reference = obtain_reference(source, workdir, every, shape)
    metrics, refused = choose_metrics(
        evaluate,
        network,
        has_spatial=reference.spatial is not None,
        num_reference=hosts.on_all(num_features, reference),
        has_texts=has_texts,
        num_samples=num_samples,
    )
    if any(name in SAMPLE_METRICS for name in metrics):
        reference = with_features(reference, every, shape)
    return Evaluation(
        metrics,
        refused,
        Extraction(network, mesh, kinds(metrics)),
        reference,
        clip if "clip" in metrics else None,
        evaluate.save,
        "config.evaluate.out" if evaluate.out else "workdir",
    )
