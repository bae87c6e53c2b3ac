import dataclasses
import json

import pytest

from uvit_jax.data.prepared.manifest import FORMAT_VERSION, Manifest
from uvit_jax.data.prepared.shard import Shard
from uvit_jax.errors import UserError

SHARDS = (
    Shard("a.array_record", 3, 6, 65536, "0" * 64),
    Shard("b.array_record", 2, 4, 131072, "f" * 64),
)
MANIFEST = Manifest(
    source="imagenet-folder",
    split="train",
    kind="moments",
    image_size=16,
    shape=(2, 2, 8),
    dtype="float16",
    mirror=True,
    class_names=("Katze", "Žába", 'a "dog"'),
    num_classes=3,
    autoencoder="stabilityai/sd-vae-ft-ema",
    autoencoder_sha256="ab" * 32,
    scale=0.18215,
    shift=0.0609,
    mean=(0.5, -1.0, 0.1, 1e-9),
    std=(1.0, 2.0, 3.3, 4.0),
    text_encoder="",
    crop="adm",
    skipped=1,
    shards=SHARDS,
)

CAPTIONS = {
    "num_captions": 8,
    "captions_name": "a.captions",
    "captions_bytes": 99,
    "captions_sha256": "1" * 64,
}
TEXT_SHARD = dataclasses.replace(SHARDS[0], **CAPTIONS)
TEXT = dataclasses.replace(
    MANIFEST,
    text_encoder="openai/clip-vit-large-patch14",
    text_encoder_sha256="cd" * 32,
    context_shape=(77, 768),
    context_dtype="float16",
    empty_context_sha256="ef" * 32,
    shards=(
        TEXT_SHARD,
        dataclasses.replace(
            SHARDS[1],
            num_captions=2,
            captions_name="b.captions",
            captions_bytes=33,
            captions_sha256="2" * 64,
        ),
    ),
)


def change(folder, **fields):
    """Rewrites fields of a saved manifest, without its checks."""
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_what_was_saved_is_loaded(tmp_path):
    MANIFEST.save(tmp_path / "new" / "folder")
    assert Manifest.load(tmp_path / "new" / "folder") == MANIFEST
    unlabelled = dataclasses.replace(MANIFEST, class_names=(), num_classes=0, scale=None, shards=())
    unlabelled.save(tmp_path)
    assert Manifest.load(tmp_path) == unlabelled


def test_counts_are_those_of_the_shards():
    assert (MANIFEST.num_examples, MANIFEST.num_records) == (5, 10)


def test_the_file_is_json_for_people_version_first_and_a_line_a_shard(tmp_path):
    MANIFEST.save(tmp_path)
    text = (tmp_path / "manifest.json").read_text(encoding="utf-8")
    assert text.splitlines()[1] == f'  "format_version": {FORMAT_VERSION},'
    assert "Žába" in text
    first = next(line for line in text.splitlines() if "array_record" in line)
    assert first.strip().startswith('{"name": "a.array_record", "num_examples": 3')
    assert len(text.splitlines()) == 2 + len(json.loads(text)) + 1 + len(SHARDS)


def test_nothing_appears_where_the_folder_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^cannot write .*expected a writable folder$"):
        MANIFEST.save(tmp_path / "file" / "folder")


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(
        UserError,
        match=r"^cannot read .*manifest.json: No such file.*expected the folder of a prepared",
    ):
        Manifest.load(tmp_path / "absent")


def test_the_refusal_of_a_folder_of_images_names_the_job_that_prepares_it(tmp_path):
    (tmp_path / "0.png").touch()
    with pytest.raises(
        UserError, match=rf"^{tmp_path} is not a prepared .*--job prepare .*\.source={tmp_path} --"
    ):
        Manifest.load(tmp_path)


