"""References: made of images, kept, and made again when anything they depend on changed."""

import dataclasses
import json
import os
import pathlib
import shutil
import time

import jax
import numpy as np
import pytest

from tests.data.prepared_sets import prepare
from tests.jobs.digits_config import experiment
from tests.jobs.images import write_images
from tests.metrics.small_network import small_network
from uvit_jax.data.training_data import digits
from uvit_jax.errors import UserError
from uvit_jax.jobs.evaluation import reference_statistics
from uvit_jax.jobs.evaluation.reference_images import open_reference_images, reference_source
from uvit_jax.jobs.evaluation.reference_statistics import (
    is_statistics,
    make_reference,
    obtain_reference,
    with_features,
)
from uvit_jax.metrics.feature_network import Extraction
from uvit_jax.metrics.reference_file import read_reference
from uvit_jax.parallel import hosts
from uvit_jax.parallel.mesh import MeshConfig, make_mesh
from uvit_jax.telemetry.images import to_uint8

KINDS = ("pool", "spatial")


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.fixture(scope="module")
def extraction(mesh):
    return Extraction(small_network(), mesh, KINDS)


@pytest.fixture
def made(monkeypatch):
    """The files that references were made into so far."""
    paths = []

    def counted(stream, extraction, path, *, num_features):
        paths.append(path.name)
        make_reference(stream, extraction, path, num_features=num_features)

    monkeypatch.setattr(reference_statistics, "make_reference", counted)
    return paths


def obtain(config, workdir, extraction, shape):
    """The reference that the config names."""
    return obtain_reference(reference_source(config), workdir, extraction, shape)


def folder(path, **options):
    write_images(path, **{"classes": 2, "per_class": 5, "size": (16, 16)} | options)
    return str(path)


def test_the_statistics_are_those_of_all_images(tmp_path, extraction):
    found = obtain(experiment(), tmp_path, extraction, (8, 8, 1))
    features = extraction(to_uint8(digits().images))
    for kind, (mean, covariance) in {
        "pool": (found.mean, found.covariance),
        "spatial": found.spatial,
    }.items():
        rows = features[kind].astype(np.float64)
        np.testing.assert_allclose(mean, rows.mean(0), rtol=1e-12)
        np.testing.assert_allclose(covariance, np.cov(rows, rowvar=False), rtol=1e-9, atol=1e-15)
    np.testing.assert_array_equal(found.features, features["pool"])
    assert found.record == {
        "format": "uvit_jax reference 1",
        "source": "digits",
        "count": 1797,
        "shape": [8, 8, 1],
        "rounding": "8 bits",
        "extractor": small_network().identity,
    }


@pytest.mark.parametrize("kept", [10, 100, 1796])
def test_the_features_kept_are_spread_over_the_data(tmp_path, extraction, kept):
    found = obtain(experiment(evaluate__num_features=kept), tmp_path, extraction, (8, 8, 1))
    numbers = np.linspace(0, 1796, kept).round().astype(int)
    assert len(set(numbers)) == kept
    np.testing.assert_array_equal(
        found.features, extraction(to_uint8(digits().images[numbers]))["pool"]
    )


def test_without_spatial_features_the_reference_has_none(tmp_path, mesh):
    poorer = Extraction(small_network(widths={"pool": 6}), mesh, ["pool"])
    assert obtain(experiment(), tmp_path, poorer, (8, 8, 1)).spatial is None


def test_a_reference_is_kept_for_the_next_time(tmp_path, extraction, made):
    config = experiment(evaluate__reference=folder(tmp_path / "images"))
    first = obtain(config, tmp_path / "run", extraction, (16, 16, 3))
    again = obtain(config, tmp_path / "run", extraction, (16, 16, 3))
    assert len(made) == 1
    assert again.path == first.path
    assert again.sha256 == first.sha256
    assert first.path.parent == tmp_path / "run" / "evaluations" / "references"
    assert first.path.name.startswith("images_16_")
    assert first.record["crop"] == "adm"


@pytest.mark.parametrize("shape", [(16, 16, 3), (16, 16, 1)])
def test_grey_and_colour_can_be_compared(tmp_path, extraction, shape):
    config = experiment(evaluate__reference=folder(tmp_path / "images"))
    assert obtain(config, tmp_path, extraction, shape).record["shape"] == [16, 16, 3]


def rewrite(path):
    """Another image under the name of one, as large and in the same folder."""
    one, other = path / "c0" / "000.png", path / "c1" / "004.png"
    content = other.read_bytes()
    time.sleep(0.01)
    one.write_bytes(content)


