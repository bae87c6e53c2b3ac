"""Samples that an evaluation finds: in order, from any image on, and a bad image is named."""

import numpy as np
import pytest
from PIL import Image

from tests.jobs.evaluation.stream_checks import check_taken_up_anywhere, images_of, pngs
from tests.jobs.images import write_images
from uvit_jax.errors import UserError
from uvit_jax.jobs.evaluation import image_streams
from uvit_jax.jobs.evaluation.found_samples import open_samples


@pytest.fixture
def few_at_a_time(monkeypatch):
    """Batches smaller than a folder of a test."""
    monkeypatch.setattr(image_streams, "ROWS", 4)


def test_a_folder_of_samples_comes_in_the_order_of_its_names(tmp_path, few_at_a_time):
    images = pngs(tmp_path / "s", count=12)
    expected = np.stack([images[name] for name in sorted(images)])
    assert sorted(images)[:3] == ["0.png", "1.png", "10.png"]
    stream = open_samples(str(tmp_path / "s"))
    check_taken_up_anywhere(stream, expected)
    assert stream.name == str(tmp_path / "s")
    assert [len(batch) for batch in stream.batches(0)] == [4, 4, 4]


def test_grey_samples_are_read_as_rgb_and_other_files_passed_over(tmp_path):
    (tmp_path / "s").mkdir()
    grey = np.random.default_rng(0).integers(256, size=(6, 5), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "s" / "0.png")
    (tmp_path / "s" / "sample.json").write_text("{}")
    (tmp_path / "s" / ".0.png.12.tmp").write_text("half")
    np.testing.assert_array_equal(
        images_of(open_samples(str(tmp_path / "s"))), np.repeat(grey[None, ..., None], 3, -1)
    )


def test_the_grid_that_sample_writes_is_left_out_where_there_are_others(tmp_path, few_at_a_time):
    images = pngs(tmp_path / "s")
    Image.fromarray(np.zeros((40, 30, 3), np.uint8)).save(tmp_path / "s" / "grid.png")
    check_taken_up_anywhere(
        open_samples(str(tmp_path / "s")), np.stack([images[name] for name in sorted(images)])
    )
    for name in images:
        (tmp_path / "s" / name).unlink()
    assert open_samples(str(tmp_path / "s")).shape == (40, 30, 3)
    # In a class's folder it is an image as any.
    pngs(tmp_path / "s" / "cat", count=1)
    (tmp_path / "s" / "grid.png").unlink()
    (tmp_path / "s" / "cat" / "0.png").rename(tmp_path / "s" / "cat" / "grid.png")
    pngs(tmp_path / "s" / "dog", count=1)
    assert open_samples(str(tmp_path / "s")).count == 2


def test_samples_in_class_folders_and_in_an_npz(tmp_path):
    write_images(tmp_path / "classes", classes=2, per_class=3)
    stream = open_samples(str(tmp_path / "classes"))
    assert (stream.count, stream.shape) == (6, (24, 20, 3))
    images = np.random.default_rng(0).integers(256, size=(9, 6, 5, 1), dtype=np.uint8)
    np.savez(tmp_path / "s.npz", images=images)
    check_taken_up_anywhere(open_samples(str(tmp_path / "s.npz")), images)


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        ("7.png", r"^7\.png of \S+/s is 9x9x3, expected 6x5x3 as 0\.png$"),
        ("0.png", r"^1\.png of \S+/s is 6x5x3, expected 9x9x3 as 0\.png$"),
    ],
)
def test_an_image_of_another_size_is_named(tmp_path, odd, message):
    pngs(tmp_path / "s")
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "s" / odd)
    stream = open_samples(str(tmp_path / "s"))
    with pytest.raises(UserError, match=message):
        images_of(stream)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"/s/{name}\.png is empty, expected an image$"),
        (
            b"no image",
            r"/s/{name}\.png starts with the bytes b'no image', expected an image that Pillow "
            r"knows$",
        ),
        ("cut", r"/s/{name}\.png can't be decoded \(.*\), expected a whole image$"),
        ("altered", r"/s/{name}\.png can't be decoded \(.*\), expected a whole image$"),
    ],
)
@pytest.mark.parametrize("name", ["0", "5", "9"])
def test_a_corrupt_image_is_named_the_first_when_the_folder_is_opened(
    tmp_path, few_at_a_time, name, content, message
):
    images = pngs(tmp_path / "s")
    path = tmp_path / "s" / f"{name}.png"
    if content == "cut":
        content = path.read_bytes()[:-20]
    elif content == "altered":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
    path.write_bytes(content)
    message = message.format(name=name)
    if name == "0":
        with pytest.raises(UserError, match=message):
            open_samples(str(tmp_path / "s"))
        return
    found = []
    with pytest.raises(UserError, match=message):
        found.extend(open_samples(str(tmp_path / "s")).batches(0))
    assert len(found) == int(name) // 4
    np.testing.assert_array_equal(
        np.concatenate(found), np.stack([images[f"{i}.png"] for i in range(4 * len(found))])
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, r"which doesn't exist, expected a folder of images"),
        (lambda path: path.mkdir(), r"has no images, expected files like a\.jpg"),
        (lambda path: path.write_text("x"), r"which is a file, expected a folder of images"),
    ],
)
def test_what_are_not_samples_is_refused(tmp_path, make, message):
    make(tmp_path / "s")
    with pytest.raises(UserError, match=message):
        open_samples(str(tmp_path / "s"))
