import contextlib
import dataclasses
import hashlib
import os
import pickle
import resource
import signal
import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.data.prepared_sets import arrays, prepare
from uvit_jax.data.prepared.manifest import Manifest
from uvit_jax.data.prepared.prepared_data import PreparedData
from uvit_jax.data.prepared.records import encode_example
from uvit_jax.data.prepared.shard_writer import ShardWriter
from uvit_jax.data.prepared.verification import verify
from uvit_jax.data.training_data import TrainingData
from uvit_jax.errors import UserError

BYTES = 4 * 4 * 8 * 2  # of a record's array


def read(source, indices, mirrored=False):
    indices = np.asarray(indices)
    return source.read(indices, np.broadcast_to(mirrored, indices.shape).copy())


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


def rewrite_shard(folder, number, examples, shape=(4, 4, 8), dtype="float16"):
    """Writes a shard again, with a manifest that is right about the file."""
    name = Manifest.load(folder).shards[number].name
    with ShardWriter(folder, name, shape, dtype, mirror=False) as writer:
        for label, array in examples:
            writer.write(label, array)
    replace_shard(folder, number, num_bytes=writer.shard.num_bytes, sha256=writer.shard.sha256)


def test_a_record_is_the_label_then_the_bytes_of_the_array():
    array = np.arange(6, dtype=np.float16).reshape(1, 2, 3)
    assert encode_example(-2, array) == struct.pack("<i6e", -2, *range(6))
    assert encode_example(7, array[:, ::-1]) == struct.pack("<i6e", 7, 3, 4, 5, 0, 1, 2)


@pytest.mark.parametrize("dtype", ["uint8", "float16", "bfloat16", "float32"])
@pytest.mark.parametrize("mirror", [False, True])
def test_what_was_written_is_read_across_shards_in_any_order(tmp_path, dtype, mirror):
    kind = "pixels" if dtype == "uint8" else "moments"
    x, labels = prepare(tmp_path, kind=kind, dtype=dtype, mirror=mirror)
    source = PreparedData(tmp_path)
    assert isinstance(source, TrainingData)
    assert (len(source), source.sample_shape, source.num_classes) == (15, (4, 4, 8), 10)
    order = np.random.default_rng(1).permutation(15)
    found = read(source, order)
    assert found.keys() == {"x", "label"}
    assert (found["x"].dtype, found["label"].dtype) == (np.dtype(dtype), np.int32)
    assert found["x"].flags.c_contiguous
    np.testing.assert_array_equal(found["x"], x[order, 0])
    np.testing.assert_array_equal(found["label"], labels[order])
    assert verify(tmp_path) == source.manifest


def test_stored_mirror_images_are_read_where_asked_for(tmp_path):
    x, labels = prepare(tmp_path, mirror=True)
    source = PreparedData(tmp_path)
    assert source.can_mirror
    indices, mirrored = np.array([14, 0, 5, 4, 0]), np.array([True, False, True, False, True])
    found = read(source, indices, mirrored)
    np.testing.assert_array_equal(found["x"], x[indices, mirrored.astype(int)])
    np.testing.assert_array_equal(found["label"], labels[indices])


def test_pixels_without_stored_mirror_images_are_turned_left_to_right(tmp_path):
    x, _ = prepare(tmp_path, kind="pixels", shape=(3, 5, 2), dtype="uint8")
    source = PreparedData(tmp_path)
    assert source.can_mirror
    found = read(source, [3, 9], [True, False])["x"]
    np.testing.assert_array_equal(found[0], x[3, 0, :, ::-1])
    np.testing.assert_array_equal(found[1], x[9, 0])


@pytest.mark.parametrize("kind", ["moments", "latents"])
def test_moments_and_latents_without_stored_mirror_images_have_none(tmp_path, kind):
    prepare(tmp_path, kind=kind)
    source = PreparedData(tmp_path)
    assert not source.can_mirror
    with pytest.raises(
        UserError, match=rf"holds no mirror images, as {kind} can't be mirrored once encoded$"
    ):
        read(source, [1, 2], [False, True])


def test_without_labels_and_without_class_names(tmp_path):
    prepare(tmp_path / "none", classes=0)
    source = PreparedData(tmp_path / "none")
    assert (source.num_classes, tuple(source.class_names)) == (0, ())
    assert set(read(source, np.arange(15))["label"]) == {-1}
    assert verify(tmp_path / "none").num_classes == 0
    prepare(tmp_path / "unnamed", classes=3)
    assert tuple(PreparedData(tmp_path / "unnamed").class_names) == ("0", "1", "2")


def test_an_empty_batch_and_an_example_that_is_not_there(tmp_path):
    prepare(tmp_path)
    source = PreparedData(tmp_path)
    assert read(source, np.arange(0))["x"].shape == (0, 4, 4, 8)
    for index in (-1, 15):
        with pytest.raises(IndexError, match="of 15"):
            read(source, [0, index])


def test_a_shard_without_examples_is_passed_over(tmp_path):
    x, _ = prepare(tmp_path, sizes=(0, 2, 0, 0, 3, 0))
    np.testing.assert_array_equal(read(PreparedData(tmp_path), np.arange(5))["x"], x[:, 0])
    verify(tmp_path)


