"""What samples are made of: classes, prompts or captions in turn, or nothing; and what they are called in pictures."""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from uvit_jax.data.records import RecordSource
from uvit_jax.errors import UserError
from uvit_jax.jobs.checks import check_context
from uvit_jax.jobs.config import Experiment
from uvit_jax.jobs.text import TextStates
from uvit_jax.models.uvit import check_labels

Condition = Int[np.ndarray, " n"] | Float[np.ndarray, "n l d"]


@dataclasses.dataclass(frozen=True)
class Conditions:
    """Sample i is of `values[i % len(values)]`.

    Attributes:
      values: labels `[k]` or states of texts `[k, l, d]`; None for a model without either.
      null: the empty label, or states of the empty text or of a negative prompt `[l, d]`; None without guidance.
      names: what each value is called; empty where there are none.
    """

    values: Condition | None = None
    null: int | Float[np.ndarray, "l d"] | None = None
    names: tuple[str, ...] = ()

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

    @property
    def columns(self) -> int | None:
        """Columns of a picture in which each value has its own; None where that reads badly."""
        count = 0 if self.values is None else len(self.values)
        return count if 2 < count <= (16 if self.labels else 8) else None


def label_conditions(experiment: Experiment, class_names: Sequence[str]) -> Conditions:
    """The classes of `config.sample.labels`.

    Raises:
      UserError: for what is no list of classes, or a class outside the table.
    """
    text, classes = experiment.sample.labels.strip(), experiment.num_real_classes
    if not classes:
        if text not in ("", "all"):
            raise UserError(f"config.sample.labels is {text!r}, expected 'all' for a model without labels")
        return Conditions()
    if text == "all":
        asked = np.arange(classes)
    else:
        try:
            asked = np.array([int(part) for part in text.split(",")])
        except ValueError:
            raise UserError(f"config.sample.labels is {text!r}, expected 'all' or classes as in '0,3,7'") from None
        try:
            check_labels(asked, classes)
        except UserError as error:
            raise UserError(f"config.sample.labels: {error}") from None
    names = tuple(class_names[label] if label < len(class_names) else str(label) for label in asked.tolist())
    return Conditions(asked.astype(np.int32), experiment.null_label, names)


def read_prompts(prompts: str) -> tuple[str, ...]:
    """The texts of `config.sample.prompts`: those of a text file, one a line, or those between semicolons.

    Raises:
      UserError: for a file that can't be read, or no prompt at all.
    """
    path = pathlib.Path(prompts)
    if prompts.endswith(".txt"):
        try:
            texts = path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise UserError(f"config.sample.prompts is {prompts!r}, which can't be read ({error.strerror})") from None
        except UnicodeDecodeError:
            raise UserError(f"config.sample.prompts is {prompts!r}, expected a file of text in UTF-8") from None
    else:
        texts = prompts.split(";")
    found = tuple(text.strip() for text in texts if text.strip())
    if not found:
        raise UserError(f"config.sample.prompts is {prompts!r}, expected texts between semicolons, or a .txt file")
    return found


def prompt_conditions(experiment: Experiment, text: TextStates) -> Conditions:
    """The prompts of `config.sample.prompts`; the empty one is that of no text, or `config.sample.negative_prompt`.

    Raises:
      UserError: for prompts that can't be read, or states that don't fit the model.
    """
    prompts = read_prompts(experiment.sample.prompts)
    check_context(experiment, text.shape, f"{text.encoder.name!r} (config.text_encoder.name) has")
    *states, null = text([*prompts, experiment.sample.negative_prompt])
    return Conditions(np.stack(states), null if experiment.diffusion.p_uncond else None, prompts)


def caption_conditions(experiment: Experiment, source: RecordSource, count: int) -> Conditions:
    """The first captions of images spread over a data set, as many as there are pictures to draw."""
    picks = np.unique(np.linspace(0, len(source) - 1, count).round().astype(np.int64))
    states = np.stack([source.context(int(i), 0) for i in picks])
    null = source.empty_context if experiment.diffusion.p_uncond else None
    return Conditions(states, null, tuple(source.captions(int(i))[0] for i in picks))
