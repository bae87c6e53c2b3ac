import dataclasses
import hashlib
import io
import json
import os
import pickle
import struct

import numpy as np
import pytest

from tests.data.prepared_sets import CONTEXT, arrays, captions_of, prepare
from uvit_jax.data.prepared.empty_context import save_empty_context
from uvit_jax.data.prepared.manifest import Manifest
from uvit_jax.data.prepared.prepared_data import PreparedData
from uvit_jax.data.prepared.records import encode_caption, encode_example
from uvit_jax.data.prepared.shard_writer import ShardWriter
from uvit_jax.data.prepared.verification import verify
from uvit_jax.data.training_data import TrainingData
from uvit_jax.errors import UserError

SHAPE = (4, 4, 8)
STATES_BYTES = 5 * 6 * 2
TEXT = {"context_shape": CONTEXT, "context_dtype": "float16"}


def read(source, indices, mirrored=False, draws=None, fields=None):
    indices = np.asarray(indices)
    mirrored = np.broadcast_to(mirrored, indices.shape).copy()
    return source.read(
        indices, mirrored, None if draws is None else np.asarray(draws, np.uint64), fields
    )


def alter(path, offset, bits=0xFF):
    data = bytearray(path.read_bytes())
    data[offset] ^= bits
    path.write_bytes(data)


def replace_shard(folder, number, **fields):
    """Changes what the manifest says of a shard."""
    manifest = Manifest.load(folder)
    shards = list(manifest.shards)
    shards[number] = dataclasses.replace(shards[number], **fields)
    dataclasses.replace(manifest, shards=tuple(shards)).save(folder)


def write_raw(folder, name, records):
    """Writes records of any bytes; returns the file's size and SHA-256."""
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(folder / name), "group_size:1,uncompressed")
    for record in records:
        writer.write(record)
    writer.close()
    data = (folder / name).read_bytes()
    return len(data), hashlib.sha256(data).hexdigest()


def rewrite_examples(folder, number, records):
    size, digest = write_raw(folder, f"{number:05d}.array_record", records)
    replace_shard(folder, number, num_bytes=size, sha256=digest)


def rewrite_captions(folder, number, records):
    size, digest = write_raw(folder, f"{number:05d}.captions.array_record", records)
    replace_shard(folder, number, captions_bytes=size, captions_sha256=digest)


def test_a_record_says_where_its_captions_are_and_a_caption_is_states_then_text():
    array = np.arange(6, dtype=np.float16).reshape(1, 2, 3)
    assert encode_example(-1, array, range(7, 12)) == struct.pack("<iii6e", -1, 7, 5, *range(6))
    states = np.arange(4, dtype=np.float32).reshape(2, 2)
    assert encode_caption(states, "Žába\n") == struct.pack("<4f", 0, 1, 2, 3) + "Žába\n".encode()
    assert encode_caption(states[::-1], "") == struct.pack("<4f", 2, 3, 0, 1)


@pytest.mark.parametrize("context_dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize(
    ("mirror", "dtype"), [(False, "float16"), (True, "bfloat16"), (False, "uint8")]
)
def test_the_captions_written_are_read_across_shards_in_any_order(
    tmp_path, mirror, dtype, context_dtype
):
    kind = "pixels" if dtype == "uint8" else "moments"
    x, labels = prepare(
        tmp_path, kind=kind, dtype=dtype, mirror=mirror, context_dtype=context_dtype
    )
    source = PreparedData(tmp_path)
    assert isinstance(source, TrainingData)
    assert source.context_shape == CONTEXT
    rng = np.random.default_rng(1)
    order, draws = rng.permutation(15), rng.integers(2**64, size=15, dtype=np.uint64)
    found = read(source, order, mirror, draws)
    assert found.keys() == {"x", "label", "context"}
    np.testing.assert_array_equal(found["x"], x[order, int(mirror)])
    np.testing.assert_array_equal(found["label"], labels[order])
    assert (found["context"].dtype, found["context"].shape) == (
        np.dtype(context_dtype),
        (15, *CONTEXT),
    )
    assert found["label"].flags.c_contiguous
    assert found["context"].flags.c_contiguous
    for i, draw, context in zip(order, draws, found["context"], strict=True):
        captions = captions_of(i, context_dtype)
        np.testing.assert_array_equal(context, captions[int(draw) % len(captions)][0])
    for i in range(15):
        assert source.captions(i) == [text for _, text in captions_of(i)]
        for which, (states, _) in enumerate(captions_of(i, context_dtype)):
            np.testing.assert_array_equal(source.context(i, which), states)
    assert verify(tmp_path) == source.manifest
    assert source.manifest.num_captions == sum(1 + i % 4 for i in range(15))


