"""The hash of a source's listing."""

import json
import pathlib
import shutil

import pytest

from tests.jobs.images import write_coco, write_images
from uvit_jax.data.image_sources.image_source import listing_sha256
from uvit_jax.data.image_sources.registry import open_image_source


def listing(folder: pathlib.Path, split: str = "train") -> str:
    return listing_sha256(open_image_source(str(folder), split))


@pytest.fixture
def classes(tmp_path) -> pathlib.Path:
    write_images(tmp_path / "images")
    return tmp_path / "images"


def test_a_copy_under_another_name_has_the_same_listing(classes, tmp_path):
    shutil.copytree(classes, tmp_path / "copy")
    (tmp_path / "copy" / "notes.txt").write_text("no image")
    assert listing(classes) == listing(tmp_path / "copy")


def test_another_file_and_another_class_are_another_listing(classes):
    before = listing(classes)
    (classes / "c0").rename(classes / "z0")
    renamed = listing(classes)
    (classes / "c1" / "000.png").rename(classes / "c1" / "00.png")
    assert len({before, renamed, listing(classes)}) == 3


def test_labels_captions_and_names_that_a_file_gives_are_in_it(tmp_path):
    write_images(tmp_path / "images", classes=1, per_class=2)

    def of(*lines: dict) -> str:
        files = ({"file_name": f"00{i}.png", **line} for i, line in enumerate(lines))
        path = tmp_path / "images" / "c0" / "metadata.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in files))
        return listing(tmp_path / "images" / "c0")

    found = [
        of({"label": 0}, {"label": 1}),
        of({"label": 1}, {"label": 0}),
        of({"label": "a"}, {"label": "b"}),
        of({"label": "a"}, {"label": "c"}),
        of({"text": "a"}, {"text": "b"}),
        of({"text": "a"}, {"text": ["b", "c"]}),
        of({"text": "a"}, {"text": ["c", "b"]}),
    ]
    assert len(set(found)) == len(found)


def test_cocos_captions_are_in_it(tmp_path):
    write_coco(tmp_path / "coco")
    before = listing(tmp_path / "coco", "train2017")
    path = tmp_path / "coco" / "annotations" / "captions_train2017.json"
    path.write_text(path.read_text().replace("aaa k", "aaa z"))
    assert listing(tmp_path / "coco", "train2017") != before
