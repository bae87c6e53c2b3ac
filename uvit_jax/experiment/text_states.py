"""Texts to the states that a text model attends to: cleaned, tokenized and encoded in batches on
the mesh.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from uvit_jax.errors import UserError
from uvit_jax.experiment.config import Experiment
from uvit_jax.interop.clip_text import RANDOM, TextEncoder, open_text_encoder
from uvit_jax.interop.tokenizer import Tokenizer, open_tokenizer
from uvit_jax.parallel.arrays import fetch, place
from uvit_jax.parallel.mesh import batch_parts, batch_sharding, replicated


@dataclasses.dataclass(frozen=True)
class TextStates:
    """A tokenizer and a text encoder on the devices.

    Attributes:
      encoder: the text tower.
      tokenizer: of the ids it knows.
      mesh: the devices; each holds the whole tower and encodes its own part of a batch.
      batch_size: texts that each device encodes at a time.
    """

    encoder: TextEncoder
    tokenizer: Tokenizer
    mesh: Mesh
    batch_size: int

    @property
    def shape(self) -> tuple[int, int]:
        """Of one text's states: tokens and width."""
        return self.encoder.config.context_length, self.encoder.config.width

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, "n l d"]:
        """The last hidden states of each text, float32, on the host."""
        rows = self.batch_size * batch_parts(self.mesh)
        states = []
        for first in range(0, len(texts), rows):
            ids = self.tokenizer.tokenize(texts[first : first + rows])
            # One shape for every batch, hence one compiled program.
            filled = np.zeros((rows, ids.shape[1]), ids.dtype)
            filled[: len(ids)] = ids
            states.append(fetch(self._encode(filled))[: len(ids)])
        return np.concatenate(states) if states else np.zeros((0, *self.shape), np.float32)

    @functools.cached_property
    def _encode(self) -> Callable[[np.ndarray], jax.Array]:
        params = place(self.encoder.params, replicated(self.mesh))
        program = jax.jit(self.encoder.encode)
        return lambda ids: program(params, place(ids, batch_sharding(self.mesh)))


def open_text_states(experiment: Experiment, mesh: Mesh) -> TextStates:
    """The text encoder that the config names, its weights read.

    Raises:
      UserError: for a name that leads to none, or a tokenizer of more ids than the tower knows.
    """
    section = experiment.text_encoder
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
    return TextStates(encoder, tokenizer, mesh, section.batch_size)
