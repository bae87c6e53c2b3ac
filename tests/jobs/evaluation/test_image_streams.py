"""Streams of images: in order, taken up anywhere, and what is wrong with one image told by its
name.
"""

import functools

import jax
import numpy as np
import pytest
from PIL import Image

from tests.data.prepared_sets import prepare
from tests.jobs.digits_config import experiment
from tests.jobs.images import write_images, write_kl, write_taesd
from uvit_jax.data.originals.crops import adm
from uvit_jax.data.prepared.manifest import Manifest
from uvit_jax.data.sources import digits
from uvit_jax.errors import UserError
from uvit_jax.interop.autoencoder import open_autoencoder
from uvit_jax.jobs import prepare as prepare_job
from uvit_jax.jobs.evaluation import image_streams
from uvit_jax.jobs.evaluation.image_streams import open_reference_images, open_samples, regrouped
from uvit_jax.parallel.mesh import MeshConfig, make_mesh
from uvit_jax.telemetry.images import to_uint8


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(), jax.devices()[:1])


def images_of(stream, first=0):
    """All images from number `first` on; each batch must be of the stream's shape."""
    batches = list(stream.batches(first))
    assert all(batch.shape[1:] == stream.shape and batch.dtype == np.uint8 for batch in batches)
    return np.concatenate([np.zeros((0, *stream.shape), np.uint8), *batches])


def check_taken_up_anywhere(stream, expected):
    assert (stream.count, *stream.shape) == expected.shape
    for first in (0, 1, len(expected) // 2, len(expected) - 1, len(expected)):
        np.testing.assert_array_equal(images_of(stream, first), expected[first:])


@pytest.fixture
def few_at_a_time(monkeypatch):
    """Batches smaller than a folder of a test."""
    monkeypatch.setattr(image_streams, "_ROWS", 4)


def pngs(folder, count=10, size=(6, 5)):
    """PNGs named so that the order of names is neither that of writing nor that of numbers."""
    folder.mkdir()
    images = {
        f"{i}.png": np.random.default_rng(i).integers(256, size=(*size, 3), dtype=np.uint8)
        for i in range(count)
    }
    for name in sorted(images, key=lambda name: name[::-1], reverse=True):
        Image.fromarray(images[name]).save(folder / name)
    return images


def test_regrouped_images_are_the_same_in_groups_of_one_size():
    images = np.arange(23, dtype=np.uint8)[:, None, None, None]
    for cuts in ([], [1, 2, 3], [5, 5, 20], [0, 10, 23]):
        groups = list(regrouped(iter(np.split(images, cuts)), 6))
        assert [len(group) for group in groups] == [6, 6, 6, 5]
        np.testing.assert_array_equal(np.concatenate(groups), images)
    assert list(regrouped(iter([]), 6)) == []
    assert list(regrouped(iter([images[:0]]), 6)) == []


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
def test_what_are_no_samples_is_told(tmp_path, make, message):
    make(tmp_path / "s")
    with pytest.raises(UserError, match=message):
        open_samples(str(tmp_path / "s"))


def test_digits_are_the_bytes_of_their_grey_levels(mesh):
    stream = open_reference_images(experiment(), "digits", 8, mesh)
    expected = to_uint8(digits().images)
    check_taken_up_anywhere(stream, expected)
    assert len(np.unique(expected)) == 17
    assert (stream.name, stream.record) == ("digits", {})


def test_pictures_of_a_folder_are_cropped_as_preparing_crops_them(tmp_path, mesh, few_at_a_time):
    write_images(tmp_path / "images", classes=2, per_class=3, size=(40, 30))
    paths = sorted((tmp_path / "images").glob("*/*.png"))
    expected = np.stack([adm(np.asarray(Image.open(path)), 16) for path in paths])
    stream = open_reference_images(experiment(), str(tmp_path / "images"), 16, mesh)
    check_taken_up_anywhere(stream, expected)
    assert stream.record == {"split": "train", "crop": "adm"}
    lanczos = open_reference_images(
        experiment(prepare__crop="lanczos"), str(tmp_path / "images"), 16, mesh
    )
    assert not np.array_equal(images_of(lanczos), expected)


def test_a_picture_that_cannot_be_cropped_so_is_named(tmp_path, mesh):
    pngs(tmp_path / "images", size=(8, 8))
    Image.fromarray(np.zeros((9, 8, 3), np.uint8)).save(tmp_path / "images" / "4.png")
    stream = open_reference_images(
        experiment(prepare__crop="none"), str(tmp_path / "images"), 8, mesh
    )
    with pytest.raises(
        UserError, match=r"^4\.png of images: crop 'none' got an image of 8x9 pixels, expected 8x8"
    ):
        images_of(stream)
    with pytest.raises(
        UserError, match=r"0\.png of images: crop 'celeba' got an image of 8x8 pixels"
    ):
        open_reference_images(experiment(prepare__crop="celeba"), str(tmp_path / "images"), 8, mesh)


def test_a_reference_that_is_nowhere_is_told(tmp_path, mesh):
    with pytest.raises(
        UserError,
        match=r"^config\.data\.source is '\S+gone', which samples are to be compared with: it "
        r"doesn't exist, exp",
    ):
        open_reference_images(experiment(), str(tmp_path / "gone"), 8, mesh)


def test_prepared_pixels_are_what_was_stored(tmp_path, mesh, few_at_a_time):
    x, _ = prepare(tmp_path, kind="pixels", shape=(6, 6, 3), dtype="uint8")
    stream = open_reference_images(experiment(), str(tmp_path), 0, mesh)
    check_taken_up_anywhere(stream, x[:, 0])
    assert (stream.name, stream.record) == ("random", {"split": "train", "crop": "none"})


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    """A folder with images and both tiny autoencoders; `latents(name)` prepares the images with one
    of them.
    """
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
    stream = open_reference_images(config, str(latents / name), side, mesh)
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
        open_reference_images(config, str(latents / "kl"), 16, mesh)
    manifest = Manifest.load(latents / "kl")
    with pytest.raises(
        UserError,
        match=rf"holds latents, and config\.autoencoder\.name is empty: expected "
        rf"{manifest.autoencoder!r} to decode them with",
    ):
        open_reference_images(experiment(), str(latents / "kl"), 16, mesh)


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
    stream = open_reference_images(job, str(tmp_path / "images"), (10, 20), mesh)
    with Image.open(tmp_path / "images" / "0.png") as picture:
        expected = np.rot90(np.asarray(picture), -1)[None]
    check_taken_up_anywhere(stream, expected)
    assert stream.record == {"split": "train", "crop": "none", "exif": True}
