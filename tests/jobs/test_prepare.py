"""The job `prepare`: folders of images and official features to data sets of pixels, moments and
latents.
"""

import dataclasses
import errno
import json
import os
import pathlib
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from configs import digits
from tests.jobs.images import write_coco, write_images, write_kl, write_taesd
from uvit_jax.data.originals.crops import CROPS
from uvit_jax.data.originals.folders import ImageFolder
from uvit_jax.data.originals.open import open_originals
from uvit_jax.data.prepared.manifest import Manifest
from uvit_jax.data.prepared.record_source import RecordSource
from uvit_jax.errors import UserError
from uvit_jax.experiment import folder_lock
from uvit_jax.experiment.config import Experiment, resolve
from uvit_jax.experiment.data_card import card_of_source
from uvit_jax.interop.autoencoder import open_autoencoder
from uvit_jax.jobs import prepare
from uvit_jax.jobs.preparation import prepared_examples
from uvit_jax.parallel import hosts


def experiment(source: pathlib.Path, out: pathlib.Path, **changes) -> Experiment:
    """A job of images of 16x16 pixels, five to a shard; fields as `prepare__crop="none"`."""
    config = digits.get_config()
    config.model.image_size = 16
    config.model.in_channels = 3
    config.prepare.source = str(source)
    config.prepare.out = str(out)
    config.prepare.images_per_shard = 5
    config.prepare.batch_size = 4
    config.prepare.threads = 2
    config.update_from_flattened_dict(
        {name.replace("__", "."): value for name, value in changes.items()}
    )
    return resolve(config)


def all_of(folder: pathlib.Path, mirrored: bool = False) -> dict[str, np.ndarray]:
    source = RecordSource(folder)
    return source.read(np.arange(len(source)), np.full(len(source), mirrored))


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("images")
    write_images(folder)
    return folder


@pytest.fixture(scope="module")
def kl(tmp_path_factory) -> str:
    return write_kl(tmp_path_factory.mktemp("kl") / "kl.safetensors")


def latents(kl: str, **changes) -> dict:
    return {"autoencoder__name": kl, "model__image_size": 4, "model__in_channels": 4, **changes}


def test_pixels_are_the_cropped_images_with_their_labels(images, tmp_path):
    message = prepare.run(experiment(images, tmp_path / "out"), tmp_path)
    assert "prepared 12 images (16x16x3 uint8, 3 shards" in message
    found, originals = all_of(tmp_path / "out"), open_originals(str(images))
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
    autoencoder, originals = open_autoencoder(kl), open_originals(str(images))
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


