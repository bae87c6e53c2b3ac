"""Samples of a model as a stream: what the jobs `sample` and `evaluate` open, check and draw from."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterator

import numpy as np
from jaxtyping import Array, UInt8

from uvit_jax.data.prepared.prepared_data import PreparedData
from uvit_jax.data.training_data import BUILT_IN
from uvit_jax.diffusion.sampler import Sampler
from uvit_jax.errors import UserError
from uvit_jax.experiment.assembled import Parts, assemble, open_experiment_autoencoder, open_source
from uvit_jax.experiment.checks import check_context
from uvit_jax.experiment.config import Experiment
from uvit_jax.experiment.data_card import (
    DataCard,
    card_of_config,
    card_of_source,
    identity,
    read_card,
)
from uvit_jax.experiment.text_states import TextStates, open_text_states
from uvit_jax.experiment.weights import check_init_from, run_of_samples, samples_from_elsewhere
from uvit_jax.experiment.workdir import check_run
from uvit_jax.interop.autoencoder import Autoencoder
from uvit_jax.jobs.sampling.conditions import (
    Conditions,
    data_captions,
    data_labels,
    label_conditions,
    prompt_conditions,
    read_prompts,
)
from uvit_jax.jobs.sampling.pictures import round_up
from uvit_jax.parallel import hosts
from uvit_jax.parallel.arrays import fetch
from uvit_jax.parallel.mesh import batch_parts
from uvit_jax.telemetry.images import to_uint8
from uvit_jax.training.state import Params


@dataclasses.dataclass(frozen=True)
class Generation:
    """A model that is asked for samples.

    Attributes:
      parts: of the experiment.
      conditions: what sample i is of.
      batch_size: samples made at a time, on all devices together, at most.
    """

    parts: Parts
    conditions: Conditions
    batch_size: int

    def guided_by(self, scale: float) -> "Generation":
        """The same with another guidance scale, and the same compiled program."""
        experiment = self.parts.experiment
        sample = dataclasses.replace(experiment.sample, guidance_scale=scale)
        parts = dataclasses.replace(
            self.parts, experiment=dataclasses.replace(experiment, sample=sample)
        )
        other = dataclasses.replace(self, parts=parts)
        other.__dict__["_sampler"] = self._sampler
        return other

    def batches(
        self, params: Params, first: int, count: int
    ) -> Iterator[UInt8[np.ndarray, "b h w c"]]:
        """Images number `first` to `count` - 1 of `config.sample.seed`, as the bytes of a PNG,
        batch after batch.

        While the host has one batch the devices are at work on the next. Batches are those of a
        stream from 0, of which images before `first` are left out, so that a stream taken up again
        gives the same bits. Fewer samples than a batch are a batch of their own; the last of
        several batches is filled up to the size of the others, which costs less than a program of
        its own. All hosts call this together and each gets all images.

        Raises:
          UserError: an image holds NaN; the sentence has the sample's number.
        """
        config = self.parts.experiment.sample
        size = min(self.batch_size, round_up(count, batch_parts(self.parts.mesh)))
        pending: tuple[int, Array] | None = None
        for begin in range(first - first % size, count, size):
            # All of one size (the last is filled up), so that one compiled program serves.
            indices = np.arange(begin, begin + size, dtype=np.int32)
            samples = self._sampler(
                params,
                seed=config.seed,
                indices=indices,
                condition=self.conditions.of(indices),
                guidance_scale=config.guidance_scale,
            )
            assert not isinstance(samples, tuple)  # such a sampler keeps no trajectory
            following = begin, self.parts.decoded(samples)
            if pending is not None:
                yield _bytes(*pending, first, count)
            pending = following
        if pending is not None:
            yield _bytes(*pending, first, count)

    @functools.cached_property
    def _sampler(self) -> Sampler:
        return self.parts.sampler(self.conditions.null)


def _bytes(begin: int, images: Array, first: int, count: int) -> UInt8[np.ndarray, "b h w c"]:
    """The images of one batch that are wanted: those from number `first` on and before `count`."""
    skipped = max(first - begin, 0)
    wanted = fetch(images)[skipped : count - begin]
    bad = np.flatnonzero(np.isnan(wanted).any(axis=(1, 2, 3)))
    if len(bad):
        raise UserError(
            f"sample {begin + skipped + bad[0]} holds NaN ({len(bad)} of the {len(wanted)} in its "
            "batch do), expected numbers: the weights may be damaged, or config.model.dtype too "
            "narrow for them"
        )
    return to_uint8(wanted)


def open_generation_parts(
    experiment: Experiment, workdir: pathlib.Path, captions: PreparedData | None = None
) -> tuple[Parts, TextStates | None]:
    """The parts and, for a model of text, what encodes prompts, opened and checked against each
    other.

    captions: prepared captions that stand in place of prompts; nothing encodes texts then.

    Raises:
      UserError: for what is wrong with the config, the weights or the folder; no device has worked
        yet.
    """
    if captions is not None and not experiment.model.context_dim:
        raise UserError(
            f"config.evaluate.captions is {experiment.evaluate.captions!r}, expected none for a "
            f"model without text"
        )
    if samples_from_elsewhere(experiment, workdir):
        check_init_from(experiment.init_from)
    if run := run_of_samples(experiment, workdir):
        check_run(experiment, run)
    autoencoder = open_experiment_autoencoder(experiment)
    parts = assemble(
        experiment, _card(experiment, workdir, autoencoder), autoencoder, section="sample"
    )
    check_decoder(parts)
    if not experiment.model.context_dim:
        return parts, None
    if captions is not None:
        check_captions(parts, captions)
        return parts, None
    if not experiment.sample.prompts:
        raise UserError(
            'config.sample.prompts is empty, expected texts as "a red bus; two cats", or a .txt '
            "file"
        )
    if not experiment.text_encoder.name:
        raise UserError(
            "config.text_encoder.name is empty, expected "
            f"{parts.card.text_encoder or 'that of the model'!r}: a hub name or a folder"
        )
    read_prompts(experiment.sample.prompts)
    text = open_text_states(experiment, parts.mesh)
    parts.card.check_text(text.encoder)
    return parts, text


def check_decoder(parts: Parts) -> None:
    """Raises a UserError for a model of latents without an autoencoder: its samples can't be seen,
    nor scored.
    """
    if parts.card.normalization is not None and parts.codec is None:
        raise UserError(
            f"config.autoencoder.name is empty, expected {parts.card.autoencoder!r} or another "
            "decoder of its latents: a hub name, a folder or a weights file"
        )


def open_captions(name: str) -> PreparedData:
    """The prepared data set that `config.evaluate.captions` names.

    Raises:
      UserError: for a folder that is none, or one without captions.
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