def test_without_draws_it_is_the_first_caption(tmp_path):
    prepare(tmp_path, context_dtype="float16")
    context = read(PreparedData(tmp_path), np.arange(15))["context"]
    np.testing.assert_array_equal(context[:, 0, 0], 10 * np.arange(15))


def test_every_caption_of_an_example_is_drawn_as_often(tmp_path):
    prepare(tmp_path, context_dtype="float16")
    draws = np.random.default_rng(0).integers(2**64, size=3000, dtype=np.uint64)
    for example, count in ((4, 1), (5, 2), (6, 3)):
        context = read(PreparedData(tmp_path), np.full(3000, example), False, draws)["context"]
        counts = np.bincount(context[:, 0, 0].astype(int) - 10 * example, minlength=count)
        assert len(counts) == count
        assert np.abs(counts - 3000 / count).max() < 4 * np.sqrt(3000 / count)


def test_only_the_fields_asked_for_are_read_and_without_context_no_file_of_captions_is(tmp_path):
    x, _ = prepare(tmp_path, context_dtype="float16")
    for shard in Manifest.load(tmp_path).shards:
        (tmp_path / shard.captions_name).write_bytes(bytes(shard.captions_bytes))
    source = PreparedData(tmp_path)
    found = read(source, [14, 2], fields=("label", "x"))
    assert list(found) == ["label", "x"]
    np.testing.assert_array_equal(found["x"], x[[14, 2], 0])
    assert read(source, [14, 2], fields=["label"]).keys() == {"label"}
    path = tmp_path / "00002.captions.array_record"
    for fields in (None, ("context",)):
        with pytest.raises(UserError, match=rf"^{path} .*prepare the data set again$"):
            read(source, [14, 2], fields=fields)


def test_a_data_set_without_text_has_no_captions(tmp_path):
    prepare(tmp_path)
    source = PreparedData(tmp_path)
    assert (source.context_shape, source.captions(3)) == ((), [])
    assert read(source, [3], draws=[7]).keys() == {"x", "label"}
    said = rf"^{tmp_path} holds no captions, expected a data set prepared with a text encoder$"
    for ask in (
        lambda: read(source, [3], fields=("context",)),
        lambda: source.context(3, 0),
        lambda: source.empty_context,
    ):
        with pytest.raises(UserError, match=said):
            ask()


def test_an_empty_batch_and_a_caption_that_is_not_there(tmp_path):
    prepare(tmp_path, context_dtype="float16")
    source = PreparedData(tmp_path)
    assert read(source, np.arange(0), draws=np.arange(0))["context"].shape == (0, *CONTEXT)
    for which in (-1, 3):
        with pytest.raises(IndexError, match=rf"got caption {which} of the 3 of example 6$"):
            source.context(6, which)
    with pytest.raises(IndexError, match="of 15"):
        source.captions(15)


def test_a_shard_without_examples_and_a_data_set_without_labels(tmp_path):
    prepare(tmp_path, sizes=(0, 2, 0, 3), classes=0, context_dtype="float16")
    source = PreparedData(tmp_path)
    np.testing.assert_array_equal(read(source, np.arange(5))["context"][:, 0, 0], 10 * np.arange(5))
    assert set(read(source, np.arange(5))["label"]) == {-1}
    verify(tmp_path)


def test_a_source_can_be_pickled_after_it_has_read(tmp_path):
    prepare(tmp_path, context_dtype="float16")
    source = PreparedData(tmp_path)
    read(source, [1])
    again = pickle.loads(pickle.dumps(source))
    assert again.captions(7) == source.captions(7)
    np.testing.assert_array_equal(again.empty_context, source.empty_context)


def test_images_and_captions_share_the_files_that_may_be_open(tmp_path, monkeypatch):
    prepare(tmp_path, sizes=(2,) * 12, context_dtype="float16")
    monkeypatch.setattr("resource.getrlimit", lambda which: (12, 12))
    source = PreparedData(tmp_path)
    np.testing.assert_array_equal(
        read(source, np.arange(24))["context"][:, 0, 0], 10 * np.arange(24)
    )
    links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    opened = [
        os.readlink(link)
        for link in links
        if os.path.exists(link) and str(tmp_path) in os.readlink(link)
    ]
    assert (len(opened), sum(".captions." in path for path in opened)) == (6, 3)


