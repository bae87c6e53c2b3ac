import base64
import io
import os
import pathlib
import pickle
import subprocess
import zlib

import numpy as np
import pytest

from uvit_jax.data.image_sources.object_npy import read_object_array
from uvit_jax.data.image_sources.official_features import OfficialFeatures, is_official_features
from uvit_jax.errors import UserError

# np.save((moments, np.int64(207))) as NumPy 1.23.5 wrote it, the version the official script needs:
# newer ones refuse the tuple. The moments are (arange(32).reshape(8, 2, 2) - 16) / 8.
NUMPY_1_FILE = zlib.decompress(
    base64.b64decode(
        "eNql0EtKw1AUBuCb1EeN7/db4ygVSgfiQESsUHBgsEpA0IG0eZUU+jo3t0KxQidaOyu4gS7BFWh3YJfQJbgD/WPrQMSRB77APffwc0+ekhen"
        "51cSu2G3muP6Ntf2Va16pkVVLVPkgpuFVJE7btA+NnO+i77vmSUX58hOdDuq3qn/KaUWsgvlfKkSs4vcjeXLOZE1OTcrSoq7drHgC162hUKs"
        "N6UUnN4tSTq7JzkhWRSq04BBgxFd0uV7GuoPOqJSchUavpQZY2d7FG481mnEICWihy4l9Ko0mkwmTz5QXx89LmjMalzTeMRj3lf8hIfsSYOm"
        "guywLutynaa9XmRml2aCyFmD5r4jD2j+ZyQTtGA1EjXctRl7f2WsCx1owzO0oAk1SMMRqMCCmRf0gQWCOsQZ2sDimIMjSEMNmtCCZ2hDB7rw"
        "HqdFQUvWHz/at82cyRVa7m+W3aOVYLNVg9awmfd7p3UrEX7rv4k2HmjTINUVtGXFPgEi16vs"
    )
)
MOMENTS = (np.arange(32, dtype=np.float32).reshape(8, 2, 2) - 16) / 8


def write(path: pathlib.Path, moments, label) -> None:
    pair = np.empty(2, object)
    pair[:] = [moments, label]
    np.save(path, pair, allow_pickle=True)


def write_set(folder: pathlib.Path, num_images: int) -> None:
    """Image i, of label i // 3, is full of i; its mirror image of -i."""
    file = 0
    for first in range(0, num_images, 256):
        images = range(first, min(first + 256, num_images))
        for sign in (1, -1):
            for i in images:
                write(
                    folder / f"{file}.npy",
                    np.full((8, 2, 2), sign * i, np.float32),
                    np.int64(i // 3),
                )
                file += 1


def test_a_file_of_the_official_scripts_numpy_is_read(tmp_path):
    (tmp_path / "0.npy").write_bytes(NUMPY_1_FILE)
    moments, label = read_object_array(tmp_path / "0.npy")
    np.testing.assert_array_equal(moments, MOMENTS)
    assert (moments.dtype, label.shape, label.item()) == (np.float32, (), 207)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("label", [7, np.int64(7), np.int32(7), np.array(7), np.array(7, ">i8")])
def test_every_way_numpy_pickles_a_pair_is_read(tmp_path, protocol, label):
    pair = np.empty(2, object)
    pair[:] = [np.asfortranarray(MOMENTS), label]
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "|O", "fortran_order": False, "shape": (2,)}
    )
    (tmp_path / "0.npy").write_bytes(file.getvalue() + pickle.dumps(pair, protocol))
    moments, found = read_object_array(tmp_path / "0.npy")
    np.testing.assert_array_equal(moments, MOMENTS)
    assert found.item() == 7


