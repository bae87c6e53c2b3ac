import gzip
import io
import json
import logging
import pathlib
import pickle
import tarfile

import numpy as np
import pytest

from tests.data.image_sources.noise_png import pixels, png
from tests.jobs.preparation.prepare_runs import all_of, experiment, half_made
from uvit_jax.data.image_sources.crops import CROPS
from uvit_jax.data.image_sources.image_source import CorruptImage, ImageSource, listing_sha256
from uvit_jax.data.image_sources.registry import open_image_source
from uvit_jax.errors import UserError
from uvit_jax.jobs import prepare


def write_tar(path: pathlib.Path, members: dict[str, bytes]) -> pathlib.Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture(scope="module")
def tars(tmp_path_factory) -> pathlib.Path:
    """Three tars of four images each, in three classes, with captions."""
    folder = tmp_path_factory.mktemp("tars")
    for tar in range(3):
        members = {}
        for i in range(4 * tar, 4 * tar + 4):
            members |= {f"d/{i:03d}.cls": b"%d\n" % (i % 3), f"d/{i:03d}.png": png(i)}
            members |= {f"d/{i:03d}.txt": f"picture {i}".encode()}
        write_tar(folder / f"train-{tar:03d}.tar", members)
    return folder


def test_samples_of_all_tars_are_read_by_index_with_their_classes_and_captions(tars):
    source = open_image_source(f"wds:{tars}/train-{{000..002}}.tar", texts=True)
    assert isinstance(source, ImageSource)
    assert (source.name, len(source)) == ("wds:train-{000..002}.tar", 12)
    assert list(source.class_names) == ["0", "1", "2"]
    for i in (11, 0, 5):  # at random, and in another process
        found = pickle.loads(pickle.dumps(source))[i]
        np.testing.assert_array_equal(found.image, pixels(i))
        assert (found.label, found.captions) == (i % 3, (f"picture {i}",))
        assert found.name == f"train-{i // 4:03d}.tar/d/{i:03d}.png"


@pytest.mark.parametrize(
    ("pattern", "count"),
    [("train-{000,002}.tar", 8), ("train-*.tar", 12), ("train-001.tar", 4), ("*-{1..2}.tar", 0)],
)
def test_braces_and_wildcards_name_tars_as_in_a_shell(tars, pattern, count):
    if count:
        assert len(open_image_source(f"wds:{tars}/{pattern}")) == count
    else:
        with pytest.raises(UserError, match=r"there is no file '.*\*-1\.tar', expected 'wds:<path"):
            open_image_source(f"wds:{tars}/{pattern}")


def test_a_json_gives_label_and_caption_and_names_are_classes(tmp_path):
    fields = [{"label": "dog", "caption": "a dog"}, {"label": "cat", "caption": "a cat"}]
    members = {f"{i}.json": json.dumps(each).encode() for i, each in enumerate(fields)}
    members |= {
        "0.seg.png": png(5),
        "0.png": png(0),
        "1.img.png": png(1),
        "1.npy": b"",
        "._1.png": b"",
    }
    source = open_image_source(f"wds:{write_tar(tmp_path / 'a.tar', members)}", texts=True)
    assert list(source.class_names) == ["cat", "dog"]
    assert [source.label(i) for i in range(2)] == [1, 0]
    assert [source[i].captions for i in range(2)] == [("a dog",), ("a cat",)]
    for i in range(2):  # the sample's own image, not its mask
        np.testing.assert_array_equal(source[i].image, pixels(i))


def test_a_listing_is_of_members_and_their_sizes_wherever_the_tars_are(tars, tmp_path):
    whole = open_image_source(f"wds:{tars}/train-*.tar")
    moved = tmp_path / "train-000.tar"
    moved.write_bytes((tars / "train-000.tar").read_bytes())
    assert listing_sha256(open_image_source(f"wds:{moved}")) == listing_sha256(
        open_image_source(f"wds:{tars}/train-000.tar")
    )
    assert listing_sha256(whole) != listing_sha256(open_image_source(f"wds:{moved}"))


BROKEN = {
    "000.png": (png(0)[:60], r"a\.tar/000\.png of wds:a\.tar can't be decoded"),
    "001.png": (b"no image", "starts with the bytes b'no image'"),
    "002.npy": (b"", r"^a\.tar/002 has \.cls, \.txt, \.npy, expected one image"),
    "003.cls": (b" ", r'^a\.tar/003\.png: "label" is "", expected the name of a class or its'),
    "004.json": (b"{", r"^a\.tar/004\.png: its \.json is not JSON"),
    "005.txt": (b"\xff", r"its \.txt has the byte 0xff at offset 0, expected UTF-8"),
    "006.jpg": (png(6), r"^a\.tar/006 has \.png, \.jpg, expected one image"),
}