@pytest.mark.parametrize("size", [0, 1, 100, -3])
def test_a_torn_manifest_is_damaged(tmp_path, size):
    MANIFEST.save(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(
        UserError, match=r"manifest.json is damaged \(.*\); expected the JSON that preparing wrote"
    ):
        Manifest.load(tmp_path)


@pytest.mark.parametrize("content", ["[]", "{}", '{"format_version": "1"}', "3"])
def test_other_json_is_not_a_manifest(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"manifest.json has no format_version"):
        Manifest.load(tmp_path)


def test_a_newer_version_is_refused_before_its_fields_are_read(tmp_path):
    (tmp_path / "manifest.json").write_text('{"format_version": 2, "something": "else"}')
    with pytest.raises(
        UserError, match=r"manifest.json: format_version is 2, expected at most 1: update uvit_jax"
    ):
        Manifest.load(tmp_path)


def test_an_unknown_and_a_missing_field_are_named(tmp_path):
    MANIFEST.save(tmp_path)
    change(tmp_path, colour="red")
    with pytest.raises(UserError, match=r"the manifest has the unknown field 'colour'$"):
        Manifest.load(tmp_path)
    MANIFEST.save(tmp_path)
    values = json.loads((tmp_path / "manifest.json").read_text())
    del values["std"], values["shards"][1]["sha256"]
    (tmp_path / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"a shard lacks the field 'sha256'$"):
        Manifest.load(tmp_path)
    values["shards"] = []
    (tmp_path / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"the manifest lacks the field 'std'$"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("image_size", "16", r"image_size is '16', expected int"),
        ("image_size", True, r"image_size is True, expected int"),
        ("mirror", 1, r"mirror is 1, expected bool"),
        ("shape", [2, 2, "8"], r"shape is \[2, 2, '8'\], expected tuple\[int, ...\]"),
        ("scale", "big", r"scale is 'big', expected float \| None"),
        ("shards", {}, r"shards is \{\}, expected tuple"),
        ("shards", [3], r"a shard is 3, expected the fields name, num_examples"),
        ("kind", "images", r"kind is 'images', expected one of pixels, moments, latents"),
        ("kind", "pixels", r"dtype is 'float16', expected uint8 for pixels"),
        ("dtype", "float64", r"dtype is 'float64', expected one of uint8"),
        ("shape", [2, 2], r"shape is \(2, 2\), expected three positive numbers"),
        ("shape", [2, 2, 7], r"shape is \(2, 2, 7\), expected as many means as logvars"),
        (
            "mirror",
            False,
            r"num_records of a.array_record is 6, expected 3 \(1 for each of its 3 examples\)",
        ),
        ("num_classes", 2, r"class_names has 3 entries, expected none or num_classes = 2"),
        ("mean", [0, 0, 0], r"mean is \(0.0, 0.0, 0.0\), expected 4 finite numbers"),
        ("std", [1, 1, 1, float("nan")], r"std is .*nan.*, expected 4 finite numbers"),
        ("std", [1, 1, 1, 0], r"std is .*, expected positive numbers"),
        ("scale", -1, r"scale is -1.0, expected positive"),
        ("shift", float("inf"), r"shift is inf, expected a finite number"),
        ("skipped", -1, r"skipped is -1, expected a number from 0 up"),
        ("shards", [dataclasses.asdict(SHARDS[0])] * 2, r"shards has a name twice"),
        (
            "shards",
            [dataclasses.asdict(SHARDS[0]) | {"name": "../a"}],
            r"name is '../a', expected the name of a file",
        ),
        (
            "shards",
            [dataclasses.asdict(SHARDS[0]) | {"sha256": "0x"}],
            r"sha256 of a.array_record is '0x'",
        ),
        (
            "shards",
            [dataclasses.asdict(SHARDS[0]) | {"num_bytes": -1}],
            r"num_bytes of a.array_record is -1",
        ),
    ],
)
def test_a_field_that_cannot_be_is_named_with_file_value_and_expectation(
    tmp_path, field, value, said
):
    MANIFEST.save(tmp_path)
    change(tmp_path, **{field: value})
    with pytest.raises(UserError, match=rf"^{tmp_path}/manifest.json: {said}"):
        Manifest.load(tmp_path)


def test_a_text_data_set_is_loaded_as_it_was_saved_with_or_without_labels(tmp_path):
    TEXT.save(tmp_path)
    assert Manifest.load(tmp_path) == TEXT
    assert (TEXT.has_text, TEXT.num_captions, TEXT.num_bytes) == (
        True,
        10,
        65536 + 99 + 131072 + 33,
    )
    assert TEXT.shards[0].files == (TEXT_SHARD, Shard("a.captions", 8, 8, 99, "1" * 64))
    text = (tmp_path / "manifest.json").read_text()
    assert '  "context_shape": [77, 768],\n' in text
    assert '"num_captions": 8, "captions_name": "a.captions", "captions_bytes": 99, ' in text
    unlabelled = dataclasses.replace(TEXT, class_names=(), num_classes=0, text_encoder_sha256="")
    unlabelled.save(tmp_path)
    assert Manifest.load(tmp_path) == unlabelled


