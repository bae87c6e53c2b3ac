"""The tokenizer of CLIP: captions, cleaned as OpenAI's code cleans them, to token ids."""

import dataclasses
import html
import logging
import re
import zlib
from collections.abc import Sequence

import ftfy
import numpy as np
import tokenizers
from jaxtyping import Int32
from tokenizers import models, pre_tokenizers

from uvit_jax.errors import UserError
from uvit_jax.interop.tokenizer_files import (
    END,
    END_OF_WORD,
    START,
    Merges,
    byte_letters,
    find_tokenizer,
    pad_token,
    read_tokenizer,
)

LOG = logging.getLogger("uvit_jax")

CONTEXT_LENGTH = 77

# The pieces of a text, within which bytes are merged: OpenAI's expression, in which the two special
# tokens are pieces.
_PIECES = (
    rf"(?i:{re.escape(START)}|{re.escape(END)}|'s|'t|'re|'ve|'m|'ll|'d|\p{{L}}+|\p{{N}}|"
    r"[^\s\p{L}\p{N}]+)"
)


def clean(text: str) -> str:
    """The text as CLIP's tokenizer takes it: repaired, unescaped, single blanks, lower case.

    Follows OpenAI's `simple_tokenizer.py`: ftfy, HTML entities unescaped twice, blanks stripped and
    collapsed.
    """
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Tokenizer:
    """CLIP's byte-level byte pair encoding of cleaned texts.

    Attributes:
      name: the name it was opened by.
      backend: cuts a cleaned text into pieces and merges their bytes.
      vocab_size: number of tokens.
      start: id in front of every text.
      end: id behind it.
      pad: id of the padding: `end` in OpenAI's towers.
      context_length: ids to a text.
    """

    name: str
    backend: tokenizers.Tokenizer = dataclasses.field(repr=False)
    vocab_size: int
    start: int
    end: int
    pad: int
    context_length: int = CONTEXT_LENGTH
    _said: set[str] = dataclasses.field(default_factory=set, init=False, repr=False)

    def tokenize(self, texts: Sequence[str]) -> Int32[np.ndarray, "n l"]:
        """Ids `[n, context_length]`: start, tokens, end, padding.

        Texts that are too long are cut before the end.

        Only the first text to be cut is named in the log; `tokenize_with_lengths` gives the length
        of each.
        """
        ids, lengths = self.tokenize_with_lengths(texts)
        cut = np.flatnonzero(lengths > self.context_length)
        if cut.size and not self._said:
            first = texts[cut[0]]
            LOG.warning(
                "%r... has %d tokens and is cut to %d, as all longer texts are (said once)",
                first[:60],
                lengths[cut[0]],
                self.context_length,
            )
            self._said.add("cut")
        return ids

    def tokenize_with_lengths(
        self, texts: Sequence[str]
    ) -> tuple[Int32[np.ndarray, "n l"], Int32[np.ndarray, " n"]]:
        """Ids as `tokenize` gives them, and the uncut length of each text with start and end."""
        if isinstance(texts, str):
            raise TypeError("texts is one string, expected a sequence of them")
        ids = np.full((len(texts), self.context_length), self.pad, np.int32)
        lengths = np.zeros(len(texts), np.int32)
        for row, tokens in enumerate(self._encode([clean(text) for text in texts])):
            lengths[row] = len(tokens) + 2
            kept = [self.start, *tokens[: self.context_length - 2], self.end]
            ids[row, : len(kept)] = kept
        return ids, lengths

    def _encode(self, texts: list[str]) -> list[list[int]]:
        encoded = [
            encoding.ids for encoding in self.backend.encode_batch(texts, add_special_tokens=False)
        ]
        for row, text in enumerate(texts):
            if START in text or END in text:
                encoded[row] = self._encode_with_special_tokens(text)
        return encoded

    def _encode_with_special_tokens(self, text: str) -> list[int]:
        """Ids of a text that spells special tokens out; the backend would merge their bytes."""
        special = {START: self.start, END: self.end}
        ids = []
        for piece, _ in self.backend.pre_tokenizer.pre_tokenize_str(text):
            ids += (
                [special[piece]]
                if piece in special
                else [token.id for token in self.backend.model.tokenize(piece)]
            )
        return ids


def open_tokenizer(name: str, *, context_length: int = CONTEXT_LENGTH) -> Tokenizer:
    """The tokenizer of this name.

    The name of a text tower, on the hub or a folder, leads to the tokenizer beside it.

    Args:
      name: a path, or a name on the Hugging Face hub (see `find_model`), of one of
        - OpenAI's merges, `bpe_simple_vocab_16e6.txt.gz` (also unpacked);
        - a folder with `tokenizer.json`, or with `vocab.json` and `merges.txt` (also one of these
        files);
        - a pipeline's folder, with those in its `tokenizer`, or the pipeline's `text_encoder`.
      context_length: ids to a text.

    Raises:
      UserError: for a name that leads to none of these, or files of another tokenizer than CLIP's.
    """
    if context_length < 2:
        raise UserError(
            f"context_length is {context_length}, expected at least 2, a start and an end"
        )
    path = find_tokenizer(name)
    try:
        vocab, merges = read_tokenizer(path)
        backend = _build(vocab, merges)
        pad = pad_token(path)
    except (
        OSError,
        EOFError,
        zlib.error,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
    ) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{path} can't be read as a CLIP tokenizer ({type(error).__name__}: {error})"
        ) from None
    if missing := [token for token in (START, END, *byte_letters(), pad) if token not in vocab]:
        raise UserError(
            f"{path} lacks the token {missing[0]!r}, expected the byte-level vocabulary of a CLIP "
            f"tokenizer"
        )
    return Tokenizer(
        name=name,
        backend=backend,
        vocab_size=max(vocab.values()) + 1,
        start=vocab[START],
        end=vocab[END],
        pad=vocab[pad],
        context_length=context_length,
    )


def _build(vocab: dict[str, int], merges: Merges) -> tokenizers.Tokenizer:
    # A tokenizer.json's own cleaning and cutting is ignored: versions differ in entities and
    # accents.
    try:
        model = models.BPE(
            vocab=vocab,
            merges=merges,
            continuing_subword_prefix="",
            end_of_word_suffix=END_OF_WORD,
        )
    except Exception as error:  # the library raises no narrower class
        raise ValueError(str(error)) from None
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(_PIECES), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return backend