@pytest.mark.parametrize("context_dtype", ["float16", "bfloat16", "float32"])
def test_the_empty_context_is_numpys_own_file_in_floats(tmp_path, context_dtype):
    prepare(tmp_path, context_dtype=context_dtype)
    stored = np.load(tmp_path / "empty_context.npy", allow_pickle=False)
    assert stored.dtype == np.dtype("float32" if context_dtype == "bfloat16" else context_dtype)
    found = PreparedData(tmp_path).empty_context
    assert found.dtype == np.dtype(context_dtype)
    np.testing.assert_array_equal(found, np.full(CONTEXT, -0.5))


def test_another_empty_context_is_refused_when_the_data_set_is_opened(tmp_path):
    prepare(tmp_path, context_dtype="float16")
    path = tmp_path / "empty_context.npy"
    expected = Manifest.load(tmp_path).empty_context_sha256

    def refused(said):
        for opened in (PreparedData, verify):
            with pytest.raises(UserError, match=rf"^{said}$"):
                opened(tmp_path)

    digest = save_empty_context(tmp_path, np.zeros(CONTEXT, np.float16))
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    refused(
        rf"{path} has SHA-256 {digest}, expected {expected}: copy or prepare the data set again"
    )
    for states, said in (
        (np.zeros((5, 7), np.float16), r"is float16 \(5, 7\), expected floats \(5, 6\)"),
        (np.zeros(CONTEXT, np.int32), r"is int32 \(5, 6\), expected floats \(5, 6\)"),
        (np.full(CONTEXT, np.inf, np.float32), "holds NaN or infinity, expected finite numbers"),
        (
            np.array([[{}]]),
            r"is not an array \(.*allow_pickle=False.*\), expected the states of the empty caption",
        ),
    ):
        buffer = io.BytesIO()
        np.save(buffer, states)
        path.write_bytes(buffer.getvalue())
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        dataclasses.replace(Manifest.load(tmp_path), empty_context_sha256=digest).save(tmp_path)
        refused(f"{path} {said}")
    path.unlink()
    refused(rf"cannot read {path}: No such file.*; expected the states of the empty caption")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^cannot write .*expected a writable folder$"):
        save_empty_context(tmp_path / "file", np.zeros(CONTEXT, np.float16))


def test_a_missing_or_truncated_file_of_captions_is_named_when_the_data_set_is_opened(tmp_path):
    prepare(tmp_path, context_dtype="float16")
    path = tmp_path / "00001.captions.array_record"
    size = path.stat().st_size
    os.truncate(path, size - 1)
    for opened in (PreparedData, verify):
        with pytest.raises(
            UserError,
            match=rf"^{path} has {size - 1} bytes, expected {size}: copy or prepare it again$",
        ):
            opened(tmp_path)
    path.unlink()
    with pytest.raises(
        UserError, match=rf"^cannot read {path}: No such file.*; expected a shard of the manifest$"
    ):
        PreparedData(tmp_path)


def test_altered_bytes_end_in_an_error_with_the_captions_file_and_record(tmp_path):
    prepare(tmp_path, context_dtype="float16")
    path = tmp_path / "00001.captions.array_record"
    # Example 7 is this shard's third: before it come 2 + 3 captions.
    alter(path, path.read_bytes().index("Žába 7, said 2".encode()), bits=1)
    source = PreparedData(tmp_path)
    assert read(source, [7, 7, 7], draws=[0, 1, 3])["context"][:, 0, 0].tolist() == [70, 71, 73]
    said = (
        rf"^{path} record 7 is damaged \(Corrupted .*hash mismatch.*\): prepare the data set again$"
    )
    for ask in (
        lambda: read(source, [0, 7], draws=[0, 2]),
        lambda: source.captions(7),
        lambda: source.context(7, 2),
        lambda: verify(tmp_path),
    ):
        with pytest.raises(UserError, match=said):
            ask()


