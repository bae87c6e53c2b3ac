"""The tokenizer of CLIP: captions, cleaned as OpenAI's code cleans them, to token ids."""

import dataclasses
import gzip
import html
import json
import logging
import pathlib
import re
import zlib
from collections.abc import Sequence

import ftfy
import numpy as np
import tokenizers
from jaxtyping import Int32
from tokenizers import models, pre_tokenizers

from uvit_jax.errors import UserError
from uvit_jax.interop.file_kinds import check_content
from uvit_jax.interop.hub import WEIGHTS, find_model

LOG = logging.getLogger("uvit_jax")

START, END = "<|startoftext|>", "<|endoftext|>"
CONTEXT_LENGTH = 77

_END_OF_WORD = "</w>"
_MERGES = 49152 - 256 - 2  # merges of its file that OpenAI's code reads; it ignores the rest
# The pieces of a text, within which bytes are merged: OpenAI's expression, in which the two special
# tokens are pieces.
_PIECES = (
    rf"(?i:{re.escape(START)}|{re.escape(END)}|'s|'t|'re|'ve|'m|'ll|'d|\p{{L}}+|\p{{N}}|"
    r"[^\s\p{L}\p{N}]+)"
)
_SETS = (("tokenizer.json",), ("vocab.json", "merges.txt"))


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
    path = _find(name)
    try:
        vocab, merges = _read(path)
        backend = _build(vocab, merges)
        pad = _pad_token(path)
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
    if missing := [token for token in (START, END, *_byte_letters(), pad) if token not in vocab]:
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


def _find(name: str) -> pathlib.Path:
    """The file that holds the tokenizer of this name, the first of a set."""
    path = pathlib.Path(name).expanduser()
    if path.is_file() and not name.endswith(WEIGHTS):
        return path
    if name.endswith(WEIGHTS):
        name = re.sub("[:/]?[^:/]+$", "", name) or "."
    # Pipelines have a tower's tokenizer in a folder beside the tower's.
    beside = re.sub(r"(^|(?<=[:/]))text_encoder(_\d+)?/?$", r"tokenizer\2", name)
    if not pathlib.Path(name).expanduser().exists():
        name = beside
    inside = tuple(tuple(f"tokenizer/{file}" for file in files) for files in _SETS)
    folder = find_model(name, *_SETS, *inside)
    for candidate in (folder, folder / "tokenizer", pathlib.Path(beside).expanduser()):
        for files in _SETS:
            if all((candidate / file).is_file() for file in files):
                return candidate / files[0]
    names = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
    raise UserError(
        f"{folder} holds {names}, expected CLIP's tokenizer: tokenizer.json, or vocab.json and "
        "merges.txt (here or in tokenizer), or name OpenAI's bpe_simple_vocab_16e6.txt.gz"
    )


def _read(path: pathlib.Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges, the first merge first, of a tokenizer's file and the one beside it."""
    check_content(path)
    if path.suffix == ".gz":
        return _openai_vocab(gzip.decompress(path.read_bytes()).decode())
    if path.name == "merges.txt":
        path = path.with_name("vocab.json")
    if path.suffix != ".json":
        return _openai_vocab(path.read_bytes().decode())
    saved = json.loads(path.read_bytes())
    if "model" not in saved:
        beside = path.with_name("merges.txt")
        text = beside.read_bytes().decode()
        check_content(beside)
        return saved, _merges(text)
    model = saved["model"]
    if model.get("type", "BPE") != "BPE":
        raise UserError(f"{path} is a tokenizer of type {model['type']}, expected CLIP's, BPE")
    return model["vocab"], [
        tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]
    ]


def _openai_vocab(text: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The vocabulary of OpenAI's merges: bytes, bytes that end a word, merges, special tokens."""
    merges = _merges(text)[:_MERGES]
    letters = _byte_letters()
    tokens = [
        *letters,
        *(letter + _END_OF_WORD for letter in letters),
        *map("".join, merges),
        START,
        END,
    ]
    return {token: number for number, token in enumerate(tokens)}, merges


def _merges(text: str) -> list[tuple[str, str]]:
    header, *lines = text.strip("\n").split("\n")
    if "#version" not in header:
        raise ValueError(
            f"it opens with {header[:40]!r}, expected a line with #version, then one merge a line"
        )
    merges = []
    for number, line in enumerate(lines, 2):
        first, blank, second = line.rstrip("\r").partition(" ")
        if not blank or " " in second:
            raise ValueError(f"line {number} is {line[:40]!r}, expected two tokens")
        merges.append((first, second))
    return merges


def _byte_letters() -> list[str]:
    """The letter for each byte, in the vocabulary's order: printable bytes first, as themselves."""
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _build(vocab: dict[str, int], merges: list[tuple[str, str]]) -> tokenizers.Tokenizer:
    # A tokenizer.json's own cleaning and cutting is ignored: versions differ in entities and
    # accents.
    try:
        model = models.BPE(
            vocab=vocab,
            merges=merges,
            continuing_subword_prefix="",
            end_of_word_suffix=_END_OF_WORD,
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


def _pad_token(path: pathlib.Path) -> str:
    """The padding token in the tokenizer's folder: "!" beside Stable Diffusion 2's tower."""
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        if path.with_name(file).is_file():
            token = json.loads(path.with_name(file).read_bytes()).get("pad_token")
            if token is not None:
                return str(token["content"] if isinstance(token, dict) else token)
    return END