CHANGES = {
    "an image written over": rewrite,
    "an image more": lambda path: shutil.copy2(path / "c0" / "000.png", path / "c0" / "100.png"),
    "an image less, another more": lambda path: (path / "c0" / "000.png").rename(
        path / "c1" / "100.png"
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_reference_is_made_again_when_an_image_deep_inside_changed(
    tmp_path, extraction, made, change
):
    config = experiment(evaluate__reference=folder(tmp_path / "images"))
    first = obtain(config, tmp_path / "run", extraction, (16, 16, 3))
    times = os.stat(tmp_path / "images")
    CHANGES[change](tmp_path / "images")
    os.utime(tmp_path / "images", ns=(times.st_atime_ns, times.st_mtime_ns))
    second = obtain(config, tmp_path / "run", extraction, (16, 16, 3))
    assert len(made) == 2
    if change != "an image less, another more":
        assert not np.array_equal(first.mean, second.mean)


@pytest.mark.parametrize(
    ("config", "network"),
    [
        ({"evaluate__num_features": 12}, {}),
        ({"prepare__crop": "lanczos"}, {}),
        ({"prepare__split": "val"}, {}),
        ({}, {"sha256": "b" * 64}),
        ({}, {"name": "large"}),
        ({}, {"settings": {"resize": "tf1", "dtype": "float32"}}),
    ],
)
def test_a_reference_is_made_again_when_what_makes_it_changed(
    tmp_path, mesh, extraction, made, config, network
):
    folder(tmp_path / "images" / "train")
    folder(tmp_path / "images" / "val")
    base = {"evaluate__reference": str(tmp_path / "images")}
    obtain(experiment(**base), tmp_path / "run", extraction, (16, 16, 3))
    other = Extraction(small_network(**network), mesh, KINDS)
    obtain(experiment(**base, **config), tmp_path / "run", other, (16, 16, 3))
    assert len(set(made)) == 2
    # And the first is still there.
    obtain(experiment(**base), tmp_path / "run", extraction, (16, 16, 3))
    assert len(made) == 2


def test_references_of_one_name_at_two_sizes_or_in_two_folders_are_two(tmp_path, extraction, made):
    for place in ("a", "b"):
        config = experiment(evaluate__reference=folder(tmp_path / place / "images", size=(20, 20)))
        for side in (16, 8):
            obtain(config, tmp_path / "run", extraction, (side, side, 3))
    assert len(set(made)) == 4


def test_a_prepared_data_set_is_known_by_its_manifest(tmp_path, extraction, made):
    data, options = tmp_path / "data", {"kind": "pixels", "shape": (8, 8, 3), "dtype": "uint8"}
    prepare(data, **options)
    config = experiment(evaluate__reference=str(data))
    for _ in range(2):
        obtain(config, tmp_path / "run", extraction, (8, 8, 3))
    (data / "note.txt").write_text("no part of it")
    obtain(config, tmp_path / "run", extraction, (8, 8, 3))
    assert len(made) == 1
    shutil.rmtree(data)
    prepare(data, (5, 7, 2), **options)
    obtain(config, tmp_path / "run", extraction, (8, 8, 3))
    assert len(made) == 2


def test_an_npz_written_over_is_another(tmp_path, extraction, made):
    images = np.random.default_rng(0).integers(256, size=(9, 8, 8, 3), dtype=np.uint8)
    for _ in range(2):
        time.sleep(0.01)
        np.savez(tmp_path / "images.npz", images=images)
        config = experiment(evaluate__reference=str(tmp_path / "images.npz"))
        for _ in range(2):
            obtain(config, tmp_path / "run", extraction, (8, 8, 3))
        images = 255 - images
    assert len(set(made)) == len(made) == 2


def test_a_kept_reference_that_is_damaged_is_named(tmp_path, extraction):
    path = obtain(experiment(), tmp_path, extraction, (8, 8, 1)).path
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=rf"^{path} can't be read"):
        obtain(experiment(), tmp_path, extraction, (8, 8, 1))


def test_a_run_killed_while_it_made_one_leaves_none(tmp_path, extraction, monkeypatch):
    def fail(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(KeyboardInterrupt):
        obtain(experiment(), tmp_path, extraction, (8, 8, 1))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("shape", [(16, 16, 1), (8, 16, 1)])
def test_images_of_another_size_are_not_a_reference(tmp_path, extraction, shape):
    with pytest.raises(
        UserError,
        match=r"^config\.data\.source is 'digits', whose images have shape \(8, 8, 1\), but the "
        r"samples .*reference",
    ):
        obtain(experiment(), tmp_path, extraction, shape)
    with pytest.raises(UserError, match=r"^config\.evaluate\.reference is 'digits', whose"):
        obtain(experiment(evaluate__reference="digits"), tmp_path, extraction, shape)
    made = make(tmp_path, extraction)
    with pytest.raises(UserError, match=r"made\.npz is of images of 8x8x1, but the samples have"):
        obtain(experiment(evaluate__reference=made), tmp_path, extraction, shape)


def test_images_that_are_not_squares_can_be_a_reference(tmp_path, extraction):
    np.savez(
        tmp_path / "images.npz",
        images=np.arange(9 * 8 * 12 * 3, dtype=np.uint8).reshape(9, 8, 12, 3),
    )
    config = experiment(evaluate__reference=str(tmp_path / "images.npz"))
    assert obtain(config, tmp_path, extraction, (8, 12, 3)).record["shape"] == [8, 12, 3]


def make(tmp_path, extraction):
    """A file of the digits' statistics."""
    source = reference_source(experiment())
    stream = open_reference_images(source, 0, extraction.mesh)
    make_reference(stream, extraction, tmp_path / "made.npz", num_features=source.num_features)
    return str(tmp_path / "made.npz")


def test_a_file_made_before_is_read_where_it_is(tmp_path, extraction, made):
    path = make(tmp_path, extraction)
    found = obtain(experiment(evaluate__reference=path), tmp_path / "run", extraction, (8, 8, 1))
    assert str(found.path) == path
    assert made == []
    assert not (tmp_path / "run").exists()
    other = Extraction(small_network(sha256="b" * 64), extraction.mesh, KINDS)
    with pytest.raises(UserError, match=r"made\.npz was made with sha256 = "):
        obtain(experiment(evaluate__reference=path), tmp_path / "run", other, (8, 8, 1))


def test_statistics_are_separated_from_images(tmp_path):
    np.savez(
        tmp_path / "adm.npz",
        mu=np.zeros(6),
        sigma=np.eye(6),
        arr_0=np.zeros((2, 8, 8, 3), np.uint8),
    )
    np.savez(tmp_path / "samples.npz", np.zeros((2, 8, 8, 3), np.uint8))
    np.savez(tmp_path / "ours.npz", images=np.zeros((2, 8, 8, 3), np.uint8))
    np.savez_compressed(tmp_path / "neither.npz", x=np.zeros(3))
    names = ("adm.npz", "samples.npz", "ours.npz", "neither.npz")
    assert [is_statistics(str(tmp_path / name)) for name in names] == [True, False, False, True]
    assert not is_statistics("digits")
    assert not is_statistics(str(tmp_path))
    (tmp_path / "text.npz").write_text("text")
    for name in ("text.npz", "gone.npz"):
        with pytest.raises(
            UserError, match=rf"^config\.evaluate\.reference is '\S+{name}', which can't be read \("
        ):
            is_statistics(str(tmp_path / name))


def test_features_are_made_of_adms_images_where_there_are_none(tmp_path, extraction):
    images = np.random.default_rng(0).integers(256, size=(21, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "adm.npz", mu=np.zeros(6), sigma=np.eye(6), arr_0=images)
    reference = read_reference(tmp_path / "adm.npz", extraction.network)
    found = with_features(reference, extraction, (8, 8, 3))
    np.testing.assert_array_equal(found.features, extraction(images)["pool"])
    assert dataclasses.replace(found, features=None).mean is reference.mean
    with pytest.raises(
        UserError, match=r"adm\.npz holds images of shape \(8, 8, 3\), expected \(16, 16, 3\)"
    ):
        with_features(reference, extraction, (16, 16, 3))
    np.savez(tmp_path / "moments.npz", mu=np.zeros(6), sigma=np.eye(6))
    bare = read_reference(tmp_path / "moments.npz", extraction.network)
    assert with_features(bare, extraction, (16, 16, 3)) is bare
    ours = read_reference(pathlib.Path(make(tmp_path, extraction)), extraction.network)
    assert with_features(ours, extraction, (8, 8, 1)) is ours


def test_hosts_use_the_first_ones_name_whatever_theirs_would_be(monkeypatch):
    # Each may hold its own copy of a folder, unpacked at another time.
    monkeypatch.setattr(hosts, "are_several", lambda: True)
    for value in ("images_16_abcd.npz", True, False, 0, 300):
        monkeypatch.setattr(hosts, "_gather", lambda text, value=value: [json.dumps(value), text])
        found = hosts.first_says(type(value)(0))
        assert found == value
        assert type(found) is type(value)