def check_captions(parts: Parts, captions: PreparedData) -> None:
    """Raises a UserError where prepared captions are not what the model learned to read."""
    check_context(
        parts.experiment, captions.context_shape, f"the captions of {str(captions.folder)!r} have"
    )
    card, manifest = parts.card, captions.manifest
    if card.text_encoder_sha256 and manifest.text_encoder_sha256 != card.text_encoder_sha256:
        raise UserError(
            f"config.evaluate.captions is {str(captions.folder)!r}, whose captions were encoded "
            f"with {manifest.text_encoder!r} (SHA-256 {manifest.text_encoder_sha256[:12]}), "
            f"expected {card.text_encoder!r} ({card.text_encoder_sha256[:12]}) as those of "
            f"{card.name!r}"
        )


def agree_on_generation(parts: Parts, text: TextStates | None, workdir: pathlib.Path) -> None:
    """Compares what the hosts read: the data's description, prompts and the checkpoints there are."""
    prompts = read_prompts(parts.experiment.sample.prompts) if text else ()
    folders = {"--workdir": str(workdir), "config.init_from": parts.experiment.init_from}
    steps = {
        f"the content of {name}": sorted(
            path.name for path in pathlib.Path(folder).glob("checkpoints/[0-9]*")
        )
        for name, folder in folders.items()
        if folder
    }
    hosts.agree({**identity(parts.card), "config.sample.prompts": prompts, **steps})


def open_conditions(
    parts: Parts, text: TextStates | None, *, count: int = 0, captions: PreparedData | None = None
) -> Conditions:
    """The classes, prompts or captions asked for.

    count: of samples, for conditions drawn from a data set; captions: the prepared data set they
    are drawn from.
    """
    experiment = parts.experiment
    if captions is not None:
        return data_captions(experiment, captions, count)
    if text is not None:
        return prompt_conditions(experiment, text)
    if experiment.sample.labels.strip() == "data":
        source = open_source(experiment)
        conditions = data_labels(experiment, source, count)
        parts.card.check_names(source)
        return conditions
    return label_conditions(experiment, parts.card.class_names)


def _card(
    experiment: Experiment, workdir: pathlib.Path, autoencoder: Autoencoder | None
) -> DataCard:
    """What is known of the data: the run whose weights these are says it, or the data set where it
    is at hand, or the config alone.
    """
    run = run_of_samples(experiment, workdir)
    card = read_card(run) if run else None
    if card is not None:
        card.check_scale(experiment.autoencoder.scale)
        return card
    if (
        experiment.data.source in BUILT_IN
        or pathlib.Path(experiment.data.source, "manifest.json").exists()
    ):
        return card_of_source(experiment, open_source(experiment), autoencoder)
    return card_of_config(experiment, autoencoder)