def test_a_source_can_be_pickled_after_it_has_read(tmp_path):
    x, _ = prepare(tmp_path)
    source = PreparedData(tmp_path)
    read(source, [1])
    np.testing.assert_array_equal(read(pickle.loads(pickle.dumps(source)), [7])["x"][0], x[7, 0])


@pytest.mark.parametrize(
    ("limit", "stay_open"), [(8, 4), (1, 1), (1000, 12), (resource.RLIM_INFINITY, 12)]
)
def test_threads_read_what_one_reads_however_few_files_may_be_open(
    tmp_path, monkeypatch, limit, stay_open
):
    x, _ = prepare(tmp_path, sizes=(3,) * 12)
    monkeypatch.setattr("resource.getrlimit", lambda which: (limit, limit))
    source = PreparedData(tmp_path)
    rng = np.random.default_rng(0)
    orders = [rng.integers(36, size=64) for _ in range(40)]
    with ThreadPoolExecutor(4) as pool:
        for order, found in zip(
            orders, pool.map(lambda order: read(source, order)["x"], orders), strict=True
        ):
            np.testing.assert_array_equal(found, x[order, 0])
    links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    assert (
        sum(os.path.exists(link) and str(tmp_path) in os.readlink(link) for link in links)
        == stay_open
    )


def test_opening_reads_no_shard(tmp_path):
    prepare(tmp_path)
    for shard in Manifest.load(tmp_path).shards:
        (tmp_path / shard.name).write_bytes(bytes(shard.num_bytes))
    assert len(PreparedData(tmp_path)) == 15


def test_a_missing_or_truncated_shard_is_named_when_the_data_set_is_opened(tmp_path):
    prepare(tmp_path)
    path = tmp_path / "00001.array_record"
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


def test_altered_bytes_end_in_an_error_with_shard_and_record(tmp_path):
    x, _ = prepare(tmp_path, mirror=True)
    path = tmp_path / "00001.array_record"
    # Example 3 of this shard: its record 6, and its mirror image's, 7.
    alter(path, path.read_bytes().index(x[8, 1].tobytes()) + 11, bits=1)
    source = PreparedData(tmp_path)
    np.testing.assert_array_equal(read(source, np.arange(15))["x"], x[:, 0])
    said = (
        rf"^{path} record 7 is damaged \(Corrupted .*hash mismatch.*\): prepare the data set again$"
    )
    with pytest.raises(UserError, match=said):
        read(source, [0, 8], True)
    # The others can still be read, and the source still be used.
    np.testing.assert_array_equal(read(source, [7, 9], True)["x"], x[[7, 9], 1])
    with pytest.raises(UserError, match=said):
        verify(tmp_path)


def test_no_altered_byte_is_ever_read_as_data(tmp_path):
    x, labels = prepare(tmp_path, sizes=(12,), shape=(16, 16, 8))
    path = tmp_path / "00000.array_record"
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    found_damage = 0
    for offset in rng.integers(len(whole), size=60):
        path.write_bytes(whole)
        alter(path, offset, bits=1 << rng.integers(8))
        source = PreparedData(tmp_path)
        for i in range(12):
            try:
                found = read(source, [i])
            except UserError:
                found_damage += 1
            else:
                np.testing.assert_array_equal(found["x"][0], x[i, 0])
                assert found["label"] == labels[i]
        with pytest.raises(UserError, match=str(path)):
            verify(tmp_path)
    assert found_damage > 10


def test_an_unreadable_index_is_named(tmp_path):
    prepare(tmp_path, sizes=(4,))
    path = tmp_path / "00000.array_record"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(UserError, match=rf"^{path} .*prepare the data set again$"):
        read(PreparedData(tmp_path), [2])
    with pytest.raises(UserError, match=rf"^{path} .*prepare the data set again$"):
        verify(tmp_path)


