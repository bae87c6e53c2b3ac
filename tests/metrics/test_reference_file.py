import hashlib
import io
import json
import pathlib
import re
import zipfile

import numpy as np
import pytest

from tests.metrics.small_network import WIDTHS, random_features, small_network
from uvit_jax.errors import UserError
from uvit_jax.metrics.frechet import frechet_distance
from uvit_jax.metrics.moments import Moments
from uvit_jax.metrics.reference_file import check_resolution, read_reference, write_reference

FEATURES = random_features(40)
MEAN, COVARIANCE = (
    FEATURES["pool"].mean(0, dtype=np.float64),
    np.cov(FEATURES["pool"].astype(float), rowvar=False),
)
SPATIAL = (
    FEATURES["spatial"].mean(0, dtype=np.float64),
    np.cov(FEATURES["spatial"].astype(float), rowvar=False),
)
RECORD = {
    "source": "digits",
    "count": 40,
    "shape": [8, 8, 1],
    "extractor": small_network().identity,
}


def moments_of(kind):
    moments = Moments(WIDTHS[kind])
    moments.update(FEATURES[kind])
    return moments


@pytest.fixture
def ours(tmp_path):
    path = tmp_path / "made" / "ours.npz"
    write_reference(path, moments_of("pool"), moments_of("spatial"), FEATURES["pool"][:7], RECORD)
    return path


def written(tmp_path, **arrays):
    """A file of these arrays beside mu and sigma; None leaves one out."""
    arrays = {"mu": MEAN, "sigma": COVARIANCE} | arrays
    np.savez(
        tmp_path / "r.npz", **{name: array for name, array in arrays.items() if array is not None}
    )
    return tmp_path / "r.npz"


def test_our_own_file_comes_back_as_it_was(ours):
    found = read_reference(ours, small_network())
    assert found.path == ours
    assert found.sha256 == hashlib.sha256(ours.read_bytes()).hexdigest()
    np.testing.assert_array_equal(found.mean, moments_of("pool").mean)
    np.testing.assert_array_equal(found.covariance, moments_of("pool").covariance)
    np.testing.assert_array_equal(found.spatial[0], moments_of("spatial").mean)
    np.testing.assert_array_equal(found.spatial[1], moments_of("spatial").covariance)
    np.testing.assert_array_equal(found.features, FEATURES["pool"][:7])
    assert not found.images
    assert found.record.items() >= RECORD.items()
    assert found.gaussian.distance(MEAN, COVARIANCE) == pytest.approx(0, abs=1e-9)


def test_the_same_statistics_make_the_same_file(ours, tmp_path):
    write_reference(
        tmp_path / "b.npz", moments_of("pool"), moments_of("spatial"), FEATURES["pool"][:7], RECORD
    )
    assert (tmp_path / "b.npz").read_bytes() == ours.read_bytes()


def test_pytorch_fids_readers_find_what_they_read(ours):
    with np.load(ours) as file:  # as its code does
        assert file["mu"].shape == (6,)
        assert file["sigma"].shape == (6, 6)
        assert file["mu"].dtype == file["sigma"].dtype == file["mu_s"].dtype == np.float64


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_file_of_pytorch_fid_has_moments_alone(tmp_path, dtype):
    found = read_reference(
        written(tmp_path, mu=MEAN.astype(dtype), sigma=COVARIANCE.astype(dtype)), small_network()
    )
    assert found.mean.dtype == found.covariance.dtype == np.float64
    np.testing.assert_allclose(found.covariance, COVARIANCE, rtol=1e-6, atol=1e-7)
    assert (found.spatial, found.features, found.images, found.record) == (None, None, False, {})
    assert found.spatial_gaussian is None
    other = (
        FEATURES["pool"][:20].mean(0, dtype=np.float64),
        np.cov(FEATURES["pool"][:20].astype(float), rowvar=False),
    )
    expected = frechet_distance(MEAN, COVARIANCE, *other)
    assert found.gaussian.distance(*other) == pytest.approx(expected, rel=1e-5)


