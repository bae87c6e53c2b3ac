"""A folder of samples holds those of one call, and all of them."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from uvit_jax.errors import UserError
from uvit_jax.jobs.evaluation.found_samples import open_samples
from uvit_jax.jobs.sampling.sample_folder import FILE_NAME, Request, claim, png_name, read_request

REQUEST = Request("png", 4, {"weights": {"step": 8}, "sampler": {"seed": 0}})
FIELD = "config.sample.out"


def write_pngs(folder, count, label=None, first=0):
    for i in range(first, count):
        Image.fromarray(np.full((6, 5, 3), i, np.uint8)).save(folder / png_name(i, label))


def numbers_of(folder) -> list[int]:
    """The grey level, hence the number, of each image that is scored."""
    stream = open_samples(str(folder))
    levels = [int(image.flat[0]) for batch in stream.batches(0) for image in batch]
    assert stream.count == len(levels)
    return levels


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"asked": {"weights": {"step": 8}, "sampler": {"seed": 1}}},
            r"\(sampler seed = 0 there, 1 now\): expected an",
        ),
        (
            {"asked": {"weights": {"step": 9}, "sampler": {"seed": 0}}},
            r"\(weights step = 8 there, 9 now\): expected an",
        ),
        (
            {"format": "npz"},
            r"holds samples of another request \(format = 'png' there, 'npz' now\)",
        ),
        (
            {"count": 3},
            r"is for 4 samples of this request, more than the 3 asked for now: expected another "
            r"config",
        ),
    ],
    ids=["seed", "step", "format", "fewer"],
)
def test_samples_of_another_request_are_not_mixed_in(tmp_path, changes, message):
    claim(tmp_path, REQUEST, FIELD)
    write_pngs(tmp_path, 4)
    before = (tmp_path / FILE_NAME).read_bytes()
    with pytest.raises(UserError, match=message):
        claim(tmp_path, dataclasses.replace(REQUEST, **changes), FIELD)
    assert (tmp_path / FILE_NAME).read_bytes() == before
    (tmp_path / "grid.png").touch()  # the same request again, and more of it
    claim(tmp_path, REQUEST, FIELD)
    claim(tmp_path, dataclasses.replace(REQUEST, count=9), FIELD)
    assert read_request(tmp_path).count == 9


def test_a_request_without_a_sample_binds_no_other(tmp_path):
    claim(tmp_path, REQUEST, FIELD)
    claim(tmp_path, Request("npz", 2, {}), FIELD)
    assert read_request(tmp_path) == Request("npz", 2, {})
    (tmp_path / "samples.npz").touch()
    with pytest.raises(UserError, match=r"format = 'npz' there, 'png' now"):
        claim(tmp_path, REQUEST, FIELD)


@pytest.mark.parametrize("name", ["holiday.JPG", "000000.png", "samples.npz", "grid.png"])
def test_a_folder_of_other_images_is_refused(tmp_path, name):
    (tmp_path / "notes.txt").touch()
    claim(tmp_path, REQUEST, FIELD)
    (tmp_path / FILE_NAME).unlink()
    (tmp_path / name).touch()
    with pytest.raises(
        UserError,
        match=rf"^config\.sample\.out {tmp_path} holds '{name}' and no samples\.json, expe",
    ):
        claim(tmp_path, REQUEST, FIELD)
    assert not (tmp_path / FILE_NAME).exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "gif", "count": 4, "asked": {}}'])
def test_a_note_that_can_not_be_read_is_named(tmp_path, text):
    (tmp_path / FILE_NAME).write_text(text)
    for use in (lambda: claim(tmp_path, REQUEST, FIELD), lambda: open_samples(str(tmp_path))):
        with pytest.raises(
            UserError, match=rf"{tmp_path}/samples\.json can't be read as the note beside samples"
        ):
            use()


def test_the_samples_announced_are_scored_and_nothing_else(tmp_path):
    claim(tmp_path, REQUEST, FIELD)
    write_pngs(tmp_path, 6, label=7)  # two that are left of a call that asked for more
    for name in ("grid.png", "cat.png", "3.png"):
        Image.fromarray(np.zeros((40, 30, 3), np.uint8)).save(tmp_path / name)
    (tmp_path / "more").mkdir()
    write_pngs(tmp_path / "more", 1)
    assert numbers_of(tmp_path) == [0, 1, 2, 3]


def test_samples_that_are_not_all_there_are_counted(tmp_path):
    claim(tmp_path, REQUEST, FIELD)
    for found in (0, 3):
        write_pngs(tmp_path, found)
        message = (
            rf"^config\.evaluate\.samples is '{tmp_path}': {tmp_path} holds {found} of the "
            rf"4 samples that its samp"
        )
        with pytest.raises(UserError, match=message):
            open_samples(str(tmp_path))


def test_two_images_of_one_sample_are_a_mixture(tmp_path):
    write_pngs(tmp_path, 4, label=3)
    write_pngs(tmp_path, 2, label=7, first=1)
    message = r"'000001_label_3\.png' and '000001_label_7\.png', two images of sample 1, expected"
    with pytest.raises(UserError, match=message):
        open_samples(str(tmp_path))
    (tmp_path / FILE_NAME).write_text(json.dumps(dataclasses.asdict(REQUEST)))
    with pytest.raises(UserError, match=message):
        open_samples(str(tmp_path))


def test_the_npz_of_a_folder_is_what_is_scored(tmp_path):
    claim(tmp_path, dataclasses.replace(REQUEST, format="npz"), FIELD)
    with pytest.raises(UserError, match=r"holds 0 of the 4 samples"):
        open_samples(str(tmp_path))
    images = np.arange(4, dtype=np.uint8)[:, None, None, None] * np.ones((1, 6, 5, 3), np.uint8)
    Image.fromarray(np.zeros((40, 30, 3), np.uint8)).save(tmp_path / "grid.png")
    np.savez(tmp_path / "samples.npz", images=images[:3])
    with pytest.raises(UserError, match=r"holds 3 of the 4 samples"):
        open_samples(str(tmp_path))
    np.savez(tmp_path / "samples.npz", images=images)
    assert numbers_of(tmp_path) == [0, 1, 2, 3]
    (tmp_path / FILE_NAME).unlink()
    with pytest.raises(
        UserError, match=rf"its samples are in samples\.npz, expected '{tmp_path}/samples\.npz'"
    ):
        open_samples(str(tmp_path))
