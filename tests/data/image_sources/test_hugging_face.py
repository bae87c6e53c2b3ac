"""Tiny data sets that the library `datasets` itself writes; skipped where it isn't installed."""

import os
import pathlib
import pickle
import sys

import numpy as np
import pytest

from tests.data.image_sources.noise_png import pixels, png
from tests.jobs.preparation.prepare_runs import all_of, experiment, half_made
from uvit_jax.data.image_sources.crops import CROPS
from uvit_jax.data.image_sources.image_source import CorruptImage, ImageSource, listing_sha256
from uvit_jax.data.image_sources.registry import open_image_source
from uvit_jax.errors import UserError
from uvit_jax.jobs import prepare


def test_a_missing_library_is_named_with_its_installation(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        UserError, match=r"^source is 'hf:x', which needs .*: pip install 'uvit-jax\[datasets\]'$"
    ):
        open_image_source("hf:x")


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """The library, with a cache of its own."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
        # After the tests that hide it, so that they count where it is not installed.
        yield pytest.importorskip(
            "datasets", reason="datasets is not installed (pip install 'uvit-jax[datasets]')"
        )


def pets(datasets, **columns):
    """Six images with labels and captions; columns replace some of these, None leaves one out."""
    features = {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=["cat", "dog"]),
        "text": datasets.Value("string"),
    }
    values = {
        "image": [{"bytes": png(i), "path": f"{i}.png"} for i in range(6)],
        "label": [i % 2 for i in range(6)],
        "text": [f"picture {i}" for i in range(6)],
    }
    for name, (kind, column) in columns.items():
        features[name], values[name] = kind, column
    kept = {name: kind for name, kind in features.items() if kind is not None}
    return datasets.Dataset.from_dict(
        {name: values[name] for name in kept}, features=datasets.Features(kept)
    )


@pytest.fixture(scope="module")
def saved(datasets, tmp_path_factory) -> pathlib.Path:
    """Folders `disk` (two splits), `one` (one split) and `parquet` of the same images."""
    folder = tmp_path_factory.mktemp("pets")
    train = pets(datasets)
    datasets.DatasetDict({"train": train, "test": train.select([3])}).save_to_disk(folder / "disk")
    train.save_to_disk(folder / "one")
    (folder / "parquet").mkdir()
    train.to_parquet(folder / "parquet" / "train-00000-of-00001.parquet")
    train.select([3]).to_parquet(folder / "parquet" / "test-00000-of-00001.parquet")
    return folder


@pytest.mark.parametrize("name", ["disk", "one", "parquet", "parquet/train-00000-of-00001.parquet"])
def test_images_labels_and_captions_are_those_that_were_written(saved, name):
    source = open_image_source(f"hf:{saved / name}", texts=True)
    assert isinstance(source, ImageSource)
    assert (source.name, len(source)) == (f"hf:{os.path.basename(name)}", 6)
    assert list(source.class_names) == ["cat", "dog"]
    for i in (5, 0, 2):  # at random, and in another process
        found = pickle.loads(pickle.dumps(source))[i]
        np.testing.assert_array_equal(found.image, pixels(i))
        assert (found.label, found.captions) == (i % 2, (f"picture {i}",))
        assert found.name == f"train[{i}]"
    assert not open_image_source(f"hf:{saved / name}").captions


@pytest.mark.parametrize("name", ["disk", "parquet"])
def test_a_split_is_the_librarys_and_another_is_refused_with_those_there_are(saved, name):
    source = open_image_source(f"hf:{saved / name}", "test")
    np.testing.assert_array_equal(source[0].image, pixels(3))
    with pytest.raises(
        UserError, match=r"^split is 'val', but hf:.* has 'train', 'test', expected"
    ):
        open_image_source(f"hf:{saved / name}", "val")
    if name == "parquet":
        assert len(open_image_source(f"hf:{saved / name}", "train[:50%]")) == 3


def test_columns_are_found_by_their_types(datasets, tmp_path):
    string, many = datasets.Value("string"), datasets.List(datasets.Value("string"))
    bytes_alone = datasets.Value("binary")
    cases = {
        # The library's images under another name, two columns of strings, names as labels.
        "img": pets(
            datasets,
            image=(None, None),
            img=(datasets.Image(), [{"bytes": png(i), "path": None} for i in range(6)]),
            label=(string, ["dog", "cat"] * 3),
            text=(None, None),
            caption=(many, [[f"picture {i}"] for i in range(6)]),
            url=(string, ["x"] * 6),
        ),
        "bytes": pets(
            datasets,
            image=(bytes_alone, [png(i) for i in range(6)]),
            label=(datasets.Value("int64"), [0, 1] * 3),
        ),
    }
    for name, made in cases.items():
        made.save_to_disk(tmp_path / name)
        source = open_image_source(f"hf:{tmp_path / name}", texts=True)
        np.testing.assert_array_equal(source[4].image, pixels(4))
        assert source[4].captions == ("picture 4",)
        assert source.label(0) == (1 if name == "img" else 0)
        assert list(source.class_names) == (["cat", "dog"] if name == "img" else ["0", "1"])
        assert len(source.listing()[1]) == 6


def test_broken_rows_are_named_and_the_others_are_fine(datasets, tmp_path):
    images = [{"bytes": png(i), "path": None} for i in range(6)]
    images[1]["bytes"], images[2] = png(1)[:50], None
    captions = [f"picture {i}" for i in range(6)]
    captions[3] = None
    kept = pets(datasets).features
    pets(datasets, image=(kept["image"], images), text=(kept["text"], captions)).save_to_disk(
        tmp_path
    )
    source = open_image_source(f"hf:{tmp_path}", texts=True)
    for i, fault in ((1, "can't be decoded"), (2, "has no image"), (3, "has no caption")):
        with pytest.raises(CorruptImage, match=rf"^train\[{i}\] of hf:.* {fault}"):
            source[i]
    np.testing.assert_array_equal(source[4].image, pixels(4))


def test_a_listing_changes_with_an_image_a_label_and_a_caption(datasets, saved, tmp_path):
    kept = pets(datasets).features
    images = [{"bytes": png(i if i else 7), "path": f"{i}.png"} for i in range(6)]
    others = {
        "image": (kept["image"], images),
        "label": (kept["label"], [1] * 6),
        "text": (kept["text"], ["x"] * 6),
    }
    hashes = {listing_sha256(open_image_source(f"hf:{saved / 'disk'}", texts=True))}
    hashes.add(listing_sha256(open_image_source(f"hf:{saved / 'one'}", texts=True)))
    assert len(hashes) == 1
    for column, changed in others.items():
        pets(datasets, **{column: changed}).save_to_disk(tmp_path / column)
        hashes.add(listing_sha256(open_image_source(f"hf:{tmp_path / column}", texts=True)))
    assert len(hashes) == 4


def test_what_is_not_such_a_data_set_is_refused(datasets, tmp_path):
    with pytest.raises(
        UserError,
        match=r"^source is 'hf:/nowhere/none', which can't be opened \(.*\), expected a dat",
    ):
        open_image_source("hf:/nowhere/none")
    (tmp_path / "junk.parquet").write_bytes(b"junk")
    with pytest.raises(UserError, match=r"^source is 'hf:.*junk\.parquet', which can't be opened"):
        open_image_source(f"hf:{tmp_path / 'junk.parquet'}")
    pets(datasets, image=(None, None)).save_to_disk(tmp_path / "texts")
    with pytest.raises(
        UserError, match=r"has the columns label \(ClassLabel\), text \(Value\), expected one of im"
    ):
        open_image_source(f"hf:{tmp_path / 'texts'}")


def test_a_prepared_data_set_resumes_to_the_same_bytes(saved, tmp_path):
    source = f"hf:{saved / 'parquet'}"
    assert "prepared 6 images" in prepare.run(experiment(source, tmp_path / "whole"), tmp_path)
    expected = np.stack([CROPS["adm"](pixels(i), 16) for i in range(6)])
    found = all_of(tmp_path / "whole")
    np.testing.assert_array_equal(found["x"], expected)
    assert found["label"].tolist() == [0, 1] * 3
    resumed = experiment(source, tmp_path / "resumed")
    half_made(resumed)
    prepare.run(resumed, tmp_path)
    for shard in (tmp_path / "whole").glob("*.array_record"):
        assert shard.read_bytes() == (tmp_path / "resumed" / shard.name).read_bytes()
    verifying = experiment(source, tmp_path / "resumed", prepare__verify=True)
    assert "verified 6 images" in prepare.run(verifying, tmp_path)