def test_an_autoencoder_without_variance_stores_its_latents_and_leaves_the_scale_to_their_statistics(
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


def test_the_same_command_again_does_nothing_and_other_settings_are_refused(images, tmp_path):
    prepare.run(experiment(images, tmp_path / "out"), tmp_path)
    before = {
        path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()
    }
    assert "already prepared" in prepare.run(experiment(images, tmp_path / "out"), tmp_path)
    assert before == {
        path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()
    }
    with pytest.raises(UserError, match=r"was begun with image_size = 16, but it is 8 now"):
        prepare.run(experiment(images, tmp_path / "out", model__image_size=8), tmp_path)


def test_the_same_weights_may_have_another_name_and_others_may_not(images, kl, tmp_path):
    prepare.run(experiment(images, tmp_path / "out", **latents(kl)), tmp_path)
    copied = shutil.copy(kl, tmp_path / "copy.safetensors")
    assert "already prepared" in prepare.run(
        experiment(images, tmp_path / "out", **latents(str(copied))), tmp_path
    )
    other = write_kl(tmp_path / "other.safetensors", seed=1)
    with pytest.raises(UserError, match=r"was begun with autoencoder_sha256 = '"):
        prepare.run(experiment(images, tmp_path / "out", **latents(other)), tmp_path)


def half_made(job: Experiment) -> pathlib.Path:
    """A folder whose first shard of three is made, as a run that was killed leaves it."""
    out = pathlib.Path(job.prepare.out)
    prepare.run(job, out)
    for path in [*sorted(out.glob("*.array_record"))[1:], out / "manifest.json"]:
        path.unlink()
    return out


def test_a_command_that_failed_before_its_first_shard_may_be_corrected(images, tmp_path):
    with pytest.raises(UserError, match=r"c0/000\.png"):
        prepare.run(experiment(images, tmp_path / "out", prepare__crop="none"), tmp_path)
    assert "prepared 12 images" in prepare.run(experiment(images, tmp_path / "out"), tmp_path)
    assert Manifest.load(tmp_path / "out").crop == "adm"
    assert json.loads((tmp_path / "out" / ".prepare" / "plan.json").read_text())["crop"] == "adm"


def test_of_two_that_begin_a_folder_without_locks_at_once_with_other_settings_one_stores_nothing(
    images, tmp_path, monkeypatch
):
    out, make, inside = tmp_path / "out", prepare._make_shard, []

    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(folder_lock.fcntl, "flock", flock)

    def make_beside_another(*arguments):
        if not inside:
            inside.append(True)
            prepare.run(experiment(images, out, model__image_size=8), tmp_path)
        return make(*arguments)

    monkeypatch.setattr(prepare, "_make_shard", make_beside_another)
    with pytest.raises(
        UserError,
        match=r"^another prepare has begun .*out with image_size = 8, while this one has 16:",
    ):
        prepare.run(experiment(images, out), tmp_path)
    assert Manifest.load(out).image_size == 8
    assert "every record" in prepare.run(experiment(images, out, prepare__verify=True), tmp_path)
    assert not list(out.glob(".*.tmp"))


def test_a_folder_is_prepared_by_one_job_at_a_time(images, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_lock, "SECONDS_TO_WAIT", {"here": 0.2, "elsewhere": 0.2})
    monkeypatch.setattr(
        prepare,
        "_make_shard",
        lambda *_: prepare.run(experiment(images, tmp_path / "out"), tmp_path),
    )
    with pytest.raises(
        UserError,
        match=r"/out is in use by the job prepare \(process \d+ on .*, expected one job at a",
    ):
        prepare.run(experiment(images, tmp_path / "out"), tmp_path)


def test_a_folder_whose_shards_were_deleted_starts_over_without_their_notes(
    images, tmp_path, monkeypatch
):
    prepare.run(experiment(images, tmp_path / "out"), tmp_path)
    for path in (tmp_path / "out").glob("[!.]*"):
        path.unlink()

    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(prepare, "_make_shard", fail)
        with pytest.raises(KeyboardInterrupt):
            prepare.run(experiment(images, tmp_path / "out", model__image_size=8), tmp_path)
    assert [path.name for path in (tmp_path / "out" / ".prepare").iterdir()] == ["plan.json"]
    assert "(8x8x3 uint8" in prepare.run(
        experiment(images, tmp_path / "out", model__image_size=8), tmp_path
    )


def rename_a_class(folder: pathlib.Path) -> None:
    (folder / "c0").rename(folder / "z0")


def rename_a_file(folder: pathlib.Path) -> None:
    (folder / "c0" / "000.png").rename(folder / "c0" / "009.png")


def move_an_image_to_another_class(folder: pathlib.Path) -> None:
    (folder / "c1" / "003.png").rename(folder / "c2" / "004.png")


@pytest.mark.parametrize("change", [rename_a_class, rename_a_file, move_an_image_to_another_class])
def test_shards_of_a_source_in_another_order_are_not_gone_on_with(tmp_path, change):
    # Renamed, c0 is the last class: labels would be wrong, some images stored twice and others not
    # at all.
    write_images(tmp_path / "images")
    job = experiment(tmp_path / "images", tmp_path / "out")
    out = half_made(job)
    change(tmp_path / "images")
    said = (
        rf"^{out} was begun with listing_sha256 = '\w{{64}}', but it is '\w{{64}}' now \(of the "
        rf"source's file names, "
        r"labels, captions and class names\): expected the same settings, or another "
        r"config\.prepare\.out$"
    )
    with pytest.raises(UserError, match=said):
        prepare.run(job, tmp_path)
    assert len(list(out.glob("*.array_record"))) == 1


def test_an_image_more_is_told_by_the_number_of_images(tmp_path):
    write_images(tmp_path / "images")
    job = experiment(tmp_path / "images", tmp_path / "out")
    half_made(job)
    shutil.copy(tmp_path / "images" / "c0" / "000.png", tmp_path / "images" / "c0" / "004.png")
    with pytest.raises(UserError, match=r"was begun with num_images = 12, but it is 13 now"):
        prepare.run(job, tmp_path)


def test_latents_of_another_precision_are_not_gone_on_with(images, kl, tmp_path):
    half_made(experiment(images, tmp_path / "out", **latents(kl)))
    said = "was begun with autoencoder_dtype = 'float32', but it is 'bfloat16' now"
    with pytest.raises(UserError, match=said):
        prepare.run(
            experiment(images, tmp_path / "out", **latents(kl, autoencoder__dtype="bfloat16")),
            tmp_path,
        )


def test_an_earlier_versions_plan_is_enough_for_what_is_made_and_for_nothing_else(images, tmp_path):
    job = experiment(images, tmp_path / "out")
    prepare.run(job, tmp_path)
    path = tmp_path / "out" / ".prepare" / "plan.json"
    earlier = json.loads(path.read_text())
    del earlier["listing_sha256"]
    path.write_text(json.dumps(earlier))
    assert "already prepared" in prepare.run(job, tmp_path)
    (tmp_path / "out" / "manifest.json").unlink()
    said = (
        rf"^{path} is an earlier version's, without listing_sha256: expected .* that file deleted$"
    )
    with pytest.raises(UserError, match=said):
        prepare.run(job, tmp_path)
    path.unlink()
    assert "prepared 12 images" in prepare.run(job, tmp_path)


def test_hosts_do_what_the_first_of_them_finds_missing(images, tmp_path, monkeypatch):
    # An empty folder stands for what a network's file system shows another host for a while.
    monkeypatch.setattr(hosts, "is_first", lambda: False)
    monkeypatch.setattr(hosts, "first_says", lambda value: "")
    assert prepare.run(experiment(images, tmp_path / "out"), tmp_path) == ""
    assert not list((tmp_path / "out").iterdir())


def test_only_what_is_missing_is_made_again(images, tmp_path):
    prepare.run(experiment(images, tmp_path / "out"), tmp_path)
    before = {
        path.name: path.read_bytes() for path in (tmp_path / "out").glob("*") if path.is_file()
    }
    first, second, _ = sorted(path.name for path in (tmp_path / "out").glob("*.array_record"))
    stamp = (tmp_path / "out" / first).stat().st_mtime_ns
    (tmp_path / "out" / second).unlink()
    (tmp_path / "out" / ".prepare" / ".note.json.123.tmp").touch()  # of a killed process
    assert "prepared 12 images" in prepare.run(experiment(images, tmp_path / "out"), tmp_path)
    assert (tmp_path / "out" / first).stat().st_mtime_ns == stamp
    assert before == {
        path.name: path.read_bytes() for path in (tmp_path / "out").glob("*") if path.is_file()
    }
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_a_folder_that_cannot_be_made_is_named_by_its_field(tmp_path):
    write_images(tmp_path / "images")
    (tmp_path / "file").touch()
    with pytest.raises(
        UserError, match=rf"^config\.prepare\.out {tmp_path}/file/out can't be written to"
    ):
        prepare.run(experiment(tmp_path / "images", tmp_path / "file" / "out"), tmp_path)


def test_an_image_that_cannot_be_read_stops_the_job_or_is_left_out_as_asked(tmp_path, caplog):
    write_images(tmp_path / "images")
    bad = tmp_path / "images" / "c1" / "002.png"
    bad.write_bytes(bad.read_bytes()[:60])
    with pytest.raises(
        UserError, match=r"c1/002\.png.*config\.prepare\.on_error=skip leaves such images out"
    ):
        prepare.run(experiment(tmp_path / "images", tmp_path / "out"), tmp_path)
    skipping = experiment(tmp_path / "images", tmp_path / "out", prepare__on_error="skip")
    with caplog.at_level("INFO", "uvit_jax"):
        assert "11 images, 1 left out" in prepare.run(skipping, tmp_path)
    assert f"left out 1 image that can't be read: see {tmp_path}/out/skipped.txt" in caplog.messages
    assert all_of(tmp_path / "out")["label"].tolist() == [0] * 4 + [1] * 3 + [2] * 4
    assert "c1/002.png" in (tmp_path / "out" / "skipped.txt").read_text()
    assert Manifest.load(tmp_path / "out").skipped == 1


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


def test_official_features_become_records_with_their_mirrors(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "features"
    folder.mkdir()
    moments = rng.standard_normal((6, 2, 8, 4, 4)).astype(np.float32)
    # One last batch of six: six images, then their mirror images.
    for i in range(12):
        pair = np.empty(2, object)
        pair[:] = [moments[i % 6, i // 6], np.int64(i % 3)]
        np.save(folder / f"{i}.npy", pair, allow_pickle=True)
    message = prepare.run(experiment(folder, tmp_path / "out"), tmp_path)
    assert "moments of 6 images and their mirror images" in message
    for mirrored in (False, True):
        found = all_of(tmp_path / "out", mirrored)
        expected = moments[:, int(mirrored)].transpose(0, 2, 3, 1).astype(np.float16)
        assert np.array_equal(found["x"], expected)
        assert found["label"].tolist() == [0, 1, 2, 0, 1, 2]
    manifest = Manifest.load(tmp_path / "out")
    assert (manifest.num_classes, manifest.scale, manifest.image_size) == (3, 0.18215, 32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"prepare__source": ""},
            r"^config\.prepare\.source is empty, expected a folder of images",
        ),
        ({"prepare__source": "/nowhere"}, "/nowhere"),
        (
            {"prepare__out": ""},
            r"^config\.prepare\.out is empty and config\.data\.source is 'digits'",
        ),
        ({"prepare__crop": "none"}, r"c0/000\.png"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_made(images, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        prepare.run(experiment(images, tmp_path / "out", **changes), tmp_path)
    assert not list(tmp_path.rglob("*.array_record"))


def test_an_empty_folder_is_told(tmp_path):
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


def test_a_plan_that_cannot_be_read_says_what_to_delete(images, tmp_path):
    prepare.run(experiment(images, tmp_path / "out"), tmp_path)
    (tmp_path / "out" / ".prepare" / "plan.json").write_text("{")
    with pytest.raises(UserError, match=r"plan\.json can't be read"):
        prepare.run(experiment(images, tmp_path / "out"), tmp_path)


def test_every_prepare_field_stands_in_the_plan_or_changes_no_record():
    # Whoever adds a field that changes what is stored must add it to the plan: an old folder would
    # be gone on with.
    from uvit_jax.jobs.preparation.prepared_examples import Plan

    # Of what data_dir holds, the plan has the listing; max_pixels may be raised where a large
    # picture stopped the job.
    changes_nothing = {
        "data_dir",
        "out",
        "latents",
        "batch_size",
        "threads",
        "on_error",
        "verify",
        "max_pixels",
    }
    fields = {field.name for field in dataclasses.fields(Experiment().prepare)}
    assert fields - changes_nothing <= {field.name for field in dataclasses.fields(Plan)}


def unknown(folder: pathlib.Path, labels: list[int]) -> ImageFolder:
    """The first images with these labels of two classes, as TFDS gives them: -1 is unknown."""
    files = sorted(f"{path.parent.name}/{path.name}" for path in folder.glob("*/*.png"))[
        : len(labels)
    ]
    return ImageFolder("flowers", folder, files, np.array(labels, np.int32), ("rose", "tulip"))


def test_a_split_whose_labels_are_all_unknown_is_prepared_without_labels(
    images, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(
        prepared_examples, "open_originals", lambda *_, **__: unknown(images, [-1] * 6)
    )
    for error in ("stop", "skip"):
        out = tmp_path / error
        with caplog.at_level("INFO", "uvit_jax"):
            prepare.run(experiment(images, out, prepare__on_error=error), tmp_path)
        assert (
            "the labels of flowers are unknown (-1): it is prepared without labels"
            in caplog.messages
        )
        manifest = Manifest.load(out)
        assert (manifest.num_classes, manifest.class_names, manifest.num_examples) == (0, (), 6)
        assert "verified 6 images" in prepare.run(
            experiment(images, out, prepare__verify=True), tmp_path
        )


@pytest.mark.parametrize(
    ("labels", "message", "kept"),
    [
        (
            [0, 1, -1, 1],
            r"c0/002\.png of flowers has the label -1 \(unknown\), expected 0 to 1 "
            r"\(config\.p.*skip",
            3,
        ),
        (
            [0, 1, 2, 1],
            r"c0/002\.png of flowers has the label 2, expected 0 to 1 "
            r"\(config\.prepare\.on_error=skip",
            3,
        ),
        (
            [-1, -1, 1, 1],
            r"c0/002\.png of flowers has the label 1, but the first image -1 \(unknown\), "
            r"expected lab",
            2,
        ),
    ],
)
def test_a_label_that_is_no_class_stops_the_job_or_is_left_out_as_asked(
    images, tmp_path, monkeypatch, labels, message, kept
):
    monkeypatch.setattr(
        prepared_examples, "open_originals", lambda *_, **__: unknown(images, labels)
    )
    with pytest.raises(UserError, match=message):
        prepare.run(experiment(images, tmp_path / "out"), tmp_path)
    skipping = experiment(images, tmp_path / "out", prepare__on_error="skip")
    assert f"{kept} images, {4 - kept} left out" in prepare.run(skipping, tmp_path)
    assert set(all_of(tmp_path / "out")["label"].tolist()) <= {0, 1}
    assert "has the label" in (tmp_path / "out" / "skipped.txt").read_text()


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
    assert (caplog.messages, Manifest.load(tmp_path / "out").std[2]) == ([], 0.0)


def test_a_constant_channel_of_latents_is_brought_to_mean_zero_alone(
    images, tmp_path, monkeypatch, caplog
):
    name = write_taesd(tmp_path / "taesd.safetensors")
    sums = prepare.channel_sums

    def flat(kind, arrays):
        arrays = arrays.copy()
        arrays[..., 1] = 0.3
        return sums(kind, arrays)

    monkeypatch.setattr(prepare, "channel_sums", flat)
    job = experiment(images, tmp_path / "out", **latents(name))
    with caplog.at_level("INFO", "uvit_jax"):
        prepare.run(job, tmp_path)
    assert any(said.startswith("channel 1 of the latents never varies") for said in caplog.messages)
    source = RecordSource(tmp_path / "out")
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
    plan = prepared_examples.open_ingredients(
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


def test_a_plan_from_before_a_field_is_one_of_what_was_done_then(images, tmp_path):
    job = experiment(images, tmp_path / "out")
    out = half_made(job)
    path = out / ".prepare" / "plan.json"
    earlier = json.loads(path.read_text())
    del earlier["exif"], earlier["unknown_labels"]
    path.write_text(json.dumps(earlier))
    with pytest.raises(UserError, match=r"was begun with exif = False, but it is True now"):
        prepare.run(experiment(images, tmp_path / "out", prepare__exif=True), tmp_path)
    assert "prepared 12 images" in prepare.run(job, tmp_path)


def test_class_folders_that_are_not_utf8_are_in_the_manifest_as_text(tmp_path):
    write_images(tmp_path / "images", classes=2, per_class=1)
    (tmp_path / "images" / "c1").rename(tmp_path / "images" / os.fsdecode(b"caf\xe9"))
    prepare.run(experiment(tmp_path / "images", tmp_path / "out"), tmp_path)
    assert Manifest.load(tmp_path / "out").class_names == ("c0", r"caf\xe9")


def test_captions_that_no_encoder_is_named_for_are_told(images, tmp_path, caplog):
    write_coco(tmp_path / "coco")
    job = experiment(tmp_path / "coco", tmp_path / "out", prepare__split="train2017")
    with caplog.at_level("INFO", "uvit_jax"):
        prepare.run(job, tmp_path)
    assert (
        "the captions of coco:coco:train2017 are not stored: config.text_encoder.name is empty"
        in caplog.messages
    )


def test_official_labels_counted_from_one_are_told(tmp_path, caplog):
    for i in range(2):
        pair = np.empty(2, object)
        pair[:] = [np.zeros((8, 4, 4), np.float32), np.int64(1)]
        np.save(tmp_path / f"{i}.npy", pair, allow_pickle=True)
    with caplog.at_level("WARNING", "uvit_jax"):
        prepared_examples.open_ingredients(experiment(tmp_path, tmp_path / "out"))
    assert f"the labels of {tmp_path} begin with 1" in " ".join(caplog.messages)


def test_a_folder_to_make_that_is_not_utf8_is_refused_before_any_work(images, tmp_path):
    out = tmp_path / os.fsdecode(b"caf\xe9")
    with pytest.raises(
        UserError,
        match=r"^config\.prepare\.out is .*caf\\udce9', which is not UTF-8, expected a path",
    ):
        prepare.run(experiment(images, out), tmp_path)
    assert not out.exists()


def test_a_source_without_one_readable_image_is_told_with_the_first_ones_fault(images, tmp_path):
    said = (
        r"^none of the 12 images of .* can be read \(first: .*c0/000\.png has 20x24 = 480 "
        r"pixels, .*prepare\.max_pixels"
    )
    with pytest.raises(UserError, match=said):
        prepare.run(experiment(images, tmp_path / "out", prepare__max_pixels=100), tmp_path)
