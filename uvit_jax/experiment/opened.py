"""Files that a config names, opened and checked: data, autoencoder, text encoder, captions."""

import dataclasses
import pathlib

from jax.sharding import Mesh

from uvit_jax.data.prepared.prepared_data import PreparedData
from uvit_jax.data.training_data import BUILT_IN, TrainingData, load_built_in
from uvit_jax.errors import UserError
from uvit_jax.experiment.assembled import Assembled, assemble
from uvit_jax.experiment.checks import check_context, check_encoded, check_source
from uvit_jax.experiment.config import Experiment
from uvit_jax.experiment.data_card import DataCard, card_of_config, card_of_source, read_card
from uvit_jax.experiment.saved_config import check_run
from uvit_jax.experiment.sections import AutoencoderSection, TextEncoderSection
from uvit_jax.experiment.text_states import TextStates, open_text_states, read_prompts
from uvit_jax.experiment.weights import (
    check_init_from,
    check_start,
    run_of_samples,
    uses_other_weights,
)
from uvit_jax.interop.autoencoder import Autoencoder, open_autoencoder
from uvit_jax.models.uvit_config import UViTConfig


@dataclasses.dataclass(frozen=True)
class Opened:
    """A model and the text encoder beside it.

    Attributes:
      assembled: mesh, network, data card and codec.
      text: encoder of prompts; None for a model without text, or without prompts.
    """

    assembled: Assembled
    text: TextStates | None


@dataclasses.dataclass(frozen=True)
class OpenedForTraining(Opened):
    """A model and its training data.

    Attributes:
      source: the data set.
    """

    source: TrainingData


def open_for_training(experiment: Experiment, workdir: pathlib.Path) -> OpenedForTraining:
    """Opens the data set, the autoencoder and, for pictures of prompts, the text encoder.

    Raises:
      UserError: for what is wrong with the config, the data or the workdir; no device has worked
        yet.
    """
    model = experiment.model
    learned = check_start(model, experiment.diffusion, experiment.init_from, workdir)
    source = open_source(experiment.data.source)
    check_source(experiment, source)
    autoencoder = open_experiment_autoencoder(experiment.autoencoder)
    card = card_of_source(source, autoencoder, experiment.autoencoder.scale, model, learned)
    assembled = assemble(experiment, card, autoencoder)
    if autoencoder is not None and stored_kind(source) == "pixels":
        check_encoded(model, source, autoencoder)
    text = None
    if model.context_dim and experiment.sample.prompts:
        check_prompts(experiment.sample.prompts)
        text = open_prompt_encoder(experiment.text_encoder, card, assembled.mesh)
    return OpenedForTraining(assembled, text, source)


def open_for_sampling(
    experiment: Experiment,
    workdir: pathlib.Path,
    captions: PreparedData | None = None,
    *,
    prompts: bool = True,
) -> Opened:
    """Opens the autoencoder and, for a model of text, the text encoder.

    Args:
      experiment: the config.
      workdir: of the run.
      captions: prepared captions in place of prompts; no text encoder is opened then.
      prompts: False to leave the text encoder for when a prompt comes (`open_prompt_encoder`).

    Raises:
      UserError: for what is wrong with the config, the weights or the folder; no device has worked
        yet.
    """
    model, init_from = experiment.model, experiment.init_from
    if captions is not None and not model.context_dim:
        raise UserError(
            f"config.evaluate.captions is {experiment.evaluate.captions!r}, expected none for a "
            f"model without text"
        )
    if uses_other_weights(init_from, workdir):
        check_init_from(init_from)
    run = run_of_samples(init_from, workdir)
    if run:
        check_run(model, experiment.diffusion, run)
    autoencoder = open_experiment_autoencoder(experiment.autoencoder)
    card = _learned_card(
        run, experiment.data.source, autoencoder, experiment.autoencoder.scale, model
    )
    assembled = assemble(experiment, card, autoencoder, section="sample")
    assembled.check_decoder()
    if not model.context_dim or not prompts:
        return Opened(assembled, None)
    if captions is not None:
        check_captions(model, card, captions)
        return Opened(assembled, None)
    check_prompts(experiment.sample.prompts)
    text = open_prompt_encoder(experiment.text_encoder, card, assembled.mesh)
    return Opened(assembled, text)