def test_without_text_the_file_says_nothing_of_it(tmp_path):
    MANIFEST.save(tmp_path)
    text = (tmp_path / "manifest.json").read_text()
    assert '"text_encoder": ""' in text
    assert "caption" not in text
    assert "context" not in text
    assert (MANIFEST.has_text, MANIFEST.num_captions, MANIFEST.num_bytes) == (
        False,
        0,
        65536 + 131072,
    )
    assert SHARDS[0].files == (SHARDS[0],)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"text_encoder": ""},
            r"text_encoder_sha256 is 'cd.*', expected none without a text_encoder",
        ),
        (
            {"text_encoder": "", "text_encoder_sha256": ""},
            r"context_shape is \(77, 768\), expected none without a text",
        ),
        (
            {"text_encoder_sha256": "cd"},
            r"text_encoder_sha256 is 'cd', expected 64 hexadecimal digits",
        ),
        (
            {"context_shape": [77]},
            r"context_shape is \(77,\), expected two positive numbers, \(tokens, width\)",
        ),
        ({"context_shape": [77, 0]}, r"context_shape is \(77, 0\), expected two positive numbers"),
        ({"context_shape": [77, 7.5]}, r"context_shape is \[77, 7.5\], expected tuple\[int, ...\]"),
        (
            {"context_dtype": "uint8"},
            r"context_dtype is 'uint8', expected one of float16, bfloat16, float32",
        ),
        (
            {"empty_context_sha256": ""},
            r"empty_context_sha256 is '', expected 64 hexadecimal digits",
        ),
    ],
)
def test_a_field_of_text_that_cannot_be_is_named(tmp_path, fields, said):
    TEXT.save(tmp_path)
    change(tmp_path, **fields)
    with pytest.raises(UserError, match=rf"^{tmp_path}/manifest.json: {said}"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"captions_name": "../c"}, r"name is '../c', expected the name of a file"),
        ({"captions_name": "b.captions"}, r"shards has a name twice"),
        ({"captions_name": "b.array_record"}, r"shards has a name twice"),
        ({"captions_bytes": -1}, r"num_bytes of a.captions is -1, expected a number from 0 up"),
        ({"captions_sha256": "?"}, r"sha256 of a.captions is '\?', expected 64 hexadecimal digits"),
        (
            {"num_captions": 2},
            r"num_captions of a.array_record is 2, expected at least one for each of its 3 "
            r"examples",
        ),
        (
            {"captions_name": ""},
            r"num_captions of a.array_record is 8, expected none without captions_name",
        ),
        (
            dict.fromkeys(CAPTIONS, None),
            r"captions_name of a.array_record is '', expected the name of a file",
        ),
    ],
)
def test_captions_of_a_shard_that_cannot_be_are_named(tmp_path, fields, said):
    TEXT.save(tmp_path)
    shard = dataclasses.asdict(TEXT_SHARD) | fields
    shards = [{name: value for name, value in shard.items() if value is not None}]
    change(tmp_path, shards=[*shards, dataclasses.asdict(TEXT.shards[1])])
    with pytest.raises(UserError, match=rf"^{tmp_path}/manifest.json: {said}"):
        Manifest.load(tmp_path)


def test_captions_without_a_text_encoder_are_refused(tmp_path):
    MANIFEST.save(tmp_path)
    change(tmp_path, shards=[dataclasses.asdict(TEXT_SHARD)])
    with pytest.raises(
        UserError,
        match=r"captions_name of a.array_record is 'a.captions', expected none without a text",
    ):
        Manifest.load(tmp_path)


def test_sides_that_differ_and_a_constant_channel_are_loaded_as_they_were_saved(tmp_path):
    wide = {
        "kind": "pixels",
        "dtype": "uint8",
        "image_size": (8, 16),
        "shape": (8, 16, 4),
        "std": (1.0, 0.0, 2.0, 1.0),
    }
    manifest = dataclasses.replace(MANIFEST, exif=True, **wide)
    manifest.save(tmp_path)
    assert Manifest.load(tmp_path) == manifest


@pytest.mark.parametrize("size", [[8], [8, 16, 3], [8, 0], "8", [8.0, 16]])
def test_a_size_that_is_neither_a_number_nor_two_is_refused(tmp_path, size):
    MANIFEST.save(tmp_path)
    change(tmp_path, image_size=size)
    with pytest.raises(UserError, match="image_size is "):
        Manifest.load(tmp_path)