def test_captions_of_another_text_data_set_are_refused(tmp_path):
    x, _ = prepare(tmp_path, sizes=(3,), context_dtype="float16")
    spans = (range(1), range(1, 3), range(3, 6))
    head = [encode_example(0, array, span) for array, span in zip(x[:, 0], spans, strict=True)]
    path = tmp_path / "00000.array_record"
    for number, span, said in (
        (1, range(1, 1), r"it has 0 captions from number 1 on"),
        (2, range(-3, 0), r"it has 3 captions from number -3 on"),
    ):
        rewrite_examples(
            tmp_path,
            0,
            [*head[:number], encode_example(0, x[number, 0], span), *head[number + 1 :]],
        )
        with pytest.raises(
            UserError, match=rf"^{path} record {number} is damaged \({said}\): prepare"
        ):
            read(PreparedData(tmp_path), [0, number])
    rewrite_examples(tmp_path, 0, [*head[:2], encode_example(0, x[2, 0], range(6, 9))])
    captions = tmp_path / "00000.captions.array_record"
    with pytest.raises(
        UserError, match=rf"^{captions} record 6 is damaged \(.*\): prepare the data set again$"
    ):
        read(PreparedData(tmp_path), [2])


def test_verify_names_images_whose_captions_do_not_follow_each_other(tmp_path):
    x, _ = prepare(tmp_path, sizes=(3,), mirror=True, context_dtype="float16")
    path, spans = tmp_path / "00000.array_record", [range(1), range(1, 3), range(3, 6)]

    def check(found, said):
        rewrite_examples(
            tmp_path,
            0,
            [encode_example(0, x[i // 2, i % 2], captions) for i, captions in enumerate(found)],
        )
        with pytest.raises(UserError, match=rf"^{path} {said}$"):
            verify(tmp_path)

    right = [span for span in spans for _ in range(2)]
    check(
        [*right[:2], range(2, 4), range(2, 4), *right[4:]],
        "record 2 has 2 captions from 2 on, expected at least one from 1 on",
    )
    check(
        [*right[:4], range(3, 3), range(3, 3)],
        "record 4 has 0 captions from 3 on, expected at least one from 3 on",
    )
    check(
        [*right[:3], range(1, 2), *right[4:]],
        "record 3 has 1 captions from 1 on, expected those of the image that it mirrors, 2 from 1 "
        "on",
    )
    check(
        [*right[:4], range(3, 5), range(3, 5)],
        "has 5 captions, expected 6: prepare the data set again",
    )
    rewrite_examples(tmp_path, 0, [encode_example(0, x[i // 2, i % 2], right[i]) for i in range(6)])
    verify(tmp_path)


def test_verify_names_a_caption_that_is_not_as_it_should_be(tmp_path):
    prepare(tmp_path, sizes=(3,), context_dtype="float16")
    path = tmp_path / "00000.captions.array_record"
    good = [encode_caption(states, text) for i in range(3) for states, text in captions_of(i)]
    nan = np.full(CONTEXT, np.nan, np.float16)
    for records, said in (
        (
            [*good[:4], encode_caption(nan, "a"), good[5]],
            "record 4 holds NaN or infinity, expected finite numbers",
        ),
        (
            [*good[:3], good[3] + b"\xe9", *good[4:]],
            r"record 3 is damaged \(its text has the byte 0xe9, which is not UTF-8\): prepare the "
            r"data set again",
        ),
        (
            [good[0], good[1][: STATES_BYTES - 1], *good[2:]],
            rf"record 1 is damaged \(it has {STATES_BYTES - 1} bytes instead of at least "
            rf"{STATES_BYTES}\): prepare .*",
        ),
        (good[:5], "has 5 records, expected 6: prepare the data set again"),
    ):
        rewrite_captions(tmp_path, 0, records)
        with pytest.raises(UserError, match=rf"^{path} {said}$"):
            verify(tmp_path)
    rewrite_captions(tmp_path, 0, good)
    verify(tmp_path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    replace_shard(tmp_path, 0, captions_sha256="0" * 64)
    with pytest.raises(
        UserError,
        match=rf"^{path} has SHA-256 {digest}, expected 0{{64}}: prepare the data set again$",
    ):
        verify(tmp_path)


def test_a_shard_and_its_captions_appear_together_and_are_described(tmp_path):
    x = arrays(4, SHAPE, "float16")
    name = "00000-of-00004.array_record"
    with ShardWriter(tmp_path, name, SHAPE, "float16", mirror=True, **TEXT) as writer:
        for i, pair in enumerate(x):
            writer.write(3, pair[0], pair[1], captions=captions_of(i))
        hidden = {".00000-of-00004.array_record.tmp", ".00000-of-00004.captions.array_record.tmp"}
        assert {path.name for path in tmp_path.iterdir()} == hidden
    shard = writer.shard
    assert {path.name for path in tmp_path.iterdir()} == {
        name,
        "00000-of-00004.captions.array_record",
    }
    assert (shard.num_examples, shard.num_records, shard.num_captions) == (4, 8, 1 + 2 + 3 + 4)
    assert [file.name for file in shard.files] == [name, "00000-of-00004.captions.array_record"]
    assert [file.num_records for file in shard.files] == [8, 10]
    for file in shard.files:
        data = (tmp_path / file.name).read_bytes()
        assert (file.num_bytes, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert type(shard)(**json.loads(json.dumps(dataclasses.asdict(shard)))) == shard


def test_a_shard_without_captions_is_as_it_was_before_there_were_any(tmp_path):
    array = arrays(1, SHAPE, "float16")[0, 0]
    with ShardWriter(tmp_path, "a", SHAPE, "float16", mirror=False) as writer:
        writer.write(1, array)
    assert (writer.shard.captions, writer.shard.files) == (None, (writer.shard,))
    write_raw(tmp_path, "b", [struct.pack("<i", 1) + array.tobytes()])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("fault", ["in the block", "between the files"])
def test_a_shard_whose_writing_ends_early_leaves_nothing_that_counts(tmp_path, monkeypatch, fault):
    array, replace = arrays(1, SHAPE, "float16")[0, 0], os.replace

    def write(text, error=None):
        with ShardWriter(
            tmp_path, "a.array_record", SHAPE, "float16", mirror=False, **TEXT
        ) as writer:
            writer.write(0, array, captions=[(np.ones(CONTEXT, np.float16), text)])
            if error:
                raise error
        return writer.shard

    first = write("first")

    def interrupted(temporary, path):
        if ".captions." not in str(path):
            raise KeyboardInterrupt
        replace(temporary, path)

    if fault == "between the files":
        monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write("second", KeyboardInterrupt() if fault == "in the block" else None)
    left = {path.name for path in tmp_path.iterdir()}
    if fault == "in the block":
        assert left == {file.name for file in first.files}
        for file in first.files:
            assert hashlib.sha256((tmp_path / file.name).read_bytes()).hexdigest() == file.sha256
    else:  # The first shard's captions are gone, and so is the first shard.
        assert left == {"a.captions.array_record"}
    monkeypatch.undo()
    assert write("first") == first


def test_a_text_shard_takes_only_images_with_captions_of_its_own_shape(tmp_path):
    array, states = np.zeros(SHAPE, np.float16), np.zeros(CONTEXT, np.float16)
    for text, captions in (
        (TEXT, None),
        (TEXT, []),
        (TEXT, [(states, "a"), (states[:1], "b")]),
        (TEXT, [(states.astype(np.float32), "a")]),
        (TEXT, [(states, "half a character \ud800")]),
        ({}, [(states, "a")]),
    ):
        with (
            pytest.raises(ValueError, match=r"^write: |surrogates not allowed$"),
            ShardWriter(tmp_path, "a", SHAPE, "float16", mirror=False, **text) as writer,
        ):
            writer.write(0, array, captions=captions)
    assert not list(tmp_path.iterdir())
    with pytest.raises(
        ValueError, match=r"^ShardWriter: context_shape is \(5, 6\) and context_dtype None$"
    ):
        ShardWriter(tmp_path, "a", SHAPE, "float16", mirror=False, context_shape=CONTEXT)


def test_a_folder_where_the_captions_cannot_be_written_is_named_at_once_and_left_clean(tmp_path):
    (tmp_path / ".a.captions.tmp").mkdir()
    (tmp_path / ".a.captions.tmp" / "full").write_text("")
    with (
        pytest.raises(
            UserError,
            match=rf"^cannot write {tmp_path}/a.captions: Is a directory; expected a writable",
        ),
        ShardWriter(tmp_path, "a", SHAPE, "float16", mirror=False, **TEXT),
    ):
        pytest.fail("the block must not be entered")
    assert [path.name for path in tmp_path.iterdir()] == [".a.captions.tmp"]
