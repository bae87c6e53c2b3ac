import io
import tracemalloc
import zipfile

import numpy as np
import pytest

from uvit_jax.data.image_output import npz_writer
from uvit_jax.data.image_sources.npz_images import open_npz_images
from uvit_jax.errors import UserError

# Not so random that they can't be compressed.
IMAGES = np.random.default_rng(0).integers(4, size=(23, 6, 5, 3), dtype=np.uint8)
LABELS = np.arange(23)


def ours(path):
    with npz_writer(path, len(IMAGES), LABELS) as append:
        append(IMAGES)


WRITERS = {
    "ours": ours,
    "ours compressed": lambda path: np.savez_compressed(path, images=IMAGES, labels=LABELS),
    "adm": lambda path: np.savez(path, IMAGES, LABELS),
    "adm compressed": lambda path: np.savez_compressed(path, IMAGES, LABELS),
    "adm reference": lambda path: np.savez(path, mu=np.zeros(3), sigma=np.eye(3), arr_0=IMAGES),
}


@pytest.mark.parametrize("layout", WRITERS)
def test_images_can_be_taken_up_anywhere(tmp_path, layout):
    path = tmp_path / "a.npz"
    WRITERS[layout](path)
    images = open_npz_images(path)
    assert images.shape == IMAGES.shape
    for first in (0, 1, 7, 22, 23):
        batches = list(images.batches(first, 5))
        assert [len(batch) for batch in batches[:-1]] == [5] * (len(batches) - 1)
        found = np.concatenate([IMAGES[:0], *batches])
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, IMAGES[first:])


def test_grey_images_and_one_image_are_images(tmp_path):
    for shape in ((3, 4, 4, 1), (1, 4, 4, 3)):
        np.savez(tmp_path / "a.npz", np.ones(shape, np.uint8))
        assert open_npz_images(tmp_path / "a.npz").shape == shape


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_only_a_batch_is_in_memory(tmp_path, save):
    count, row = 400, 64 * 64 * 3
    save(
        tmp_path / "a.npz",
        np.random.default_rng(0).integers(4, size=(count, 64, 64, 3), dtype=np.uint8),
    )
    tracemalloc.start()
    try:
        images = open_npz_images(tmp_path / "a.npz")
        total = sum(len(batch) for batch in images.batches(1, 10))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == count - 1
    assert peak < 60 * row < count * row / 6


def raw(shape, dtype="|u1", fortran=False, data=None):
    """The bytes of an array under a header that may be wrong."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": dtype, "fortran_order": fortran, "shape": shape}
    )
    file.write(IMAGES.tobytes() if data is None else data)
    return file.getvalue()


def zipped(path, **entries):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(f"{name}.npy", data)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            {"pictures": raw(IMAGES.shape)},
            r"holds pictures, expected images or arr_0, uint8 \[n, h, w, c\]$",
        ),
        ({}, r"holds nothing, expected images or arr_0"),
        (
            {"images": raw((23, 6, 5, 3), "<f4")},
            r"has images of shape \(23, 6, 5, 3\) and dtype float32, expected uint8",
        ),
        (
            {"arr_0": raw((23, 6, 15))},
            r"has arr_0 of shape \(23, 6, 15\) and dtype uint8, expected uint8 \[n, h, w, 3",
        ),
        ({"arr_0": raw((23, 3, 6, 5))}, r"has arr_0 of shape \(23, 3, 6, 5\) and dtype uint8"),
        (
            {"arr_0": raw((0, 6, 5, 3), data=b"")},
            r"has arr_0 of shape \(0, 6, 5, 3\), expected at least one image",
        ),
        (
            {"images": raw(IMAGES.shape, fortran=True)},
            r"has images in Fortran order, expected C order",
        ),
        (
            {"images": raw((24, 6, 5, 3))},
            r"has 2070 bytes of images, expected 2160 for the shape \(24, 6, 5, 3\)",
        ),
        ({"images": raw((22, 6, 5, 3))}, r"has 2070 bytes of images, expected 1980"),
        (
            {"images": b"not an array"},
            r"can't be read \(.*magic string.*\), expected an \.npz of images",
        ),
        ({"images": b""}, r"can't be read \(.*\), expected an \.npz of images"),
        ({"images": raw(IMAGES.shape)[:40]}, r"can't be read \(.*\), expected an \.npz of images"),
    ],
)
def test_a_file_without_images_is_refused_before_any_is_read(tmp_path, entries, message):
    zipped(tmp_path / "a.npz", **entries)
    with pytest.raises(UserError, match=rf"^{tmp_path}/a\.npz {message}"):
        open_npz_images(tmp_path / "a.npz")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no more", b"\x93NUMPY", "cut"])
def test_a_file_that_is_not_an_archive_is_refused(tmp_path, content):
    path = tmp_path / "a.npz"
    if content == "cut":
        np.savez(path, IMAGES)
        content = path.read_bytes()[:-30]
    path.write_bytes(content)
    with pytest.raises(
        UserError, match=r"a\.npz can't be read \(.*\), expected an \.npz of images$"
    ):
        open_npz_images(path)
    with pytest.raises(
        UserError, match=r"gone\.npz can't be read \(.*\), expected an \.npz of images$"
    ):
        open_npz_images(tmp_path / "gone.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("where", [0.3, 0.7, 0.95])
@pytest.mark.parametrize("first", [0, 39])
def test_damage_between_good_ends_is_found_before_the_last_image_is_yielded(
    tmp_path, save, where, first
):
    path = tmp_path / "a.npz"
    save(path, np.random.default_rng(0).integers(4, size=(40, 40, 40, 3), dtype=np.uint8))
    data = bytearray(path.read_bytes())
    data[int(len(data) * where)] ^= 0x55
    path.write_bytes(data)
    found = []
    with pytest.raises(
        UserError, match=r"a\.npz can't be read \(.*\), expected a whole \.npz of images$"
    ):
        found.extend(open_npz_images(path).batches(first, 4))
    assert sum(map(len, found)) < 40 - first


def test_a_file_that_vanishes_while_it_is_read_is_named(tmp_path):
    np.savez(tmp_path / "a.npz", IMAGES)
    images = open_npz_images(tmp_path / "a.npz")
    (tmp_path / "a.npz").unlink()
    with pytest.raises(UserError, match="can't be read"):
        next(images.batches(0, 4))
