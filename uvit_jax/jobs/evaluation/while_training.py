"""The evaluation that training does now and then: a Frechet distance of the EMA's samples, its
protocol in its name.
"""

import pathlib
from collections.abc import Callable

from uvit_jax.data.prepared.record_source import RecordSource
from uvit_jax.data.sources import Source
from uvit_jax.experiment.assembled import Parts
from uvit_jax.experiment.checks import check_mesh
from uvit_jax.experiment.text_states import TextStates
from uvit_jax.jobs.evaluation.feature_networks import open_feature_network
from uvit_jax.jobs.evaluation.image_streams import ImageStream
from uvit_jax.jobs.evaluation.references import obtain_reference
from uvit_jax.jobs.evaluation.scoring import Scoring
from uvit_jax.jobs.sampling.generation import (
    Generation,
    check_captions,
    check_decoder,
    open_captions,
    open_conditions,
)
from uvit_jax.metrics.feature_network import Extraction
from uvit_jax.metrics.scores import Scores, metric_name
from uvit_jax.parallel import hosts
from uvit_jax.telemetry.writers import MetricWriter
from uvit_jax.training.state import TrainState


class TrainEvaluation:
    """Draws `config.evaluate.train_samples` images as `config.sample` says and compares them with
    the reference.

    Attributes:
      tag: what the number is called. A distance of fewer samples, or without the paper's guidance,
        is another number than the paper's: the tag says which.
    """

    def __init__(
        self, parts: Parts, source: Source, text: TextStates | None, workdir: pathlib.Path
    ):
        """All hosts call this together.

        source: what is learned, whose captions the samples are of where a model of text is given
        neither prompts (`text` encodes them) nor `config.evaluate.captions`.

        Raises:
          UserError: for latents without a decoder, an network or a reference that can't be had,
            or batches that the mesh doesn't divide.
        """
        experiment = parts.experiment
        hosts.on_all(check_decoder, parts)
        self._count = experiment.evaluate.train_samples
        hosts.on_all(check_mesh, experiment, experiment.mesh.sizes(parts.mesh.size), "sample")
        captions = hosts.on_all(_captions, parts, source, text)
        conditions = hosts.on_all(
            lambda: open_conditions(parts, text, count=self._count, captions=captions)
        )
        self._generation = Generation(parts, conditions, experiment.sample.batch_size)
        self._shape = parts.image_shape
        network = hosts.on_all(open_feature_network, experiment)
        every = Extraction(network, parts.mesh, network.reference_kinds)
        self._reference = obtain_reference(experiment, workdir, every, self._shape)
        self._extraction = Extraction(network, parts.mesh, ["pool"])
        self._name = metric_name("fid", network)
        sample = experiment.sample
        solver = sample.solver.replace("+", "p")  # TensorBoard's names have no plus
        self.tag = f"{self._name}_{self._count}_ema_{solver}_{sample.steps}_guidance_{sample.guidance_scale:g}"

    def __call__(self, state: TrainState, writer: MetricWriter, say: Callable[[str], None]) -> None:
        """Writes the distance under its tag and says it, unless the log has it of this step.

        All hosts call this together.
        """
        step = int(state.step)
        if hosts.first_says(writer.has_evaluation(step, [self.tag])):
            return
        scores = (
            Scores(["fid"], self._extraction.network, self._count, None)
            if hosts.is_first()
            else None
        )
        stream = ImageStream(
            "samples",
            self._count,
            self._shape,
            lambda first: self._generation.batches(state.ema, first, self._count),
        )
        Scoring(self._extraction).run(stream, scores, 0, description="evaluate", quiet=True)
        if scores is not None:
            value = scores.results(self._reference)[self._name]
            writer.write_evaluation(step, {self.tag: value})
            say(f"step {step:,}: {self.tag} {value:.4g}")


def _captions(parts: Parts, source: Source, text: TextStates | None) -> RecordSource | None:
    """The data set whose captions samples are of; None for labels or prompts."""
    experiment = parts.experiment
    if not experiment.model.context_dim:
        return None
    if experiment.evaluate.captions:
        captions = open_captions(experiment.evaluate.captions)
        check_captions(parts, captions)
        return captions
    return source if text is None and isinstance(source, RecordSource) else None