def test_adms_file_has_spatial_moments_and_images(tmp_path):
    images = np.zeros((3, 8, 8, 3), np.uint8)
    path = written(tmp_path, mu_s=SPATIAL[0], sigma_s=SPATIAL[1], arr_0=images)
    found = read_reference(path, small_network())
    assert found.images
    assert found.features is None
    np.testing.assert_array_equal(found.spatial[1], SPATIAL[1])
    assert found.spatial_gaussian.distance(*SPATIAL) == pytest.approx(0, abs=1e-9)
    # A network without such features passes over them, of whatever width they are.
    poorer = small_network(widths={"pool": 6})
    assert (
        read_reference(written(tmp_path, mu_s=np.zeros(9), sigma_s=np.eye(9)), poorer).spatial
        is None
    )


def test_images_are_not_read_with_the_statistics(tmp_path):
    path = written(tmp_path, arr_0=np.zeros((3, 8, 8, 3), np.uint8))
    with zipfile.ZipFile(path) as archive:
        arrays = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in arrays.items():
            archive.writestr(name, data if name != "arr_0.npy" else b"no array at all")
    assert read_reference(path, small_network()).images


def nan_in(array):
    array = array.copy()
    array.flat[-1] = np.nan
    return array


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"mu": np.zeros(2048), "sigma": np.eye(2048)},
            r"has mu of shape \(2048,\), expected \(6,\), the features of s",
        ),
        (
            {"sigma": np.eye(5)},
            r"has sigma of shape \(5, 5\), expected \(6, 6\), the features of small$",
        ),
        ({"mu": MEAN[None]}, r"has mu of shape \(1, 6\), expected \(6,\)"),
        ({"mu": nan_in(MEAN)}, r"has NaN or infinity in mu, expected finite numbers$"),
        ({"sigma": np.inf * COVARIANCE}, r"has NaN or infinity in sigma, expected finite numbers$"),
        (
            {"sigma": None},
            r"holds mu, expected the arrays mu and sigma: --config\.evaluate\.make_reference makes",
        ),
        (
            {"mu": None, "sigma": None, "images": np.zeros(3)},
            r"holds images, expected the arrays mu and sigma",
        ),
        ({"mu": None, "sigma": None}, r"holds nothing, expected the arrays mu and sigma"),
        ({"mu_s": SPATIAL[0]}, r"has sigma_s of shape absent, expected \(5, 5\)"),
        ({"mu_s": SPATIAL[0], "sigma_s": nan_in(SPATIAL[1])}, r"has NaN or infinity in sigma_s"),
        (
            {"mu_s": np.zeros(2023), "sigma_s": np.eye(2023)},
            r"has mu_s of shape \(2023,\), expected \(5,\)",
        ),
        ({"mu": np.array(list("abcdef"))}, r"has mu of dtype <U1, expected real numbers$"),
        ({"mu": MEAN.astype(complex)}, r"has mu of dtype complex128, expected real numbers$"),
        (
            {"sigma": np.triu(COVARIANCE)},
            r"holds no statistics: the reference covariance differs from its transpose by",
        ),
        (
            {"sigma": -COVARIANCE},
            r"holds no statistics: the reference covariance has the eigenvalue -",
        ),
        (
            {"mu_s": SPATIAL[0], "sigma_s": -SPATIAL[1]},
            r"holds no statistics: the reference covariance has the eig",
        ),
        (
            {"features": np.zeros((3, 7), np.float32)},
            r"has features of shape \(3, 7\), expected \(n, 6\), small's$",
        ),
        (
            {"features": np.zeros((0, 6), np.float32)},
            r"has features of shape \(0, 6\), expected \(n, 6\)",
        ),
        ({"features": nan_in(FEATURES["pool"])}, r"has NaN or infinity in features"),
        ({"metadata": np.array("{")}, r"has metadata that are not a JSON object"),
        ({"metadata": np.array("[1]")}, r"has metadata that are not a JSON object"),
        (
            {"metadata": np.array('{"format": "uvit_jax reference 2"}')},
            r"is of the format 'uvit_jax reference 2', exp",
        ),
        ({"metadata": np.array("{}")}, r"is of the format None, expected 'uvit_jax reference 1'"),
    ],
)
def test_what_can_not_be_statistics_is_one_sentence(tmp_path, arrays, message):
    with pytest.raises(UserError, match=rf"^{re.escape(str(tmp_path))}/r\.npz {message}"):
        read_reference(written(tmp_path, **arrays), small_network())


class Trap:
    """An object that leaves a trace when it is unpickled."""

    sprung = False

    def __reduce__(self):
        return Trap._spring, ()

    @staticmethod
    def _spring():
        Trap.sprung = True
        return Trap()


