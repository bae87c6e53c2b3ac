"""Images of a reference: read, cropped and decoded as the config says, from any image on."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from PIL import Image

from tests.data.prepared_sets import prepare
from tests.jobs.digits_config import experiment
from tests.jobs.evaluation.stream_checks import check_taken_up_anywhere, images_of, pngs
from tests.jobs.images import write_images, write_kl, write_taesd
from uvit_jax.data.image_sources.crops import adm
from uvit_jax.data.prepared.manifest import Manifest
from uvit_jax.data.training_data import digits
from uvit_jax.errors import UserError
from uvit_jax.interop.autoencoder import open_autoencoder
from uvit_jax.jobs import prepare as prepare_job
from uvit_jax.jobs.evaluation import image_streams, reference_images
from uvit_jax.jobs.evaluation.reference_images import open_reference_images, reference_source
from uvit_jax.parallel.mesh import MeshConfig, make_mesh
from uvit_jax.telemetry.images import to_uint8


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(), jax.devices()[:1])


def open_images(config, name, size, mesh):
    """The images of this name, read as the config says."""
    return open_reference_images(
        dataclasses.replace(reference_source(config), name=name), size, mesh
    )


@pytest.fixture
def few_at_a_time(monkeypatch):
    """Batches smaller than a folder of a test."""
    monkeypatch.setattr(image_streams, "ROWS", 4)
    monkeypatch.setattr(reference_images, "ROWS", 4)


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    """Images and both tiny autoencoders; `latents(name)` prepares the images with one."""
    root = tmp_path_factory.mktemp("latents")
    write_images(root / "images", classes=2, per_class=3)
    write_kl(root / "kl.safetensors")
    write_taesd(root / "taesd.safetensors")

    @functools.cache
    def made(name):
        changes = {"prepare__source": str(root / "images"), "data__source": str(root / name)}
        changes |= {"prepare__image_size": 16 if name == "kl" else 32, "prepare__batch_size": 4}
        prepare_job.run(
            experiment(autoencoder__name=str(root / f"{name}.safetensors"), **changes), root
        )
        return root

    return made


def test_digits_are_the_bytes_of_their_grey_levels(mesh):
    stream = open_images(experiment(), "digits", 8, mesh)
    expected = to_uint8(digits().images)
    check_taken_up_anywhere(stream, expected)
    assert len(np.unique(expected)) == 17
    assert (stream.name, stream.record) == ("digits", {})


def test_pictures_of_a_folder_are_cropped_as_preparing_crops_them(tmp_path, mesh, few_at_a_time):
    write_images(tmp_path / "images", classes=2, per_class=3, size=(40, 30))
    paths = sorted((tmp_path / "images").glob("*/*.png"))
    expected = np.stack([adm(np.asarray(Image.open(path)), 16) for path in paths])
    stream = open_images(experiment(), str(tmp_path / "images"), 16, mesh)
    check_taken_up_anywhere(stream, expected)
    assert stream.record == {"split": "train", "crop": "adm"}
    lanczos = open_images(experiment(prepare__crop="lanczos"), str(tmp_path / "images"), 16, mesh)
    assert not np.array_equal(images_of(lanczos), expected)


def test_a_picture_that_cannot_be_cropped_so_is_named(tmp_path, mesh):
    pngs(tmp_path / "images", size=(8, 8))
    Image.fromarray(np.zeros((9, 8, 3), np.uint8)).save(tmp_path / "images" / "4.png")
    stream = open_images(experiment(prepare__crop="none"), str(tmp_path / "images"), 8, mesh)
    with pytest.raises(
        UserError, match=r"^4\.png of images: crop 'none' got an image of 8x9 pixels, expected 8x8"
    ):
        images_of(stream)
    with pytest.raises(
        UserError, match=r"0\.png of images: crop 'celeba' got an image of 8x8 pixels"
    ):
        open_images(experiment(prepare__crop="celeba"), str(tmp_path / "images"), 8, mesh)


def test_a_reference_that_is_nowhere_is_refused(tmp_path, mesh):
    with pytest.raises(
        UserError,
        match=r"^config\.data\.source is '\S+gone', which samples are to be compared with: it "
        r"doesn't exist, exp",
    ):
        open_images(experiment(), str(tmp_path / "gone"), 8, mesh)


def test_prepared_pixels_are_what_was_stored(tmp_path, mesh, few_at_a_time):
    x, _ = prepare(tmp_path, kind="pixels", shape=(6, 6, 3), dtype="uint8")
    stream = open_images(experiment(), str(tmp_path), 0, mesh)
    check_taken_up_anywhere(stream, x[:, 0])
    assert (stream.name, stream.record) == ("random", {"split": "train", "crop": "none"})


@pytest.mark.parametrize(
    ("name", "side"), [("kl", 16), pytest.param("taesd", 32, marks=pytest.mark.slow)]
)
def test_prepared_latents_are_decoded_without_any_noise_or_scale(
    latents, mesh, few_at_a_time, name, side
):
    latents = latents(name)
    config = experiment(
        autoencoder__name=str(latents / f"{name}.safetensors"), autoencoder__batch_size=2
    )
    stream = open_images(config, str(latents / name), side, mesh)
    autoencoder = open_autoencoder(config.autoencoder.name)
    paths = sorted((latents / "images").glob("*/*.png"))
    x = (
        np.stack([adm(np.asarray(Image.open(path)), side) for path in paths]).astype(np.float32)
        / 127.5
        - 1
    )
    encoded = np.asarray(jax.jit(autoencoder.encode)(autoencoder.params, x), np.float16).astype(
        np.float32
    )
    z = encoded[..., : encoded.shape[-1] // 2] if name == "kl" else encoded
    expected = to_uint8(np.asarray(jax.jit(autoencoder.decode)(autoencoder.params, z)))
    found = images_of(stream)
    assert found.shape == (6, side, side, 3)
    assert expected.std() > 5
    # The moments on disk have 11 bits.
    assert np.abs(found.astype(int) - expected).max() <= 1
    check_taken_up_anywhere(stream, found)
    assert stream.record["decoded with"] == config.autoencoder.name
    assert stream.record["latents"] == ("means of moments" if name == "kl" else "stored")


def test_latents_of_another_autoencoder_are_refused(latents, mesh):
    latents = latents("kl")
    config = experiment(autoencoder__name=str(latents / "taesd.safetensors"))
    message = (
        r"taesd\.safetensors', whose encoder \(SHA-256 \w{12}\) is not the one of the "
        r"latents in \S+/kl: expected"
    )
    with pytest.raises(UserError, match=message):
        open_images(config, str(latents / "kl"), 16, mesh)
    manifest = Manifest.load(latents / "kl")
    with pytest.raises(
        UserError,
        match=rf"holds latents, and config\.autoencoder\.name is empty: expected "
        rf"{manifest.autoencoder!r} to decode them with",
    ):
        open_images(experiment(), str(latents / "kl"), 16, mesh)


def test_pictures_of_a_reference_are_turned_as_the_config_says_and_may_have_two_sides(
    tmp_path, mesh
):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "images").mkdir()
    Image.fromarray(np.random.default_rng(0).integers(256, size=(20, 10, 3), dtype=np.uint8)).save(
        tmp_path / "images" / "0.png", exif=exif
    )
    job = experiment(prepare__exif=True, prepare__crop="none")
    stream = open_images(job, str(tmp_path / "images"), (10, 20), mesh)
    with Image.open(tmp_path / "images" / "0.png") as picture:
        expected = np.rot90(np.asarray(picture), -1)[None]
    check_taken_up_anywhere(stream, expected)
    assert stream.record == {"split": "train", "crop": "none", "exif": True}
