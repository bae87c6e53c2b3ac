"""The tokenizer against a plain, slow one, on a small vocabulary made here and on OpenAI's."""

import collections
import functools
import gzip
import itertools
import json
import logging
import pathlib
import random
import re
import unicodedata

import numpy as np
import pytest
from huggingface_hub import constants

from tests.reference_weights import read_golden
from uvit_jax.errors import UserError
from uvit_jax.interop.tokenizer import clean, open_tokenizer

SPECIAL = ("<|startoftext|>", "<|endoftext|>")
CORPUS = """a red bus is parked beside a brick building. two cats asleep on a blue \
sofa! it's the dog's 3rd ball;
they've 1024 more... naïve café — 北京 北京 🚌 🚌🚌 москва ѐ ½ ² 京都 it's we're I'd \
you'll !!! ??? the there then theme
photograph of a photographer, and the other brother bathing in the weather"""
FRAGMENTS = [
    *(
        "'s",
        "'T",
        "'ſ",
        "'re",
        "'VE",
        "'ll",
        "''",
        "&amp;",
        "&amp;amp;",
        "&#x27;",
        "&eacute;",
        "&lt;b&gt;",
        "&#x1c;",
    ),
    *(
        "!",
        "...",
        "<",
        "|",
        ">",
        "1024",
        "x",
        "the",
        "dog",
        "photograph",
        "İ",
        "Σ",
        "ΑΣ",
        "ß",
        "ﬁ",
        "&#xFB05;",
        "ｆ",
    ),
    *(
        " ",
        "  ",
        "\t",
        "\n",
        "\x85",
        "\xa0",
        "\u2028",
        "\u3000",
        "\x1c",
        "\x0b",
        "\x00",
        "\u200d",
        "\ud800",
        "\ufeff",
    ),
    *(
        "👩‍👩‍👧",
        "🚌",
        "e\u0301",
        "e&#769;",
        "Ã©",
        "â€™",
        "’",
        "“",
        "½",
        "²",
        "٣",
        "Ⅷ",
        "京",
        "가",
        "ѐ",
        "…",
        "—",
    ),
    *SPECIAL,
]


def random_text(rng):
    def piece():
        kind = rng.random()
        if kind < 0.5:
            return rng.choice(FRAGMENTS)
        first, last = rng.choice([(0x20, 0x7F), (0, 0x3000), (0x3000, 0x10000), (0x10000, 0x20000)])
        return chr(rng.randrange(first, last))

    text = "".join(piece() for _ in range(rng.randrange(14)))
    # Versions of Unicode differ in what is a letter only for characters that older ones don't have.
    return "".join(character for character in text if unicodedata.category(character) != "Cn")


def pieces_of(text):
    """CLIP's pieces of a cleaned text: contractions, runs of letters, digits, runs of others."""
    whole = re.compile("|".join([*map(re.escape, SPECIAL), "'(?:s|t|re|ve|m|ll|d)"]), re.IGNORECASE)

    def kind(character):
        return (
            "blank"
            if character.isspace()
            else {"L": "letter", "N": "number"}.get(unicodedata.category(character)[0])
        )

    pieces, start = [], 0
    while start < len(text):
        if match := whole.match(text, start):
            end = match.end()
        else:
            end = start + 1
            while (
                kind(text[start]) != "number"
                and end < len(text)
                and kind(text[end]) == kind(text[start])
            ):
                end += 1
        if kind(text[start]) != "blank":
            pieces.append(text[start:end])
        start = end
    return pieces


def byte_letters():
    """The letter of each byte: itself if it is printed, else the next one from U+0100 on."""
    printed = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in printed]
    return {byte: chr(byte) for byte in printed} | {
        byte: chr(256 + i) for i, byte in enumerate(others)
    }


LETTERS = byte_letters()


def word_of(piece):
    letters = [LETTERS[byte] for byte in piece.encode()]
    return (*letters[:-1], letters[-1] + "</w>")


def merge(word, pair):
    merged, i = [], 0
    while i < len(word):
        both = word[i : i + 2] == pair
        merged.append(word[i] + word[i + 1] if both else word[i])
        i += 1 + both
    return tuple(merged)