@pytest.mark.parametrize("name", ["mu", "sigma", "mu_s", "features", "metadata"])
def test_a_pickle_is_never_opened(tmp_path, name):
    path = written(tmp_path, **{name: np.array([Trap()], object)})
    with pytest.raises(
        UserError,
        match=r"r\.npz can't be read \(.*Object arrays cannot be loaded.*\), expected an \.npz",
    ):
        read_reference(path, small_network())
    np.save(tmp_path / "whole.npy", np.array([Trap()], object), allow_pickle=True)
    with pytest.raises(UserError, match=r"can't be read"):
        read_reference(tmp_path / "whole.npy", small_network())
    assert not Trap.sprung


def test_files_that_are_no_archive_are_one_sentence(tmp_path, ours):
    whole = ours.read_bytes()
    array = io.BytesIO()
    np.save(array, MEAN)
    damaged = bytearray(whole)
    damaged[whole.index(b"sigma.npy") + 200] ^= 1
    for content in (
        b"",
        whole[:50],
        whole[: len(whole) // 2],
        whole[:-1],
        array.getvalue(),
        b"text",
        bytes(damaged),
    ):
        (tmp_path / "r.npz").write_bytes(content)
        with pytest.raises(
            UserError,
            match=r"^\S+r\.npz can't be read \(.+\), expected an \.npz of reference statist",
        ):
            read_reference(tmp_path / "r.npz", small_network())
    np.savez_compressed(
        tmp_path / "r.npz", mu=MEAN, sigma=np.random.default_rng(0).standard_normal((6, 6))
    )
    damaged = bytearray((tmp_path / "r.npz").read_bytes())
    damaged[damaged.index(b"sigma.npy") + 60] ^= 0xFF
    (tmp_path / "r.npz").write_bytes(damaged)
    with pytest.raises(UserError, match=r"can't be read"):
        read_reference(tmp_path / "r.npz", small_network())
    with pytest.raises(
        UserError,
        match=r"gone\.npz can't be read \(No such file or directory\), expected an \.npz of",
    ):
        read_reference(tmp_path / "gone.npz", small_network())
    with pytest.raises(UserError, match=r"can't be read \(Is a directory\)"):
        read_reference(tmp_path, small_network())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"name": "large"},
            r"was made with name = 'small' of 'small', but 'large' has 'large' here: distances "
            r"between",
        ),
        (
            {"sha256": "b" * 64},
            r"was made with sha256 = 'aaaa.*' of 'small', but 'small' has 'bbbb",
        ),
        (
            {"settings": {"resize": "tf1", "dtype": "float32"}},
            r"was made with resize = 'none' of .* has 'tf1' here",
        ),
        (
            {"settings": {"resize": "none", "dtype": "bfloat16"}},
            r"was made with dtype = 'float32' .* 'bfloat16' here",
        ),
    ],
)
def test_statistics_of_another_network_mean_nothing(ours, changes, message):
    with pytest.raises(UserError, match=message):
        read_reference(ours, small_network(**changes))


def test_images_of_another_size_cannot_be_compared(ours, tmp_path):
    found = read_reference(ours, small_network())
    for shape in ((8, 8, 1), (8, 8, 3)):  # grey is repeated three times
        check_resolution(found, shape)
    for shape in ((16, 16, 1), (8, 16, 1)):
        with pytest.raises(
            UserError,
            match=r"ours\.npz is of images of 8x8x1, but the samples have \d+x16x1: expected a",
        ):
            check_resolution(found, shape)
    check_resolution(
        read_reference(written(tmp_path), small_network()), (123, 45, 3)
    )  # it does not say


def test_a_reference_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"

    def fail(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(KeyboardInterrupt):
        write_reference(path, moments_of("pool"), None, FEATURES["pool"], RECORD)
    assert not list(tmp_path.iterdir())


def test_without_spatial_features_none_are_written(tmp_path):
    path = tmp_path / "a.npz"
    write_reference(path, moments_of("pool"), None, FEATURES["pool"].astype(np.float64), RECORD)
    with np.load(path) as file:
        assert sorted(file.files) == ["features", "metadata", "mu", "sigma"]
        assert file["features"].dtype == np.float32
        assert json.loads(str(file["metadata"])) == {"format": "uvit_jax reference 1", **RECORD}
    assert isinstance(read_reference(path, small_network()).path, pathlib.Path)
