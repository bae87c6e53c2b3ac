"""The evaluation between training steps: a Frechet distance of samples of the EMA weights."""

import pathlib
from collections.abc import Callable

from uvit_jax.data.prepared.prepared_data import PreparedData
from uvit_jax.data.training_data import TrainingData
from uvit_jax.experiment.checks import check_batch
from uvit_jax.experiment.config import Experiment
from uvit_jax.experiment.data_card import DataCard
from uvit_jax.experiment.opened import OpenedForTraining, check_captions, open_captions
from uvit_jax.jobs.evaluation.feature_networks import open_feature_network
from uvit_jax.jobs.evaluation.image_streams import ImageStream
from uvit_jax.jobs.evaluation.reference_images import reference_source
from uvit_jax.jobs.evaluation.reference_statistics import obtain_reference
from uvit_jax.jobs.evaluation.scoring import Scoring
from uvit_jax.jobs.sampling.conditions import open_conditions
from uvit_jax.jobs.sampling.generation import make_generation
from uvit_jax.metrics.feature_network import Extraction
from uvit_jax.metrics.scores import Scores, metric_name
from uvit_jax.models.uvit_config import UViTConfig
from uvit_jax.parallel import hosts
from uvit_jax.telemetry.writers import MetricWriter
from uvit_jax.training.state import TrainState


class TrainEvaluation:
    """Draws `config.evaluate.train_samples` images and compares them with the reference.

    Attributes:
      tag: name of the number. A distance of fewer samples, or without the paper's guidance, is
        another number than the paper's: the tag says which.
    """

    def __init__(self, experiment: Experiment, opened: OpenedForTraining, workdir: pathlib.Path):
        """All hosts call this together.

        A model of text samples `config.evaluate.captions`, else `config.sample.prompts`, else
        captions of its training data.

        Raises:
          UserError: for latents without a decoder, a feature network or a reference that can't be
            had, or batches that the mesh doesn't divide.
        """
        assembled, mesh, sample = opened.assembled, opened.assembled.mesh, experiment.sample
        hosts.on_all(assembled.check_decoder)
        self._count = experiment.evaluate.train_samples
        sizes = experiment.mesh.sizes(mesh.size)
        hosts.on_all(check_batch, "sample", sample.batch_size, sizes)
        captions = None
        if opened.text is None or experiment.evaluate.captions:
            captions = hosts.on_all(
                _captions,
                experiment.evaluate.captions,
                assembled.model,
                assembled.card,
                opened.source,
            )
        conditions = hosts.on_all(
            lambda: open_conditions(
                experiment,
                assembled.card,
                count=self._count,
                text=opened.text,
                captions=captions,
            )
        )
        self._generation = make_generation(assembled, experiment.diffusion, sample, conditions)
        self._shape = assembled.image_shape
        network = hosts.on_all(open_feature_network, experiment.evaluate)
        every = Extraction(network, mesh, network.reference_kinds)
        source = reference_source(experiment)
        self._reference = obtain_reference(source, workdir, every, self._shape)
        self._extraction = Extraction(network, mesh, ["pool"])
        self._name = metric_name("fid", network)
        solver = sample.solver.replace("+", "p")  # TensorBoard's names have no plus
        self.tag = (
            f"{self._name}_{self._count}_ema_{solver}_{sample.steps}"
            f"_guidance_{sample.guidance_scale:g}"
        )

    def __call__(self, state: TrainState, writer: MetricWriter, say: Callable[[str], None]) -> None:
        """Writes the distance under its tag and logs it, unless it was logged at this step before.

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


def _captions(
    name: str, model: UViTConfig, card: DataCard, learned: TrainingData
) -> PreparedData | None:
    """The data set whose captions samples are of; None for a model of labels.

    name: `config.evaluate.captions`; empty for the captions that the model learns.
    """
    if not model.context_dim:
        return None
    if name:
        captions = open_captions(name)
        check_captions(model, card, captions)
        return captions
    return learned if isinstance(learned, PreparedData) else None
