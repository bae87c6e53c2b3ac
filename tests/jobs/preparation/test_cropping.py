"""Images that can't be read, and labels that are unknown or not a class."""

import pathlib

import numpy as np
import pytest

from tests.jobs.images import write_images
from tests.jobs.preparation.prepare_runs import all_of, experiment
from uvit_jax.data.image_sources.folders import ImageFolder
from uvit_jax.data.prepared.manifest import Manifest
from uvit_jax.errors import UserError
from uvit_jax.jobs import prepare


def test_an_image_that_cannot_be_read_stops_the_job_or_is_left_out_as_asked(tmp_path, caplog):
    write_images(tmp_path / "images")
    bad = tmp_path / "images" / "c1" / "002.png"
    bad.write_bytes(bad.read_bytes()[:60])
    with pytest.raises(
        UserError, match=r"c1/002\.png.*config\.prepare\.on_error=skip leaves such images out"
    ):
        prepare.run(experiment(tmp_path / "images", tmp_path / "out"), tmp_path)
    skipping = experiment(tmp_path / "images", tmp_path / "out", prepare__on_error="skip")
    with caplog.at_level("INFO", "uvit_jax"):
        assert "11 images, 1 left out" in prepare.run(skipping, tmp_path)
    assert f"left out 1 image that can't be read: see {tmp_path}/out/skipped.txt" in caplog.messages
    assert all_of(tmp_path / "out")["label"].tolist() == [0] * 4 + [1] * 3 + [2] * 4
    assert "c1/002.png" in (tmp_path / "out" / "skipped.txt").read_text()
    assert Manifest.load(tmp_path / "out").skipped == 1


def unknown(folder: pathlib.Path, labels: list[int]) -> ImageFolder:
    """The first images with these labels of two classes, as TFDS gives them: -1 is unknown."""
    files = sorted(f"{path.parent.name}/{path.name}" for path in folder.glob("*/*.png"))[
        : len(labels)
    ]
    return ImageFolder("flowers", folder, files, np.array(labels, np.int32), ("rose", "tulip"))


def test_a_split_whose_labels_are_all_unknown_is_prepared_without_labels(
    images, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(prepare, "open_image_source", lambda *_, **__: unknown(images, [-1] * 6))
    for error in ("stop", "skip"):
        out = tmp_path / error
        with caplog.at_level("INFO", "uvit_jax"):
            prepare.run(experiment(images, out, prepare__on_error=error), tmp_path)
        assert (
            "the labels of flowers are unknown (-1): it is prepared without labels"
            in caplog.messages
        )
        manifest = Manifest.load(out)
        assert (manifest.num_classes, manifest.class_names, manifest.num_examples) == (0, (), 6)
        assert "verified 6 images" in prepare.run(
            experiment(images, out, prepare__verify=True), tmp_path
        )


@pytest.mark.parametrize(
    ("labels", "message", "kept"),
    [
        (
            [0, 1, -1, 1],
            r"c0/002\.png of flowers has the label -1 \(unknown\), expected 0 to 1 "
            r"\(config\.p.*skip",
            3,
        ),
        (
            [0, 1, 2, 1],
            r"c0/002\.png of flowers has the label 2, expected 0 to 1 "
            r"\(config\.prepare\.on_error=skip",
            3,
        ),
        (
            [-1, -1, 1, 1],
            r"c0/002\.png of flowers has the label 1, but the first image -1 \(unknown\), "
            r"expected lab",
            2,
        ),
    ],
)
def test_a_label_that_is_not_a_class_stops_the_job_or_is_left_out_as_asked(
    images, tmp_path, monkeypatch, labels, message, kept
):
    monkeypatch.setattr(prepare, "open_image_source", lambda *_, **__: unknown(images, labels))
    with pytest.raises(UserError, match=message):
        prepare.run(experiment(images, tmp_path / "out"), tmp_path)
    skipping = experiment(images, tmp_path / "out", prepare__on_error="skip")
    assert f"{kept} images, {4 - kept} left out" in prepare.run(skipping, tmp_path)
    assert set(all_of(tmp_path / "out")["label"].tolist()) <= {0, 1}
    assert "has the label" in (tmp_path / "out" / "skipped.txt").read_text()


def test_a_source_without_a_readable_image_is_refused_with_the_first_fault(images, tmp_path):
    said = (
        r"^none of the 12 images of .* can be read \(first: .*c0/000\.png has 20x24 = 480 "
        r"pixels, .*prepare\.max_pixels"
    )
    with pytest.raises(UserError, match=said):
        prepare.run(experiment(images, tmp_path / "out", prepare__max_pixels=100), tmp_path)
