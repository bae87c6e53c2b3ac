import itertools
import os

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from uvit_jax.data.image_output import npz_writer, save_png
from uvit_jax.errors import UserError
from uvit_jax.telemetry import images as telemetry
from uvit_jax.telemetry.images import denoising_strip, labelled_grid, shown_channels, to_uint8


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def place(page, image, scale):
    """(x, y) of the image on the page, each of its pixels repeated `scale` times."""
    page = np.asarray(page)
    tile = np.broadcast_to(image, (*image.shape[:2], 3)).repeat(scale, 0).repeat(scale, 1)
    h, w = tile.shape[:2]
    corners = np.argwhere(
        (page[: page.shape[0] - h + 1, : page.shape[1] - w + 1] == tile[0, 0]).all(-1)
    )
    windows = sliding_window_view(page, (h, w), axis=(0, 1))
    spots = [(x, y) for y, x in corners if (windows[y, x].transpose(1, 2, 0) == tile).all()]
    assert len(spots) == 1
    return tuple(map(int, spots[0]))


def ink(page):
    """Rows and columns of the page that hold anything but paper."""
    dark = (np.asarray(page) != 255).any(-1)
    return np.flatnonzero(dark.any(1)), np.flatnonzero(dark.any(0))


def values(*numbers):
    return np.asarray(numbers, np.float32).reshape(1, 1, -1, 1)


def test_to_uint8_maps_the_range_and_clips_outside_it():
    assert to_uint8(values(-1, 1, -5, 5, -np.inf, np.inf)).ravel().tolist() == [
        0,
        255,
        0,
        255,
        0,
        255,
    ]


def test_to_uint8_rounds_to_nearest_and_a_half_upwards():
    # 0 is 127.5 exactly; the others are 0.4 and 0.6 above 100.
    below, above = 100.4 / 127.5 - 1, 100.6 / 127.5 - 1
    assert to_uint8(values(0.0, below, above)).ravel().tolist() == [128, 100, 101]


def test_to_uint8_returns_every_byte_to_itself():
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    assert (to_uint8((every / 127.5 - 1).astype(np.float32)) == every).all()


def test_to_uint8_refuses_nan_and_says_where():
    images = np.zeros((4, 2, 2, 3), np.float32)
    images[2:, 1, 0, 1] = np.nan
    with pytest.raises(UserError, match="2 of 4 images hold NaN, image 2 first"):
        to_uint8(images)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("labels", [None, list("abcdefg")])
