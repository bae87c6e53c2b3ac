"""The evaluation that training does now and then: a Frechet distance of the EMA's samples, its protocol in its name."""

import pathlib

from uvit_jax.jobs.conditions import Conditions
from uvit_jax.jobs.extractors import open_extractor
from uvit_jax.jobs.generation import Generation
from uvit_jax.jobs.image_streams import ImageStream
from uvit_jax.jobs.references import obtain_reference
from uvit_jax.jobs.scoring import Scoring
from uvit_jax.jobs.setup import Parts
from uvit_jax.metrics.features import Extraction
from uvit_jax.metrics.scores import Scores, metric_name
from uvit_jax.parallel import hosts
from uvit_jax.training.state import Params


class TrainEvaluation:
    """Draws `config.evaluate.train_samples` images as `config.sample` says and compares them with the reference.

    A distance of fewer samples, or without the paper's guidance, is another number than the paper's: `tag` says which.
    """

    def __init__(self, parts: Parts, conditions: Conditions, workdir: pathlib.Path):
        """All hosts call this together. Raises UserError for an extractor or a reference that can't be had."""
        experiment = parts.experiment
        self._count = experiment.evaluate.train_samples
        self._generation = Generation(parts, conditions, experiment.sample.batch_size)
        self._shape = parts.image_shape
        extractor = hosts.together(open_extractor, experiment)
        kinds = tuple(kind for kind in ("pool", "spatial") if kind in extractor.widths)
        self._reference = obtain_reference(experiment, workdir, Extraction(extractor, parts.mesh, kinds), self._shape)
        self._extraction = Extraction(extractor, parts.mesh, ["pool"])
        sample = experiment.sample
        self.tag = (
            f"{metric_name('fid', extractor)}_{self._count}_ema_{sample.solver}_{sample.steps}_guidance_"
            f"{sample.guidance_scale:g}"
        )

    def __call__(self, params: Params) -> dict[str, float]:
        """The distance under its tag, on the first host; nothing on others. All hosts call this together."""
        scores = Scores(["fid"], self._extraction.extractor, self._count, None) if hosts.is_first() else None
        stream = ImageStream(
            "samples", self._count, self._shape, lambda first: self._generation.batches(params, first, self._count)
        )
        Scoring(self._extraction).run(stream, scores, 0, description="evaluate", quiet=True)
        if scores is None:
            return {}
        results = scores.results(self._reference)
        return {self.tag: results[metric_name("fid", self._extraction.extractor)]}