def open_source(name: str) -> TrainingData:
    """Opens the data set that `config.data.source` names.

    Raises:
      UserError: for a name that is neither built in nor the folder of a prepared data set.
    """
    if name in BUILT_IN:
        return load_built_in(name)
    if not pathlib.Path(name).is_dir():
        raise UserError(
            f"config.data.source is {name!r}, expected {', '.join(map(repr, BUILT_IN))} or the "
            "folder of a prepared data set: --job prepare makes one from images"
        )
    return PreparedData(pathlib.Path(name))


def stored_kind(source: TrainingData) -> str:
    """Kind of a source's arrays: "pixels", "moments" or "latents"."""
    return source.manifest.kind if isinstance(source, PreparedData) else "pixels"


def open_experiment_autoencoder(section: AutoencoderSection) -> Autoencoder | None:
    """Reads the autoencoder that the section names; None where it names none."""
    if not section.name:
        return None
    try:
        return open_autoencoder(section.name, dtype=section.dtype)
    except UserError as error:
        raise UserError(f"config.autoencoder.name is {section.name!r}: {error}") from None


def open_captions(name: str) -> PreparedData:
    """Opens the prepared data set that `config.evaluate.captions` names.

    Raises:
      UserError: for a folder that is not a prepared data set, or one without captions.
    """
    try:
        captions = PreparedData(name)
    except UserError as error:
        raise UserError(f"config.evaluate.captions is {name!r}: {error}") from None
    if not captions.manifest.num_captions:
        raise UserError(
            f"config.evaluate.captions is {name!r}, which holds no captions, expected a data set "
            "prepared with a text encoder"
        )
    return captions


def check_captions(model: UViTConfig, card: DataCard, captions: PreparedData) -> None:
    """Raises a UserError where prepared captions are not encoded as the model learned them."""
    check_context(model, captions.context_shape, f"the captions of {str(captions.folder)!r} have")
    manifest = captions.manifest
    if card.text_encoder_sha256 and manifest.text_encoder_sha256 != card.text_encoder_sha256:
        raise UserError(
            f"config.evaluate.captions is {str(captions.folder)!r}, whose captions were encoded "
            f"with {manifest.text_encoder!r} (SHA-256 {manifest.text_encoder_sha256[:12]}), "
            f"expected {card.text_encoder!r} ({card.text_encoder_sha256[:12]}) as those of "
            f"{card.name!r}"
        )


def check_prompts(prompts: str) -> None:
    """Raises a UserError for no prompts, or a file of them that can't be read."""
    if not prompts:
        raise UserError(
            'config.sample.prompts is empty, expected texts as "a red bus; two cats", or a .txt '
            "file"
        )
    read_prompts(prompts)


def open_prompt_encoder(section: TextEncoderSection, card: DataCard, mesh: Mesh) -> TextStates:
    """Opens the text encoder.

    card: of the data that the model learned.

    Raises:
      UserError: for none, one that can't be opened, or another than the model's.
    """
    if not section.name:
        raise UserError(
            "config.text_encoder.name is empty, expected "
            f"{card.text_encoder or 'that of the model'!r}: a hub name or a folder"
        )
    text = open_text_states(section, mesh)
    card.check_text(text.encoder)
    return text


def _learned_card(
    run: pathlib.Path | None,
    source: str,
    autoencoder: Autoencoder | None,
    scale: float | None,
    model: UViTConfig,
) -> DataCard:
    """The card of the run whose weights are sampled, else of the data set, else of the config."""
    card = read_card(run) if run else None
    if card is not None:
        card.check_scale(scale)
        return card
    if source in BUILT_IN or pathlib.Path(source, "manifest.json").exists():
        return card_of_source(open_source(source), autoencoder, scale, model)
    return card_of_config(autoencoder, scale)