def test_verify_goes_through_the_shards_one_by_one(tmp_path):
    prepare(tmp_path)
    seen = []
    assert verify(tmp_path, lambda done, total: seen.append((done, total))) == Manifest.load(
        tmp_path
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_verify_names_a_label_out_of_range_and_a_number_that_is_none(tmp_path):
    x, _ = prepare(tmp_path)
    good = [(1, array) for array in x[:7, 0]]
    path = tmp_path / "00001.array_record"
    rewrite_shard(tmp_path, 1, [*good[:5], (10, x[0, 0]), good[6]])
    with pytest.raises(UserError, match=rf"^{path} record 5 has label 10, expected 0 to 9$"):
        verify(tmp_path)
    rewrite_shard(tmp_path, 1, [*good[:2], (1, np.full_like(x[0, 0], np.inf)), *good[3:]])
    with pytest.raises(
        UserError, match=rf"^{path} record 2 holds NaN or infinity, expected finite numbers$"
    ):
        verify(tmp_path)
    rewrite_shard(tmp_path, 1, good)
    verify(tmp_path)


def test_verify_names_a_record_of_another_length_a_wrong_count_and_a_wrong_sum(tmp_path):
    x, _ = prepare(tmp_path)
    path = tmp_path / "00002.array_record"
    rewrite_shard(
        tmp_path,
        2,
        [(1, array) for array in arrays(3, (4, 4, 2), "float16")[:, 0]],
        shape=(4, 4, 2),
    )
    said = (
        rf"^{path} record 0 is damaged \(it has 68 bytes instead of {BYTES + 4}\): prepare the "
        rf"data set again$"
    )
    with pytest.raises(UserError, match=said):
        verify(tmp_path)
    with pytest.raises(UserError, match=said):
        read(PreparedData(tmp_path), [12])
    rewrite_shard(tmp_path, 2, [(1, array) for array in x[:2, 0]])
    with pytest.raises(
        UserError, match=rf"^{path} has 2 records, expected 3: prepare the data set again$"
    ):
        verify(tmp_path)
    rewrite_shard(tmp_path, 2, [(1, array) for array in x[:3, 0]])
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    replace_shard(tmp_path, 2, sha256="0" * 64)
    with pytest.raises(
        UserError,
        match=rf"^{path} has SHA-256 {digest}, expected 0{{64}}: prepare the data set again$",
    ):
        verify(tmp_path)


def test_a_shard_appears_whole_and_is_described(tmp_path):
    x = arrays(5, (2, 3, 4), "float32")
    with ShardWriter(
        tmp_path / "new", "a.array_record", (2, 3, 4), "float32", mirror=True
    ) as writer:
        for pair in x:
            writer.write(3, pair[0], pair[1])
        assert [path.name for path in (tmp_path / "new").iterdir()] == [".a.array_record.tmp"]
    (path,) = (tmp_path / "new").iterdir()
    data = path.read_bytes()
    shard = writer.shard
    assert (path.name, shard.name) == ("a.array_record", "a.array_record")
    assert (shard.num_examples, shard.num_records) == (5, 10)
    assert (shard.num_bytes, shard.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_a_shard_whose_writing_fails_leaves_what_was_there(tmp_path):
    with ShardWriter(tmp_path, "a", (1, 1, 1), "uint8", mirror=False) as writer:
        writer.write(0, np.zeros((1, 1, 1), np.uint8))
    before = (tmp_path / "a").read_bytes()
    with (
        contextlib.suppress(KeyboardInterrupt),
        ShardWriter(tmp_path, "a", (1, 1, 1), "uint8", mirror=False) as writer,
    ):
        writer.write(1, np.ones((1, 1, 1), np.uint8))
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == before
    assert not hasattr(writer, "shard")


def test_a_shard_takes_only_its_own_arrays(tmp_path):
    array = np.zeros((2, 2, 1), np.float16)
    for mirror, arguments in (
        (False, (array.astype(np.float32),)),
        (False, (array[:1],)),
        (False, (array, array)),
        (True, (array,)),
    ):
        with (
            pytest.raises(ValueError, match=r"^write: "),
            ShardWriter(tmp_path, "a", (2, 2, 1), "float16", mirror=mirror) as writer,
        ):
            writer.write(0, *arguments)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_to_is_named_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(
            UserError, match=rf"^cannot write {tmp_path}/file/a: .*; expected a writable folder$"
        ),
        ShardWriter(tmp_path / "file", "a", (1, 1, 1), "uint8", mirror=False),
    ):
        pytest.fail("the block must not be entered")


def write_a_megabyte(folder):
    with ShardWriter(folder, "a.array_record", (32, 32, 8), "float16", mirror=False) as writer:
        for array in arrays(32, (32, 32, 8), "float16")[:, 0]:
            writer.write(0, array)


def test_a_file_that_may_not_grow_leaves_nothing_and_says_why(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(
            UserError, match=rf"^cannot write {tmp_path}/a.array_record: .*File too large"
        ):
            write_a_megabyte(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing_and_says_so(tmp_path, monkeypatch):
    # Every write to /dev/full fails as on a full disk.
    monkeypatch.setattr("pathlib.Path.with_name", lambda path, name: type(path)("/dev/full"))
    monkeypatch.setattr("pathlib.Path.unlink", lambda path, missing_ok: None)
    said = rf"^no space left in {tmp_path} for a.array_record; free some and start again$"
    with pytest.raises(UserError, match=said):
        write_a_megabyte(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_that_is_not_a_class_is_refused_where_labels_are_read(tmp_path, label):
    # -1 is taken for the last row of a model's table: often the empty label.
    prepare(tmp_path, (2, 2), classes=2)
    array = np.zeros((4, 4, 8), np.float16)
    rewrite_shard(tmp_path, 1, [(1, array), (label, array)])
    source = PreparedData(tmp_path)
    with pytest.raises(
        UserError,
        match=rf"^example 3 of {tmp_path} has the label {label}, expected 0 to 1: prepare",
    ):
        read(source, [0, 3])
    assert read(source, [0, 2])["label"].tolist()[1] == 1
    assert set(source.read(np.array([3]), np.zeros(1, bool), fields=["x"])) == {"x"}
