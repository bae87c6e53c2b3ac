"""Conditions of samples (classes, prompts, captions or none), and their names in pictures."""

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, UInt64

from uvit_jax.data.prepared.prepared_data import PreparedData
from uvit_jax.data.training_data import TrainingData
from uvit_jax.errors import UserError
from uvit_jax.experiment.checks import check_context
from uvit_jax.experiment.class_names import resolve_labels
from uvit_jax.experiment.config import Experiment
from uvit_jax.experiment.data_card import DataCard
from uvit_jax.experiment.job_sections import SampleConfig
from uvit_jax.experiment.opened import open_source
from uvit_jax.experiment.text_states import TextStates, read_prompts
from uvit_jax.models.uvit_config import UViTConfig
from uvit_jax.parallel.mesh import batch_parts
from uvit_jax.randomness import Stream, seed_sequence

Condition = Int[np.ndarray, " n"] | Float[np.ndarray, "n l d"]


@runtime_checkable
class Values(Protocol):
    """Conditions by their numbers: an array, or an object that reads them when indexed."""

    @property
    def ndim(self) -> int:
        """1 for labels, 3 for states of texts."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Any, /) -> Any:
        """The conditions of these numbers, as one array."""
        ...


@dataclasses.dataclass(frozen=True)
class Conditions:
    """Sample i is of `values[i % len(values)]`.

    Attributes:
      values: labels `[k]` or states of texts `[k, l, d]`; None for a model without either.
      null: the empty label, or states of the empty text or of a negative prompt `[l, d]`; None
        without guidance.
      names: what each value is called; empty where there are none.
      record: what made states of the texts, for a report.
    """

    values: Values | None = None
    null: int | Float[np.ndarray, "l d"] | None = None
    names: tuple[str, ...] = ()
    record: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def labels(self) -> bool:
        """True if these are labels."""
        return self.values is not None and self.values.ndim == 1

    def of(self, indices: Int[np.ndarray, " n"]) -> Condition | None:
        """The conditions of the samples of these numbers."""
        return None if self.values is None else self.values[indices % len(self.values)]

    def names_of(self, indices: Int[np.ndarray, " n"]) -> list[str] | None:
        """Names of these samples in a picture; None where there are none."""
        return [self.names[i % len(self.names)] for i in indices] if self.names else None

    def columns(self, count: int) -> int:
        """Columns of a picture of this many samples, about a square.

        Where values are few, each column shows one of them.
        """
        values = 0 if self.values is None else len(self.values)
        each = values if 1 <= values <= (16 if self.labels else 8) else 1
        # One column a value, or several such groups side by side; of two equally good, the wider.
        widths = range(each * -(-count // each), 0, -each)
        return min(widths, key=lambda columns: abs(math.log(columns / -(-count // columns))))


def open_conditions(
    experiment: Experiment,
    card: DataCard,
    *,
    count: int,
    text: TextStates | None = None,
    captions: PreparedData | None = None,
    spread: bool = False,
) -> Conditions:
    """Chooses what samples are of: captions, prompts, labels of the data, or classes in turn.

    Args:
      card: of the data that the model learned.
      count: of samples, for conditions that are drawn from a data set.
      text: the encoder of prompts.
      captions: prepared data set whose captions take the place of prompts.
      spread: True for captions of images spread evenly over the data set, as pictures show; False
        for those of images drawn by the seed.

    Raises:
      UserError: for classes, prompts or captions that can't be had.
    """
    sample, null_label = experiment.sample, experiment.null_label
    has_null = bool(experiment.diffusion.p_uncond)
    if captions is not None:
        if spread:
            return caption_conditions(captions, count, has_null=has_null)
        return data_captions(captions, count, sample, has_null=has_null)
    if text is not None:
        return prompt_conditions(sample, text, experiment.model, has_null=has_null)
    if not experiment.model.context_dim and sample.labels.strip() == "data":
        source = open_source(experiment.data.source)
        labels = data_labels(source, count, sample.seed, experiment.num_real_classes, null_label)
        card.check_names(source)
        return labels
    classes = experiment.num_real_classes
    return label_conditions(
        sample.labels, classes, null_label, card.class_names, experiment.data.source
    )


def label_conditions(
    labels: str,
    classes: int,
    null_label: int | None,
    class_names: Sequence[str],
    source: str = "",
) -> Conditions:
    """Builds the conditions of `config.sample.labels`, for a model of so many classes.

    source: `config.data.source`, for the names of ImageNet's classes (`resolve_labels`).

    Raises:
      UserError: for what is not a list of classes, or a class outside the table.
    """
    text = labels.strip()
    if not classes:
        if text not in ("", "all"):
            raise UserError(
                f"config.sample.labels is {text!r}, expected 'all' for a model without labels"
            )
        return Conditions()
    asked, known = np.arange(classes, dtype=np.int32), class_names
    if text != "all":
        asked, known = resolve_labels(text, classes, class_names, source)
    names = tuple(known[label] if label < len(known) else str(label) for label in asked.tolist())
    return Conditions(asked, null_label, names)


def prompt_conditions(
    sample: SampleConfig, text: TextStates, model: UViTConfig, *, has_null: bool
) -> Conditions:
    """Encodes the prompts of `config.sample.prompts`, and the negative one or the empty text.

    has_null: True if the model has learned the empty text.

    Raises:
      UserError: for prompts that can't be read, or states that don't fit the model.
    """
    prompts = read_prompts(sample.prompts)
    check_context(model, text.shape, f"{text.encoder.name!r} (config.text_encoder.name) has")
    texts = [*prompts, sample.negative_prompt]
    # A few texts are a batch of their own; many are encoded in batches of the size asked for.
    each = min(text.batch_size, -(-len(texts) // batch_parts(text.mesh)))
    *states, null = dataclasses.replace(text, batch_size=each)(texts)
    record = {
        "text encoder": text.encoder.name,
        "text encoder sha256": text.encoder.sha256,
        "text encoder dtype": text.dtype,
        "token ids sha256": hashlib.sha256(text.tokenizer.tokenize(texts).tobytes()).hexdigest(),
    }
    return Conditions(np.stack(states), null if has_null else None, prompts, record)


def caption_conditions(source: PreparedData, count: int, *, has_null: bool) -> Conditions:
    """Reads the first captions of `count` images spread evenly over a data set."""
    picks = np.unique(np.linspace(0, len(source) - 1, count).round().astype(np.int64))
    states = np.stack([source.context(int(i), 0) for i in picks])
    null = source.empty_context if has_null else None
    return Conditions(states, null, tuple(source.captions(int(i))[0] for i in picks))


_READ_AT_ONCE = 1024


def data_labels(
    source: TrainingData, count: int, seed: int, classes: int, null_label: int | None
) -> Conditions:
    """Draws labels as often as the data set has them.

    Sample i has the label of an example that is a function of (seed, i) alone.

    Raises:
      UserError: for a model or a data set without labels.
    """
    if not classes or source.num_classes != classes:
        raise UserError(
            f"config.sample.labels is 'data', but {source.name!r} (config.data.source) has "
            f"{source.num_classes} classes and the model {classes}: expected a "
            "model of its labels"
        )
    examples = np.asarray(
        [_draw(seed, Stream.LABEL, i) % len(source) for i in range(count)], np.int64
    )
    # Prepared images are read with their labels: fifty thousand at once would fill the memory.
    parts = np.split(examples, range(_READ_AT_ONCE, count, _READ_AT_ONCE))
    read = [
        source.read(part, np.zeros(len(part), bool), fields=["label"])["label"] for part in parts
    ]
    labels = np.concatenate(read)
    names = tuple(source.class_names[label] for label in labels.tolist())
    return Conditions(labels.astype(np.int32), null_label, names)


def data_captions(
    source: PreparedData, count: int, sample: SampleConfig, *, has_null: bool
) -> Conditions:
    """Draws captions: sample i has one of the i-th image of the shuffled data set.

    Both are drawn by the seed. Images come again where there are more samples than images. States
    are read when a batch needs them.

    Raises:
      UserError: for a data set without captions, or a negative prompt, which nothing encodes here.
    """
    if sample.negative_prompt:
        raise UserError(
            f"config.sample.negative_prompt is {sample.negative_prompt!r}, expected "
            "none for samples of the captions of a data set"
        )
    seed = sample.seed
    order = np.random.default_rng(seed_sequence(seed, Stream.IMAGE)).permutation(len(source))
    images = order[np.arange(count) % len(source)]
    draws = np.asarray([_draw(seed, Stream.CAPTION, i) for i in range(count)], np.uint64)
    names = []
    for image, draw in zip(images.tolist(), draws, strict=True):
        texts = source.captions(image)
        if not texts:
            raise UserError(
                f"{source.folder} holds no captions, expected a data set prepared with a text "
                f"encoder"
            )
        names.append(texts[int(draw % np.uint64(len(texts)))])
    null = source.empty_context if has_null else None
    manifest = source.manifest
    record = {
        "text encoder": manifest.text_encoder,
        "text encoder sha256": manifest.text_encoder_sha256,
    }
    return Conditions(_CaptionStates(source, images, draws), null, tuple(names), record)


@dataclasses.dataclass(frozen=True, eq=False)
class _CaptionStates:
    """States of captions, read when a batch needs them: thirty thousand take 7 GB."""

    source: PreparedData
    images: Int[np.ndarray, " n"]
    draws: UInt64[np.ndarray, " n"]

    @property
    def ndim(self) -> int:
        return 3

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: Int[np.ndarray, " k"]) -> Float[np.ndarray, "k l d"]:
        picked = self.images[indices]
        read = self.source.read(
            picked, np.zeros(len(picked), bool), self.draws[indices], fields=["context"]
        )
        return read["context"]


def _draw(seed: int, stream: Stream, i: int) -> int:
    """A random word of 64 bits that is a function of these three numbers."""
    return int(seed_sequence(seed, stream, i).generate_state(1, np.uint64)[0])