@pytest.mark.parametrize("member", BROKEN)
def test_a_broken_member_is_named_and_the_others_are_fine(tmp_path, member):
    key, broken = int(member[:3]), BROKEN[member]
    members = {}
    for i in range(8):
        members |= {f"{i:03d}.png": png(i), f"{i:03d}.cls": b"0", f"{i:03d}.txt": b"a"}
    if member == "002.npy":
        del members["002.png"]
    members[member] = broken[0]
    source = open_image_source(f"wds:{write_tar(tmp_path / 'a.tar', members)}", texts=True)
    with pytest.raises(CorruptImage, match=broken[1]):
        source[key]
    np.testing.assert_array_equal(source[7].image, pixels(7))


def test_only_regular_members_are_read(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"0.png": png(0)})
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(1))
    with tarfile.open(path, "a") as tar:
        for name, kind in (("1.png", tarfile.SYMTYPE), ("2.png", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, str(secret)
            tar.addfile(info)
    assert open_image_source(f"wds:{path}").files == ["a.tar/0.png"]


def damaged(path: pathlib.Path, how: str) -> None:
    data = path.read_bytes()
    if how == "header":
        data = data[:1024] + b"x" * 512 + data[1536:]
    changed = {
        "header": data,
        "cut in a header": data[:1400],
        "cut": data[:1536],
        "gzip": gzip.compress(data),
        "empty": b"",
        "text": b"hello" * 200,
    }
    path.write_bytes(changed[how])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("header", r"a\.tar is damaged at byte 1,024, expected the header"),
        ("cut in a header", r"a\.tar is damaged at byte 1,024, expected the header"),
        ("cut", r"a\.tar is not a whole tar \(unexpected end of data\)"),
        ("gzip", r"a\.tar is compressed \(gzip\), expected a plain tar"),
        ("empty", r"a\.tar is not a whole tar \(empty file\)"),
        ("text", r"a\.tar is not a whole tar"),
    ],
)
def test_a_damaged_tar_is_named_and_no_part_of_it_is_taken_for_the_whole(tmp_path, how, message):
    path = write_tar(tmp_path / "a.tar", {"0.cls": b"0", "0.dat": b"1", "1.cls": b"1"})
    damaged(path, how)
    with pytest.raises(UserError, match=message):
        open_image_source(f"wds:{path}")


def test_a_tar_without_its_end_is_warned_of(tmp_path, caplog):
    path = write_tar(tmp_path / "a.tar", {"0.png": png(0)})
    path.write_bytes(path.read_bytes()[: 512 + -(-len(png(0)) // 512) * 512])
    with caplog.at_level(logging.WARNING):
        assert len(open_image_source(f"wds:{path}")) == 1
    assert "may be cut short" in caplog.text


def test_a_split_and_a_member_twice_are_refused(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"0.png": png(0)})
    with pytest.raises(UserError, match=r"^split is 'val', which 'wds:.* has not, expected none"):
        open_image_source(f"wds:{path}", "val")
    with tarfile.open(path, "a") as tar:
        tar.addfile(tarfile.TarInfo("0.png"))
    with pytest.raises(UserError, match=r"a\.tar has '0\.png' twice"):
        open_image_source(f"wds:{path}")


def test_a_prepared_set_of_tars_resumes_to_the_same_bytes_and_leaves_broken_members_out(
    tars, tmp_path
):
    source = f"wds:{tars}/train-*.tar"
    job = experiment(source, tmp_path / "whole")
    assert "prepared 12 images" in prepare.run(job, tmp_path)
    expected = np.stack([CROPS["adm"](pixels(i), 16) for i in range(12)])
    found = all_of(tmp_path / "whole")
    np.testing.assert_array_equal(found["x"], expected)
    assert found["label"].tolist() == [i % 3 for i in range(12)]

    resumed = experiment(source, tmp_path / "resumed")
    half_made(resumed)
    prepare.run(resumed, tmp_path)
    for shard in (tmp_path / "whole").glob("*.array_record"):
        assert shard.read_bytes() == (tmp_path / "resumed" / shard.name).read_bytes()
    verifying = experiment(source, tmp_path / "resumed", prepare__verify=True)
    assert "verified 12 images" in prepare.run(verifying, tmp_path)

    broken = write_tar(tmp_path / "b.tar", {"0.png": png(0), "1.png": b"?", "2.txt": b"no image"})
    with pytest.raises(UserError, match=r"b\.tar/1\.png .*config\.prepare\.on_error=skip"):
        prepare.run(experiment(f"wds:{broken}", tmp_path / "b"), tmp_path)
    skipping = experiment(f"wds:{broken}", tmp_path / "b", prepare__on_error="skip")
    assert "1 image, 2 left out" in prepare.run(skipping, tmp_path)
    assert "b.tar/2 has .txt" in (tmp_path / "b" / "skipped.txt").read_text()
