"""The job `prepare`: images and official features to pixels, moments and latents."""

import os
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

from tests.jobs.images import write_coco, write_images, write_taesd
from tests.jobs.preparation.prepare_runs import all_of, experiment, latents
from uvit_jax.data.image_sources.crops import CROPS
from uvit_jax.data.image_sources.registry import open_image_source
from uvit_jax.data.prepared.manifest import Manifest
from uvit_jax.data.prepared.prepared_data import PreparedData
from uvit_jax.errors import UserError
from uvit_jax.experiment.data_card import card_of_source
from uvit_jax.interop.autoencoder import open_autoencoder
from uvit_jax.jobs import prepare
from uvit_jax.jobs.preparation import shards


def test_pixels_are_the_cropped_images_with_their_labels(images, tmp_path):
    message = prepare.run(experiment(images, tmp_path / "out"), tmp_path)
    assert "prepared 12 images (16x16x3 uint8, 3 shards" in message
    found, originals = all_of(tmp_path / "out"), open_image_source(str(images))
    expected = np.stack([CROPS["adm"](originals[i].image, 16) for i in range(12)])
    assert np.array_equal(found["x"], expected)
    assert found["label"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    manifest = Manifest.load(tmp_path / "out")
    assert (manifest.kind, manifest.class_names, manifest.num_classes) == (
        "pixels",
        ("c0", "c1", "c2"),
        3,
    )
    values = expected.astype(np.float64) / 127.5 - 1
    np.testing.assert_allclose(manifest.mean, values.mean((0, 1, 2)), rtol=1e-9)
    np.testing.assert_allclose(manifest.std, values.std((0, 1, 2)), rtol=1e-9)


def test_moments_are_those_of_the_image_and_of_its_mirror_image(images, kl, tmp_path):
    prepare.run(experiment(images, tmp_path / "out", **latents(kl)), tmp_path)
    autoencoder, originals = open_autoencoder(kl), open_image_source(str(images))
    x = np.stack([CROPS["adm"](originals[i].image, 16) for i in range(12)]) / np.float32(
        127.5
    ) - np.float32(1)
    encode = jax.jit(autoencoder.encode)
    for mirrored in (False, True):
        expected = np.asarray(encode(autoencoder.params, x[:, :, ::-1] if mirrored else x)).astype(
            np.float16
        )
        found = all_of(tmp_path / "out", mirrored)["x"]
        np.testing.assert_allclose(
            found.astype(np.float32), expected.astype(np.float32), rtol=2e-3, atol=2e-3
        )
    manifest = Manifest.load(tmp_path / "out")
    assert (manifest.kind, manifest.shape, manifest.dtype, manifest.mirror) == (
        "moments",
        (4, 4, 8),
        "float16",
        True,
    )
    assert (manifest.autoencoder_sha256, manifest.scale) == (autoencoder.sha256, 0.18215)
    # Of latents drawn from the moments, by drawing many.
    moments = np.concatenate(
        [all_of(tmp_path / "out", mirrored)["x"] for mirrored in (False, True)]
    ).astype(np.float64)
    mean, logvar = np.split(moments, 2, -1)
    draws = mean + np.exp(logvar / 2) * np.random.default_rng(0).standard_normal((200, *mean.shape))
    np.testing.assert_allclose(manifest.mean, draws.mean((0, 1, 2, 3)), atol=0.02)
    np.testing.assert_allclose(manifest.std, draws.std((0, 1, 2, 3)), rtol=0.02)


def test_an_autoencoder_without_variance_stores_latents_that_their_statistics_scale(
    images, tmp_path
):
    name = write_taesd(tmp_path / "taesd.safetensors")
    prepare.run(
        experiment(images, tmp_path / "out", **latents(name, model__image_size=4)), tmp_path
    )
    manifest = Manifest.load(tmp_path / "out")
    assert (manifest.kind, manifest.shape, manifest.scale, manifest.image_size) == (
        "latents",
        (4, 4, 4),
        None,
        32,
    )
    x = np.concatenate(
        [all_of(tmp_path / "out", mirrored)["x"] for mirrored in (False, True)]
    ).astype(np.float64)
    np.testing.assert_allclose(manifest.mean, x.mean((0, 1, 2)), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(manifest.std, x.std((0, 1, 2)), rtol=1e-6)


def test_a_folder_that_cannot_be_made_is_named_by_its_field(tmp_path):
    write_images(tmp_path / "images")
    (tmp_path / "file").touch()
    with pytest.raises(
        UserError, match=rf"^config\.prepare\.out {tmp_path}/file/out can't be written to"
    ):
        prepare.run(experiment(tmp_path / "images", tmp_path / "file" / "out"), tmp_path)


def test_verify_reads_everything_again_and_names_what_was_altered(images, tmp_path):
    verifying = experiment(images, tmp_path / "out", prepare__verify=True)
    prepare.run(experiment(images, tmp_path / "out"), tmp_path)
    assert "verified 12 images" in prepare.run(verifying, tmp_path)
    shard = sorted((tmp_path / "out").glob("*.array_record"))[1]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(bytes(data))
    with pytest.raises(UserError, match=shard.name):
        prepare.run(verifying, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"prepare__source": ""},
            r"^config\.prepare\.source is empty, expected 'tfds:<name>' or a folder with COCO's",
        ),
        ({"prepare__source": "/nowhere"}, "/nowhere"),
        (
            {"prepare__out": ""},
            r"^config\.prepare\.out is empty and config\.data\.source is 'digits'",
        ),
        ({"prepare__crop": "none"}, r"c0/000\.png"),
        ({"prepare__max_pixels": 479}, r"20x24 = 480 .*, as config\.prepare\.max_pixels allows\)$"),
        ({"model__in_channels": 4}, r"RGB and alpha \(config\.model\.in_channels\)$"),
    ],
)
def test_bad_input_is_refused_before_anything_is_made(images, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        prepare.run(experiment(images, tmp_path / "out", **changes), tmp_path)
    assert not list(tmp_path.rglob("*.array_record"))


def test_an_empty_folder_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty"):
        prepare.run(experiment(tmp_path / "empty", tmp_path / "out"), tmp_path)


def test_a_size_the_autoencoder_cannot_halve_is_refused(images, kl, tmp_path):
    with pytest.raises(
        UserError, match=r"^config\.prepare\.image_size is 18, expected a multiple of"
    ):
        prepare.run(
            experiment(images, tmp_path / "out", **latents(kl, prepare__image_size=18)), tmp_path
        )


def write_arrays(folder: pathlib.Path, arrays: np.ndarray) -> None:
    folder.mkdir()
    for i, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"{i}.png")