class PlainTokenizer:
    """Byte pair encoding by its definition: of all pairs in a word, the earliest merge first."""

    def __init__(self, merges):
        tokens = [
            *LETTERS.values(),
            *(letter + "</w>" for letter in LETTERS.values()),
            *map("".join, merges),
            *SPECIAL,
        ]
        self.vocab = {token: i for i, token in enumerate(tokens)}
        self.rank = {pair: i for i, pair in enumerate(merges)}
        self.encode_piece = functools.cache(self._encode_piece)

    def _encode_piece(self, piece):
        if piece in SPECIAL:
            return (self.vocab[piece],)
        word = word_of(piece)
        while pairs := [pair for pair in itertools.pairwise(word) if pair in self.rank]:
            word = merge(word, min(pairs, key=self.rank.__getitem__))
        return tuple(self.vocab[token] for token in word)

    def encode(self, cleaned):
        return [token for piece in pieces_of(cleaned) for token in self.encode_piece(piece)]


@pytest.fixture(scope="module")
def merges():
    """The merges that byte pair encoding learns of a few sentences."""
    words = collections.Counter(word_of(piece) for piece in pieces_of(clean(CORPUS)))
    learned = []
    while len(learned) < 100:
        pairs = collections.Counter()
        for word, count in words.items():
            for pair in itertools.pairwise(word):
                pairs[pair] += count
        learned.append(max(sorted(pairs), key=pairs.__getitem__))
        words = collections.Counter(
            {merge(word, learned[-1]): count for word, count in words.items()}
        )
    return learned


@pytest.fixture(scope="module")
def plain(merges):
    return PlainTokenizer(merges)


def openai_file(merges):
    return "\n".join(['"bpe#version: 0.2', *map(" ".join, merges), ""]).encode()


@pytest.fixture(scope="module")
def small(merges, tmp_path_factory):
    path = tmp_path_factory.mktemp("bpe") / "small.txt.gz"
    path.write_bytes(gzip.compress(openai_file(merges)))
    return str(path)


@pytest.fixture(scope="module")
def openai(shared_golden_dir):
    path = shared_golden_dir.parent / "weights" / "bpe_simple_vocab_16e6.txt.gz"
    if not path.is_file():
        pytest.skip(f"no merges of OpenAI's at {path}")
    return str(path)


def write_hub(folder, plain, merges, config=None):
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(plain.vocab))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, merges), ""]))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))


def write_json(folder, plain, merges):
    folder.mkdir(parents=True)
    saved = {
        "normalizer": {"type": "NFC"},
        "model": {"type": "BPE", "vocab": plain.vocab, "merges": merges},
    }
    (folder / "tokenizer.json").write_text(json.dumps(saved))


def assert_equal(tokenizer, plain, texts):
    ids, lengths = tokenizer.tokenize_with_lengths(texts)
    assert ids.dtype == np.int32
    for text, row, length in zip(texts, ids, lengths, strict=True):
        expected = [tokenizer.start, *plain.encode(clean(text)), tokenizer.end]
        assert length == len(expected), ascii(text)
        padding = [tokenizer.end] * (tokenizer.context_length - length)
        assert row.tolist() == expected + padding, ascii(text)


def test_ids_equal_the_plain_encoding_of_anything(small, plain):
    rng = random.Random(0)
    assert_equal(
        open_tokenizer(small, context_length=512),
        plain,
        [CORPUS, *(random_text(rng) for _ in range(4000))],
    )


def test_openai_s_ids_equal_the_plain_encoding_of_anything(openai):
    lines = gzip.decompress(pathlib.Path(openai).read_bytes()).decode().split("\n")
    plain = PlainTokenizer([tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]])
    assert len(plain.vocab) == 49408
    rng = random.Random(1)
    assert_equal(
        open_tokenizer(openai, context_length=512),
        plain,
        [CORPUS, *(random_text(rng) for _ in range(4000))],
    )


def test_openai_s_ids_equal_the_reference(shared_golden_dir, openai):
    golden, metadata = read_golden(shared_golden_dir / "clip_text.safetensors")
    tokenizer = open_tokenizer(openai)
    assert (tokenizer.vocab_size, tokenizer.start, tokenizer.end, tokenizer.pad) == (
        49408,
        49406,
        49407,
        49407,
    )
    assert np.array_equal(tokenizer.tokenize(json.loads(metadata["prompts"])), golden["token_ids"])


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("  Two\t\n cats\u3000asleep ", "two cats asleep"),
        ("rice &amp; sauce", "rice & sauce"),
        ("rice &amp;amp; sauce", "rice & sauce"),
        ("<b>rice</b> &amp;lt; sauce", "<b>rice</b> < sauce"),
        ("cafÃ©", "café"),
        ("it’s “so”", 'it\'s "so"'),
        ("cafe\u0301", "café"),
        ("ΟΔΟΣ", "οδος"),
        ("a&nbsp;b", "a b"),
        ("", ""),
    ],
)
def test_texts_are_cleaned_as_openai_s(text, cleaned):
    assert clean(text) == cleaned