@pytest.mark.parametrize("num_images", [1, 3, 256, 300, 515])
def test_batches_of_256_images_are_followed_by_their_mirror_images(tmp_path, num_images):
    write_set(tmp_path, num_images)
    features = OfficialFeatures(tmp_path)
    assert len(features) == num_images
    assert features.shape == (2, 2, 8)
    for i in {0, 1, 255, 256, 257, 511, 512, num_images - 1} & set(range(num_images)):
        moments, label = features[i]
        assert (moments.shape, moments.dtype, label) == ((2, 2, 2, 8), np.float32, i // 3)
        assert (moments[0] == i).all()
        assert (moments[1] == -i).all()
    assert features.num_classes == (num_images - 1) // 3 + 1
    assert features.class_names[-1] == str((num_images - 1) // 3)
    with pytest.raises(IndexError):
        features[num_images]


def test_imagenets_last_batch_is_143_images_and_143_mirror_images():
    features = object.__new__(OfficialFeatures)
    features.num_images = 1_281_167
    assert features.files(0) == (0, 256)
    assert features.files(256) == (512, 768)
    assert features.files(1_281_166 - 142) == (2 * 1_281_024, 2 * 1_281_024 + 143)
    assert features.files(1_281_166) == (2_562_333 - 143, 2_562_333)


def test_channels_come_last_mean_before_logvar(tmp_path):
    write(tmp_path / "0.npy", MOMENTS, 0)
    write(tmp_path / "1.npy", MOMENTS[..., ::-1], 0)
    moments, _ = pickle.loads(pickle.dumps(OfficialFeatures(tmp_path)))[0]
    np.testing.assert_array_equal(moments[0], MOMENTS.transpose(1, 2, 0))
    np.testing.assert_array_equal(moments[1], moments[0, :, ::-1])


def test_a_folder_of_numbered_features_is_distinguished_from_cocos_and_from_images(tmp_path):
    assert not is_official_features(tmp_path)
    assert not is_official_features(tmp_path / "nowhere")
    assert not is_official_features("tfds:cifar10")
    (tmp_path / "cat.npy").touch()
    assert not is_official_features(tmp_path)
    (tmp_path / "0.npy").touch()
    assert is_official_features(str(tmp_path))
    (tmp_path / "0_0.npy").touch()
    assert not is_official_features(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "3.npy").unlink(), r"has 5 features up to 5\.npy, but no 3\.npy"),
        (lambda folder: (folder / "0.npy").unlink(), r"has 5 features up to 5\.npy, but no 0\.npy"),
        (
            lambda folder: (folder / "5.npy").unlink(),
            r"has 5 features, expected two for each image: an even number$",
        ),
        (
            lambda folder: (folder / "05.npy").touch(),
            r"holds '05\.npy', expected 0\.npy, 1\.npy, \.\.\. alone$",
        ),
        (lambda folder: (folder / "mean.npy").touch(), r"holds 'mean\.npy'"),
        (lambda folder: [path.unlink() for path in folder.iterdir()], r"has no features"),
    ],
)
def test_missing_and_surplus_files_are_named(tmp_path, change, message):
    write_set(tmp_path, 3)
    (tmp_path / "README.md").touch()
    (tmp_path / "._0.npy").touch()
    assert len(OfficialFeatures(tmp_path)) == 3
    change(tmp_path)
    with pytest.raises(UserError, match=message):
        OfficialFeatures(tmp_path)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (
            (np.zeros((4, 2, 2), np.float32), 1),
            r"4\.npy holds float32 \[4, 2, 2\], int64 \[\], expected moments",
        ),
        ((np.zeros((8, 2, 2), np.float64), 1), r"holds float64 \[8, 2, 2\]"),
        ((np.zeros((8, 4), np.float32), 1), r"holds float32 \[8, 4\]"),
        ((np.zeros((8, 2, 2), np.float32), -1), r"and a label from 0 on$"),
        ((np.zeros((8, 2, 2), np.float32), np.float32(1)), r"float32 \[\], expected moments"),
        (
            (np.zeros((8, 4, 4), np.float32), 0),
            r"4\.npy has latents of 4x4, expected 2x2 as in 0\.npy$",
        ),
        ((np.zeros((8, 2, 2), np.float32), 5), r"4\.npy has the label 5, expected 0 as in 1\.npy"),
        ((np.array(["a"] * 2, object), 5), r"4\.npy is damaged"),
    ],
)
def test_features_of_another_shape_or_kind_are_refused(tmp_path, pair, message):
    write_set(tmp_path, 3)
    write(tmp_path / "4.npy", *pair)
    with pytest.raises(UserError, match=message):
        OfficialFeatures(tmp_path)[1]


def test_arrays_that_are_not_a_pair_are_refused(tmp_path):
    np.save(tmp_path / "0.npy", MOMENTS)
    with pytest.raises(
        UserError, match=r"0\.npy holds float32 of shape \(8, 2, 2\), expected an array of objects$"
    ):
        read_object_array(tmp_path / "0.npy")


def test_a_file_cut_anywhere_or_unreadable_is_refused(tmp_path):
    path = tmp_path / "0.npy"
    for length in range(len(NUMPY_1_FILE) - 1):
        path.write_bytes(NUMPY_1_FILE[:length])
        with pytest.raises(UserError, match=r"0\.npy is damaged"):
            read_object_array(path)
    path.unlink()
    with pytest.raises(UserError, match=r"0\.npy can't be read \(No such file or directory\)"):
        read_object_array(path)


def test_altered_bytes_are_refused_or_are_other_numbers(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "0.npy"
    faults = []
    for _ in range(500):
        data = bytearray(NUMPY_1_FILE)
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        path.write_bytes(data)
        try:
            read_object_array(path)
        except UserError as error:
            faults.append(str(error))
    assert len(faults) > 100
    assert not any("\n" in fault for fault in faults)


class _Call:
    """Pickles as a call of this function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (_Call(os.system, "touch {marker}"), "posix.system"),
        (_Call(eval, "open({marker!r}, 'w')"), "builtins.eval"),
        (_Call(subprocess.Popen, ["touch", "{marker}"]), "subprocess.Popen"),
        (_Call(np.frombuffer, b"1234"), "numpy.frombuffer"),
    ],
)
def test_a_file_that_asks_for_anything_but_arrays_is_refused_before_it_is_called(
    tmp_path, call, name
):
    marker = str(tmp_path / "marker")
    function, arguments = call.call
    arguments = tuple(a.format(marker=marker) if isinstance(a, str) else a for a in arguments)
    write(tmp_path / "0.npy", MOMENTS, _Call(function, *arguments))
    with pytest.raises(
        UserError, match=rf"0\.npy asks for .*{name.rpartition('.')[2]}, expected arrays alone"
    ):
        read_object_array(tmp_path / "0.npy")
    assert not os.path.exists(marker)


def test_a_label_of_another_meaning_is_refused(tmp_path):
    for file in ("0.npy", "1.npy"):
        write(tmp_path / file, MOMENTS, np.int64(1_700_000_000))
    with pytest.raises(
        UserError, match=r"0\.npy has the label 1700000000, expected a class in 0\.\.999999$"
    ):
        OfficialFeatures(tmp_path)
