"""What samples are made of: classes, prompts or captions in turn, or nothing; and what they are
called in pictures.
"""

import dataclasses
import hashlib
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, UInt64

from uvit_jax.data.prepared.prepared_data import PreparedData
from uvit_jax.data.training_data import TrainingData
from uvit_jax.errors import UserError
from uvit_jax.experiment.checks import check_context
from uvit_jax.experiment.config import Experiment
from uvit_jax.experiment.text_states import TextStates
from uvit_jax.models.uvit import check_labels
from uvit_jax.parallel.mesh import batch_parts
from uvit_jax.randomness import Stream, seed_sequence

Condition = Int[np.ndarray, " n"] | Float[np.ndarray, "n l d"]


@runtime_checkable
class Values(Protocol):
    """Conditions by their numbers: an array, or what reads them when they are asked for."""

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
        """Whether these are labels."""
        return self.values is not None and self.values.ndim == 1

    def of(self, indices: Int[np.ndarray, " n"]) -> Condition | None:
        """The conditions of the samples of these numbers."""
        return None if self.values is None else self.values[indices % len(self.values)]

    def names_of(self, indices: Int[np.ndarray, " n"]) -> list[str] | None:
        """What is written beside these samples."""
        return [self.names[i % len(self.names)] for i in indices] if self.names else None

    def columns(self, count: int) -> int:
        """Columns of a picture of this many samples: about a square and, where values are few, each
        column of one.
        """
        values = 0 if self.values is None else len(self.values)
        each = values if 1 <= values <= (16 if self.labels else 8) else 1
        # One column a value, or several such groups side by side; of two alike, the wider.
        widths = range(each * -(-count // each), 0, -each)
        return min(widths, key=lambda columns: abs(math.log(columns / -(-count // columns))))


def label_conditions(experiment: Experiment, class_names: Sequence[str]) -> Conditions:
    """The classes of `config.sample.labels`.

    Raises:
      UserError: for what is no list of classes, or a class outside the table.
    """
    text, classes = experiment.sample.labels.strip(), experiment.num_real_classes
    if not classes:
        if text not in ("", "all"):
            raise UserError(
                f"config.sample.labels is {text!r}, expected 'all' for a model without labels"
            )
        return Conditions()
    if text == "all":
        asked = np.arange(classes)
    else:
        try:
            asked = np.array([int(part) for part in text.split(",")])
        except ValueError:
            raise UserError(
                f"config.sample.labels is {text!r}, expected 'all' or classes as in '0,3,7'"
            ) from None
        try:
            check_labels(asked, classes)
        except UserError as error:
            raise UserError(f"config.sample.labels: {error}") from None
    names = tuple(
        class_names[label] if label < len(class_names) else str(label) for label in asked.tolist()
    )
    return Conditions(asked.astype(np.int32), experiment.null_label, names)


def read_prompts(prompts: str) -> tuple[str, ...]:
    """The texts of `config.sample.prompts`: those of a text file, one a line, or those between
    semicolons.

    Raises:
      UserError: for a file that can't be read, or no prompt at all.
    """
    path = pathlib.Path(prompts)
    if prompts.endswith(".txt"):
        try:
            texts = path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise UserError(
                f"config.sample.prompts is {prompts!r}, which can't be read ({error.strerror})"
            ) from None
        except UnicodeDecodeError:
            raise UserError(
                f"config.sample.prompts is {prompts!r}, expected a file of text in UTF-8"
            ) from None
    else:
        texts = prompts.split(";")
    found = tuple(text.strip() for text in texts if text.strip())
    if not found:
        raise UserError(
            f"config.sample.prompts is {prompts!r}, expected texts between semicolons, or a .txt "
            f"file"
        )
    return found


def prompt_conditions(experiment: Experiment, text: TextStates) -> Conditions:
    """The prompts of `config.sample.prompts`; the empty one is that of no text, or
    `config.sample.negative_prompt`.

    Raises:
      UserError: for prompts that can't be read, or states that don't fit the model.
    """
    prompts = read_prompts(experiment.sample.prompts)
    check_context(experiment, text.shape, f"{text.encoder.name!r} (config.text_encoder.name) has")
    texts = [*prompts, experiment.sample.negative_prompt]
    # A few texts are a batch of their own, as they are here; many are encoded in the batches asked
    # for.
    each = min(text.batch_size, -(-len(texts) // batch_parts(text.mesh)))
    *states, null = dataclasses.replace(text, batch_size=each)(texts)
    record = {
        "text encoder": text.encoder.name,
        "text encoder sha256": text.encoder.sha256,
        "text encoder dtype": experiment.text_encoder.dtype,
        "token ids sha256": hashlib.sha256(text.tokenizer.tokenize(texts).tobytes()).hexdigest(),
    }
    return Conditions(
        np.stack(states), null if experiment.diffusion.p_uncond else None, prompts, record
    )


def caption_conditions(experiment: Experiment, source: PreparedData, count: int) -> Conditions:
    """The first captions of images spread over a data set, as many as there are pictures to draw."""
    picks = np.unique(np.linspace(0, len(source) - 1, count).round().astype(np.int64))
    states = np.stack([source.context(int(i), 0) for i in picks])
    null = source.empty_context if experiment.diffusion.p_uncond else None
    return Conditions(states, null, tuple(source.captions(int(i))[0] for i in picks))


_READ_AT_ONCE = 1024


def data_labels(experiment: Experiment, source: TrainingData, count: int) -> Conditions:
    """Labels as often as the data set has them: sample i has the label of an example drawn by
    (seed, i) alone.

    Raises:
      UserError: for a model or a data set without labels.
    """
    if not experiment.num_real_classes or source.num_classes != experiment.num_real_classes:
        raise UserError(
            f"config.sample.labels is 'data', but {source.name!r} (config.data.source) has "
            f"{source.num_classes} classes and the model {experiment.num_real_classes}: expected a "
            "model of its labels"
        )
    seed = experiment.sample.seed
    examples = np.asarray(
        [_draw(seed, Stream.LABEL, i) % len(source) for i in range(count)], np.int64
    )
    # Prepared images are read with their labels, and those of fifty thousand don't stand in memory
    # at once.
    parts = np.split(examples, range(_READ_AT_ONCE, count, _READ_AT_ONCE))
    read = [
        source.read(part, np.zeros(len(part), bool), fields=["label"])["label"] for part in parts
    ]
    labels = np.concatenate(read)
    names = tuple(source.class_names[label] for label in labels.tolist())
    return Conditions(labels.astype(np.int32), experiment.null_label, names)


def data_captions(experiment: Experiment, source: PreparedData, count: int) -> Conditions:
    """Sample i has a caption of the i-th image of a shuffled data set, both drawn by the seed;
    images are had again where there are more samples than images. States are read when they are
    asked for.

    Raises:
      UserError: for a data set without captions, or a negative prompt, which nothing encodes here.
    """
    if experiment.sample.negative_prompt:
        raise UserError(
            f"config.sample.negative_prompt is {experiment.sample.negative_prompt!r}, expected "
            "none for samples of the captions of a data set"
        )
    seed = experiment.sample.seed
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
    null = source.empty_context if experiment.diffusion.p_uncond else None
    manifest = source.manifest
    record = {
        "text encoder": manifest.text_encoder,
        "text encoder sha256": manifest.text_encoder_sha256,
    }
    return Conditions(_CaptionStates(source, images, draws), null, tuple(names), record)


@dataclasses.dataclass(frozen=True, eq=False)
class _CaptionStates:
    """States of captions in a prepared data set, read when they are asked for: thirty thousand take
    7 GB.
    """

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