def test_a_constant_channel_of_pixels_is_nothing_to_remark_upon(tmp_path, caplog):
    arrays = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), np.uint8)
    arrays[..., 2] = 51
    write_arrays(tmp_path / "images", arrays)
    with caplog.at_level("INFO", "uvit_jax"):
        prepare.run(experiment(tmp_path / "images", tmp_path / "out"), tmp_path)
    assert caplog.messages == ["preparing 6 images"]
    assert Manifest.load(tmp_path / "out").std[2] == 0.0


def test_a_constant_channel_of_latents_is_brought_to_mean_zero_alone(
    images, tmp_path, monkeypatch, caplog
):
    name = write_taesd(tmp_path / "taesd.safetensors")
    sums = shards.channel_sums

    def flat(kind, arrays):
        arrays = arrays.copy()
        arrays[..., 1] = 0.3
        return sums(kind, arrays)

    monkeypatch.setattr(shards, "channel_sums", flat)
    job = experiment(images, tmp_path / "out", **latents(name))
    with caplog.at_level("INFO", "uvit_jax"):
        prepare.run(job, tmp_path)
    assert any(said.startswith("channel 1 of the latents never varies") for said in caplog.messages)
    source = PreparedData(tmp_path / "out")
    normalization = card_of_source(source, None, job.autoencoder.scale, job.model).normalization
    assert (source.manifest.std[1], normalization.scale[1]) == (0.0, 1.0)
    assert normalization.shift[1] == pytest.approx(0.3, rel=1e-3)


