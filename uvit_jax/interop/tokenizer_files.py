"""Files of CLIP's tokenizer, OpenAI's or the hub's: found, and read as vocabulary and merges."""

import gzip
import json
import pathlib
import re

from tokenizers import pre_tokenizers

from uvit_jax.errors import UserError
from uvit_jax.interop.file_kinds import check_content
from uvit_jax.interop.hub import WEIGHTS, find_model

START, END = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"

Merges = list[tuple[str, str]]

_MERGES = 49152 - 256 - 2  # merges of its file that OpenAI's code reads; it ignores the rest
_SETS = (("tokenizer.json",), ("vocab.json", "merges.txt"))


def find_tokenizer(name: str) -> pathlib.Path:
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


def read_tokenizer(path: pathlib.Path) -> tuple[dict[str, int], Merges]:
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


def _openai_vocab(text: str) -> tuple[dict[str, int], Merges]:
    """The vocabulary of OpenAI's merges: bytes, bytes that end a word, merges, special tokens."""
    merges = _merges(text)[:_MERGES]
    letters = byte_letters()
    tokens = [
        *letters,
        *(letter + END_OF_WORD for letter in letters),
        *map("".join, merges),
        START,
        END,
    ]
    return {token: number for number, token in enumerate(tokens)}, merges


def _merges(text: str) -> Merges:
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


def byte_letters() -> list[str]:
    """The letter for each byte, in the vocabulary's order: printable bytes first, as themselves."""
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def pad_token(path: pathlib.Path) -> str:
    """The padding token in the tokenizer's folder: "!" beside Stable Diffusion 2's tower."""
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        if path.with_name(file).is_file():
            token = json.loads(path.with_name(file).read_bytes()).get("pad_token")
            if token is not None:
                return str(token["content"] if isinstance(token, dict) else token)
    return END