def test_texts_that_clean_alike_have_the_same_ids(small):
    ids = open_tokenizer(small).tokenize(["A  Red &amp;amp; blue bus", "a red & blue bus\n"])
    assert np.array_equal(ids[0], ids[1])


def test_a_long_text_keeps_its_end_and_is_logged_once(small, plain, caplog):
    tokenizer = open_tokenizer(small, context_length=8)
    start, end = tokenizer.start, tokenizer.end
    texts = ["x y", "x " * 6, "x " * 7, "y " * 50]
    x, y = plain.vocab["x</w>"], plain.vocab["y</w>"]
    with caplog.at_level(logging.WARNING, logger="uvit_jax"):
        ids = tokenizer.tokenize(texts)
        assert np.array_equal(tokenizer.tokenize(texts), ids)
    assert ids.tolist() == [
        [start, x, y, end, end, end, end, end],
        [start, x, x, x, x, x, x, end],
        [start, x, x, x, x, x, x, end],
        [start, y, y, y, y, y, y, end],
    ]
    (message,) = caplog.messages
    assert (
        message
        == "'x x x x x x x '... has 9 tokens and is cut to 8, as all longer texts are (said once)"
    )
    assert tokenizer.tokenize_with_lengths(texts)[1].tolist() == [4, 8, 9, 52]


def test_no_texts_have_no_ids(small):
    assert open_tokenizer(small).tokenize([]).shape == (0, 77)


def test_one_string_is_not_a_sequence_of_texts(small):
    with pytest.raises(TypeError, match="texts is one string"):
        open_tokenizer(small).tokenize("a cat")


def test_every_publication_is_the_same_tokenizer(small, plain, merges, tmp_path):
    (tmp_path / "plain.txt").write_bytes(openai_file(merges))
    write_hub(tmp_path / "hub", plain, merges)
    write_hub(tmp_path / "pipeline" / "tokenizer", plain, merges)
    write_json(tmp_path / "new", plain, merges)
    write_json(tmp_path / "strings", plain, [" ".join(pair) for pair in merges])
    (tmp_path / "pipeline" / "text_encoder").mkdir()
    (tmp_path / "hub" / "model.safetensors").touch()
    rng = random.Random(2)
    texts = [CORPUS, *(random_text(rng) for _ in range(200))]
    expected = open_tokenizer(small).tokenize(texts)
    for name in (
        *(
            "plain.txt",
            "hub",
            "hub/vocab.json",
            "hub/merges.txt",
            "hub/model.safetensors",
            "new",
            "new/tokenizer.json",
        ),
        *(
            "strings",
            "pipeline",
            "pipeline/tokenizer",
            "pipeline/text_encoder",
            "pipeline/text_encoder/",
        ),
    ):
        tokenizer = open_tokenizer(f"{tmp_path}/{name}")
        assert tokenizer.name == f"{tmp_path}/{name}"
        assert np.array_equal(tokenizer.tokenize(texts), expected), name


def test_the_tower_s_name_on_the_hub_leads_to_its_tokenizer(
    small, plain, merges, tmp_path, monkeypatch
):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.chdir(tmp_path)
    for model, inside in (("clip", "."), ("pipeline", "tokenizer")):
        folder = tmp_path / f"models--org--{model}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text("a" * 40)
        (folder / "snapshots").mkdir()
        write_hub(folder / "snapshots" / ("a" * 40) / inside, plain, merges)
    expected = open_tokenizer(small).tokenize([CORPUS])
    weights = "text_encoder/model.safetensors"
    for name in (
        "org/clip",
        "org/clip/model.safetensors",
        "org/pipeline",
        "org/pipeline:text_encoder",
    ):
        assert np.array_equal(open_tokenizer(name).tokenize([CORPUS]), expected)
    for name in (f"org/pipeline/{weights}", f"org/pipeline:{weights}"):
        assert np.array_equal(open_tokenizer(name).tokenize([CORPUS]), expected)
    with pytest.raises(UserError, match=rf"{tmp_path}/org/none.* org/none .*127.0.0.1:9"):
        open_tokenizer("org/none")