def test_one_channel_is_asked_of_a_folder_of_any_images(images, tmp_path):
    prepare.run(experiment(images, tmp_path / "out", model__in_channels=1), tmp_path)
    path = sorted(images.glob("*/*.png"))[0]
    grey = np.asarray(Image.open(path).convert("L"))[..., None]
    assert np.array_equal(all_of(tmp_path / "out")["x"][0], CROPS["adm"](grey, 16))


def test_alpha_is_kept_where_the_model_has_four_channels(images, tmp_path):
    arrays = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 4), np.uint8)
    write_arrays(tmp_path / "images", arrays)
    prepare.run(experiment(tmp_path / "images", tmp_path / "out", model__in_channels=4), tmp_path)
    assert np.array_equal(all_of(tmp_path / "out")["x"], arrays)
    with pytest.raises(
        UserError,
        match=r"has no transparency .*, expected 4 channels, .*config\.model\.in_channels",
    ):
        prepare.run(experiment(images, tmp_path / "other", model__in_channels=4), tmp_path)


def test_images_that_are_not_square_are_stored_so(images, kl, tmp_path):
    wide = experiment(images, tmp_path / "model", model__image_size=(8, 16))
    prepare.run(wide, tmp_path)
    prepare.run(experiment(images, tmp_path / "field", prepare__image_size=(8, 16)), tmp_path)
    for out in ("model", "field"):
        manifest = Manifest.load(tmp_path / out)
        assert (manifest.image_size, manifest.shape) == ((8, 16), (8, 16, 3))
    assert "already prepared" in prepare.run(wide, tmp_path)
    plan = prepare.open_examples(
        experiment(images, tmp_path, **latents(kl, model__image_size=(4, 8)))
    ).plan
    assert (plan.image_size, plan.shape) == ((16, 32), (4, 8, 8))


def test_the_exif_orientation_is_followed_as_asked_and_never_mixed(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "images").mkdir()
    for i in range(6):
        Image.fromarray(array).save(tmp_path / "images" / f"{i}.png", exif=exif)
    found = {}
    for follow in (False, True):
        job = experiment(tmp_path / "images", tmp_path / str(follow), prepare__exif=follow)
        prepare.run(job, tmp_path)
        found[follow] = all_of(tmp_path / str(follow))["x"][0]
        assert Manifest.load(tmp_path / str(follow)).exif == follow
    assert np.array_equal(found[True], np.rot90(found[False], -1))
    with pytest.raises(UserError, match=r"was begun with exif = False, but it is True now"):
        prepare.run(
            experiment(tmp_path / "images", tmp_path / "False", prepare__exif=True), tmp_path
        )


def test_class_folders_that_are_not_utf8_are_in_the_manifest_as_text(tmp_path):
    write_images(tmp_path / "images", classes=2, per_class=1)
    (tmp_path / "images" / "c1").rename(tmp_path / "images" / os.fsdecode(b"caf\xe9"))
    prepare.run(experiment(tmp_path / "images", tmp_path / "out"), tmp_path)
    assert Manifest.load(tmp_path / "out").class_names == ("c0", r"caf\xe9")


def test_captions_that_are_not_stored_are_logged(images, tmp_path, caplog):
    write_coco(tmp_path / "coco")
    job = experiment(tmp_path / "coco", tmp_path / "out", prepare__split="train2017")
    with caplog.at_level("INFO", "uvit_jax"):
        prepare.run(job, tmp_path)
    assert (
        "the captions of coco:coco:train2017 are not stored: config.text_encoder.name is empty"
        in caplog.messages
    )


def test_a_folder_to_make_that_is_not_utf8_is_refused_before_any_work(images, tmp_path):
    out = tmp_path / os.fsdecode(b"caf\xe9")
    with pytest.raises(
        UserError,
        match=r"^config\.prepare\.out is .*caf\\udce9', which is not UTF-8, expected a path",
    ):
        prepare.run(experiment(images, out), tmp_path)
    assert not out.exists()
