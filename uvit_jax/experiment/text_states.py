"""Texts to the states that a text model attends to: tokenized and encoded on the mesh."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from uvit_jax.errors import UserError
from uvit_jax.experiment.sections import TextEncoderSection
from uvit_jax.interop.clip_text import RANDOM, TextEncoder, open_text_encoder
from uvit_jax.interop.tokenizer import Tokenizer, open_tokenizer
from uvit_jax.parallel.arrays import fetch, place
from uvit_jax.parallel.batches import padded
from uvit_jax.parallel.mesh import batch_parts, batch_sharding, replicated


@dataclasses.dataclass(frozen=True)
class TextStates:
    """A tokenizer and a text encoder on the devices.

    Attributes:
      encoder: the text tower.
      tokenizer: of the ids it knows.
      mesh: the devices; each holds the whole tower and encodes its own part of a batch.
      batch_size: texts that each device encodes at a time.
      dtype: that the tower computes in.
    """

    encoder: TextEncoder
    tokenizer: Tokenizer
    mesh: Mesh
    batch_size: int
    dtype: str = "float32"

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of one text's states: tokens and width."""
        return self.encoder.config.context_length, self.encoder.config.width

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, "n l d"]:
        """The last hidden states of each text, float32, on the host."""
        rows = self.batch_size * batch_parts(self.mesh)
        states = []
        for first in range(0, len(texts), rows):
            ids = self.tokenizer.tokenize(texts[first : first + rows])
            states.append(fetch(self._encode(padded(ids, rows)))[: len(ids)])
        return np.concatenate(states) if states else np.zeros((0, *self.shape), np.float32)

    @functools.cached_property
    def _encode(self) -> Callable[[np.ndarray], jax.Array]:
        params = place(self.encoder.params, replicated(self.mesh))
        program = jax.jit(self.encoder.encode)
        return lambda ids: program(params, place(ids, batch_sharding(self.mesh)))


def open_text_states(section: TextEncoderSection, mesh: Mesh) -> TextStates:
    """Reads the text encoder that the section names, and its tokenizer.

    Raises:
      UserError: for a name that leads to none, or a tokenizer of more ids than the tower knows.
    """
    if section.name.startswith(RANDOM) and not section.tokenizer:
        raise UserError(
            f"config.text_encoder.tokenizer is empty, expected a tokenizer's file or folder: "
            f"{section.name!r} has none"
        )
    try:
        encoder = open_text_encoder(section.name, dtype=section.dtype)
    except UserError as error:
        raise UserError(f"config.text_encoder.name is {section.name!r}: {error}") from None
    try:
        tokenizer = open_tokenizer(
            section.tokenizer or section.name, context_length=encoder.config.context_length
        )
        encoder.check_tokenizer(tokenizer)
    except UserError as error:
        raise UserError(
            f"config.text_encoder.tokenizer is {section.tokenizer!r}: {error}"
        ) from None
    return TextStates(encoder, tokenizer, mesh, section.batch_size, section.dtype)


def read_prompts(prompts: str) -> tuple[str, ...]:
    """Reads the texts of `config.sample.prompts`: lines of a .txt file, or between semicolons.

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