@pytest.mark.parametrize("token", ["!", {"content": "!"}])
def test_padding_is_what_the_tokenizer_s_folder_says(token, plain, merges, tmp_path):
    write_hub(tmp_path / "sd2", plain, merges, {"pad_token": token})
    row = open_tokenizer(str(tmp_path / "sd2")).tokenize(["x"])[0]
    assert row[:4].tolist() == [
        plain.vocab[token] for token in ("<|startoftext|>", "x</w>", "<|endoftext|>", "!")
    ]
    assert (row[3:] == plain.vocab["!"]).all()


@pytest.mark.parametrize(
    ("config", "message"),
    [({"pad_token": "<pad>"}, "lacks the token '<pad>'"), ([], "can't be read")],
)
def test_padding_with_no_token_is_refused(config, message, plain, merges, tmp_path):
    write_hub(tmp_path / "hub", plain, merges, config)
    with pytest.raises(UserError, match=f"^{tmp_path}/hub/vocab.json {message}"):
        open_tokenizer(str(tmp_path / "hub"))


def test_files_of_something_else_are_refused_by_name(plain, merges, tmp_path):
    def refused(name, content, message):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"^{tmp_path}/.*{message}"):
            open_tokenizer(str(tmp_path / name))

    whole = gzip.compress(openai_file(merges))
    refused("cut.txt.gz", whole[:-20], "cut.txt.gz can't be read as a CLIP tokenizer")
    refused("text.txt.gz", openai_file(merges), "text.txt.gz can't be read as a CLIP tokenizer")
    refused("latin.txt", b"#version: 0.2\n\xff \xff", "latin.txt can't be read as a CLIP tokenizer")
    refused(
        "captions.txt",
        b"a red bus\na cat",
        "it opens with 'a red bus', expected a line with #version",
    )
    refused("three.txt", b"#version: 0.2\na b\na b c", "line 3 is 'a b c', expected two tokens")
    refused("tokens.txt", b"#version: 0.2\nab cd", "can't be read as a CLIP tokenizer")
    refused("empty.json", b"", r"empty.json is empty \(0 bytes\): download")
    for name in ("bpe.txt.gz", "tokenizer.json", "merges.txt"):
        refused(
            name,
            b"version https://git-lfs.github.com/spec/v1\nsize 9",
            f"{name} is a git-LFS pointer to 9 bytes",
        )
        refused(name, b"<!doctype html>", f"{name} is a web page")
        (tmp_path / name).unlink()
    refused("list.json", b"[]", "list.json can't be read as a CLIP tokenizer")
    refused(
        "tokenizer.json",
        b'{"model": {"type": "Unigram"}}',
        "is a tokenizer of type Unigram, expected CLIP's, BPE",
    )
    byte_less = {token: i for token, i in plain.vocab.items() if token != "!"}
    saved = {"model": {"vocab": byte_less, "merges": []}}
    refused(
        "tokenizer.json",
        json.dumps(saved).encode(),
        "lacks the token '!', expected the byte-level vocabulary",
    )
    refused(
        "tokenizer.json", b'{"model": "BPE"}', "tokenizer.json can't be read as a CLIP tokenizer"
    )
    (tmp_path / "vocab.json").write_text(json.dumps(plain.vocab))
    with pytest.raises(UserError, match=r"merges.txt"):
        open_tokenizer(str(tmp_path / "vocab.json"))


def test_a_folder_without_a_tokenizer_says_what_is_expected(tmp_path):
    (tmp_path / "config.json").touch()
    with pytest.raises(
        UserError,
        match=rf"^{tmp_path} holds config.json, expected CLIP's tokenizer: tokenizer.json",
    ):
        open_tokenizer(str(tmp_path))


def test_a_context_has_room_for_a_start_and_an_end(small):
    with pytest.raises(UserError, match="context_length is 1, expected at least 2"):
        open_tokenizer(small, context_length=1)


@pytest.mark.torch
def test_parity_with_transformers(plain, merges, tmp_path):
    transformers = pytest.importorskip("transformers")
    write_hub(tmp_path / "hub", plain, merges)
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path / "hub")
    ours = open_tokenizer(str(tmp_path / "hub"))
    rng = random.Random(3)
    texts = [clean(text) for text in (CORPUS, *(random_text(rng) for _ in range(4000)))]
    # Clean already, all of them; theirs composes accents, knows no ſ for s, and cuts at special
    # tokens before all else.
    texts = [text for text in texts if text == clean(text) == unicodedata.normalize("NFC", text)]
    texts = [text for text in texts if not any(token in text for token in ("ſ", *SPECIAL))]
    assert len(texts) > 2000
    expected = theirs(texts, padding="max_length", truncation=True, max_length=77)["input_ids"]
    assert np.array_equal(ours.tokenize(texts), expected)