def test_grid_tiles_hold_the_images_pixels_row_by_row(channels, labels):
    images = noise(7, 8, 8, channels)
    page = labelled_grid(images, labels, 3)
    spots = [place(page, image, 8) for image in images]
    xs, ys = sorted({x for x, _ in spots}), sorted({y for _, y in spots})
    assert spots == [(xs[i % 3], ys[i // 3]) for i in range(7)]
    gaps = {b - a - 64 for a, b in itertools.pairwise(xs)}
    assert len(gaps) == 1
    assert 2 <= gaps.pop() <= 16
    assert page.size[0] == xs[-1] + 64 + xs[0]


@pytest.mark.parametrize(("side", "scale"), [(8, 8), (32, 2), (64, 1), (80, 1), (5, 13)])
def test_small_images_are_enlarged_by_a_whole_factor_to_64_pixels(side, scale):
    place(labelled_grid(noise(1, side, side, 3), None, 4), noise(1, side, side, 3)[0], scale)


def test_a_scale_given_is_the_scale_taken():
    place(
        labelled_grid(
            noise(1, 8, 8, 1), ["a label that is far too long for such a tile"], 1, scale=3
        ),
        noise(8, 8, 1),
        3,
    )


@pytest.mark.parametrize(
    "title", [None, "a title", "a title that is much longer than the grid is wide " * 3]
)
@pytest.mark.parametrize(
    "label", ["7", "gjpqy", "a group of people standing on a hill " * 9, "W" * 99, ""]
)
def test_labels_and_title_stay_on_the_page_and_off_the_tiles(label, title):
    images = noise(4, 8, 8, 1)
    page = labelled_grid(images, [label] * 4, 2, scale=8, title=title)
    for image in images:
        place(page, image, 8)
    rows, columns = ink(page)
    margin = 6
    assert rows[0] >= margin
    assert columns[0] >= margin
    assert rows[-1] < page.height - margin
    assert columns[-1] < page.width - margin


def test_a_title_is_broken_between_its_parts_and_not_inside_them():
    title, font = (
        "the ema weights of step 60, dpmsolver++, 5 evaluations, guidance 1",
        telemetry._font(15),
    )
    lines = telemetry._wrap_parts(title, font, 320, 3)
    assert lines == ["the ema weights of step 60,", "dpmsolver++, 5 evaluations, guidance 1"]
    assert max(map(font.getlength, lines)) <= 320
    assert telemetry._wrap_parts(title, font, 1000, 3) == [title]
    # A part that needs more than a line, or more parts than lines, are broken anywhere.
    for width, most in ((100, 9), (320, 1)):
        assert telemetry._wrap_parts(title, font, width, most) == telemetry._wrap(
            title, font, width, most
        )


def test_a_label_stands_below_its_own_tile():
    images = noise(2, 8, 8, 3)
    page = labelled_grid(images, ["8", ""], 2)
    x, y = place(page, images[0], 8)
    rows, columns = ink(
        page.crop((0, y + 64 + 1, page.width, page.height))
    )  # one more: the tile's outline
    assert rows[0] < 12
    assert x <= columns[0]
    assert columns[-1] < x + 64


def test_tiles_grow_where_a_label_would_be_cut():
    label = "A living area with a television and a table"
    images = noise(1, 8, 8, 1)
    place(labelled_grid(images, [label], 1), images[0], 16)
    place(labelled_grid(images, ["cat"], 1), images[0], 8)


@pytest.mark.parametrize(
    ("shape", "labels", "columns", "message"),
    [
        ((0, 8, 8, 1), None, 2, "at least one"),
        ((2, 8, 8, 1), None, 0, "0 columns"),
        ((2, 8, 8, 4), None, 2, "1 or 3 channels"),
        ((2, 8, 8, 1), ["a"], 2, "1 labels for 2 images"),
    ],
)
def test_grids_that_cannot_be_drawn_are_refused(shape, labels, columns, message):
    with pytest.raises(ValueError, match=message):
        labelled_grid(noise(*shape), labels, columns)


def test_strip_shows_first_and_last_and_evenly_chosen_states():
    trajectory = (noise(21, 3, 8, 8, 1) / 127.5 - 1).astype(np.float32)
    page = denoising_strip(
        trajectory, np.linspace(1, 0, 21), ["zero", "one", "two"], rows=2, columns=5
    )
    spots = [
        [place(page, to_uint8(trajectory[k, :2])[row], 8) for k in (0, 5, 10, 15, 20)]
        for row in range(2)
    ]
    assert all(len({y for _, y in row}) == 1 for row in spots)
    assert [x for x, _ in spots[0]] == [x for x, _ in spots[1]] == sorted({x for x, _ in spots[0]})
    assert page.width == spots[0][-1][0] + 64 + 14
    rows, columns = ink(page)
    assert rows[0] >= 6
    assert columns[0] >= 6


def test_strip_of_a_short_trajectory_shows_each_state_once():
    trajectory = (noise(3, 1, 8, 8, 1) / 127.5 - 1).astype(np.float32)
    page = denoising_strip(trajectory, np.asarray([1.0, 0.5, 0.0]), None, rows=4, columns=10)
    assert len({place(page, to_uint8(state)[0], 8)[0] for state in trajectory}) == 3


def test_column_heads_get_the_decimals_that_keep_them_apart():
    from uvit_jax.telemetry.images import _time_heads

    assert _time_heads(np.asarray([1.0, 0.5, 0.001])) == ["t = 1.00", "t = 0.50", "t = 0.00"]
    assert _time_heads(np.asarray([1.0, 0.004, 0.001])) == ["t = 1.000", "t = 0.004", "t = 0.001"]


def test_strip_refuses_nan_and_a_single_column():
    trajectory = np.zeros((3, 1, 8, 8, 1), np.float32)
    with pytest.raises(ValueError, match="columns is 1"):
        denoising_strip(trajectory, np.linspace(1, 0, 3), None, rows=1, columns=1)
    trajectory[-1] = np.nan
    with pytest.raises(UserError, match="NaN"):
        denoising_strip(trajectory, np.linspace(1, 0, 3), None, rows=1, columns=3)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_gives_the_pixels_back(tmp_path, channels):
    image = noise(8, 9, channels)
    save_png(image, tmp_path / "samples" / "0.png")
    assert (
        np.asarray(Image.open(tmp_path / "samples" / "0.png")).reshape(8, 9, channels) == image
    ).all()


def test_an_npz_holds_what_was_appended_and_int64_labels_if_any(tmp_path):
    images = noise(4, 8, 8, 1)
    with npz_writer(tmp_path / "a.npz", 4, np.asarray([3, 1, 2, 0], np.int32)) as append:
        append(images[:3])
        append(images[3:])
    with np.load(tmp_path / "a.npz") as file:
        assert sorted(file) == ["images", "labels"]
        assert file["images"].dtype == np.uint8
        assert (file["images"] == images).all()
        assert file["labels"].dtype == np.int64
        assert file["labels"].tolist() == [3, 1, 2, 0]
    with npz_writer(tmp_path / "b.npz", 4) as append:
        append(images)
    with np.load(tmp_path / "b.npz") as file:
        assert sorted(file) == ["images"]


def test_an_npz_under_adms_names_is_what_numpy_would_write(tmp_path):
    images, labels = noise(5, 8, 9, 3), np.asarray([3, 1, 2, 0, 9], np.int32)
    with npz_writer(tmp_path / "a.npz", 5, labels, names=("arr_0", "arr_1")) as append:
        append(images[:2])
        append(images[2:2])
        append(images[2:])
    np.savez(tmp_path / "b.npz", images, labels.astype(np.int64))
    with np.load(tmp_path / "a.npz") as file, np.load(tmp_path / "b.npz") as expected:
        assert file.files == expected.files == ["arr_0", "arr_1"]
        for name in file.files:
            assert file[name].dtype == expected[name].dtype
            np.testing.assert_array_equal(file[name], expected[name])


def test_an_npz_of_too_few_images_is_none(tmp_path):
    with (
        pytest.raises(
            ValueError,
            match=r"3 images were written to .*a\.npz, expected "
            r"4",
        ),
        npz_writer(tmp_path / "a.npz", 4) as append,
    ):
        append(noise(3, 8, 8, 1))
    assert not list(tmp_path.iterdir())


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "grid.png"
    save_png(noise(8, 8, 3), path)
    before = path.read_bytes()

    def fail(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(KeyboardInterrupt):
        save_png(noise(9, 9, 3), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_saving_under_a_file_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*expected a writable folder"):
        save_png(noise(8, 8, 3), tmp_path / "file" / "grid.png")


@pytest.mark.parametrize(("channels", "mode"), [(2, "LA"), (4, "RGBA")])
def test_a_png_keeps_alpha_and_a_page_leaves_it_out(tmp_path, channels, mode):
    image = noise(8, 9, channels)
    save_png(image, tmp_path / "0.png")
    with Image.open(tmp_path / "0.png") as found:
        assert found.mode == mode
        np.testing.assert_array_equal(np.asarray(found), image)
    np.testing.assert_array_equal(shown_channels(image), image[..., : channels - 1])


def test_a_page_shows_the_first_three_of_more_channels():
    assert shown_channels(noise(2, 8, 8, 5)).shape == (2, 8, 8, 3)
