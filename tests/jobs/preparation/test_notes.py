"""A `prepare` that is run again, killed, or met by another one."""

import errno
import json
import pathlib
import shutil

import pytest

from tests.jobs.images import write_images, write_kl
from tests.jobs.preparation.prepare_runs import experiment, half_made, latents
from uvit_jax.data.prepared.manifest import Manifest
from uvit_jax.errors import UserError
from uvit_jax.experiment import folder_lock
from uvit_jax.jobs import prepare
from uvit_jax.parallel import hosts


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


def test_a_command_that_failed_before_its_first_shard_may_be_corrected(images, tmp_path):
    with pytest.raises(UserError, match=r"c0/000\.png"):
        prepare.run(experiment(images, tmp_path / "out", prepare__crop="none"), tmp_path)
    assert "prepared 12 images" in prepare.run(experiment(images, tmp_path / "out"), tmp_path)
    assert Manifest.load(tmp_path / "out").crop == "adm"
    assert json.loads((tmp_path / "out" / ".prepare" / "plan.json").read_text())["crop"] == "adm"


def test_of_two_that_begin_a_folder_without_locks_at_once_with_other_settings_one_stores_nothing(
    images, tmp_path, monkeypatch
):
    out, make, inside = tmp_path / "out", prepare.make_shard, []

    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(folder_lock.fcntl, "flock", flock)

    def make_beside_another(*arguments):
        if not inside:
            inside.append(True)
            prepare.run(experiment(images, out, model__image_size=8), tmp_path)
        return make(*arguments)

    monkeypatch.setattr(prepare, "make_shard", make_beside_another)
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
        "make_shard",
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
        patched.setattr(prepare, "make_shard", fail)
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


def test_an_added_image_is_found_by_the_number_of_images(tmp_path):
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
    # Another host of a network's file system may see an empty folder for a while.
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


def test_a_plan_that_cannot_be_read_says_what_to_delete(images, tmp_path):
    prepare.run(experiment(images, tmp_path / "out"), tmp_path)
    (tmp_path / "out" / ".prepare" / "plan.json").write_text("{")
    with pytest.raises(UserError, match=r"plan\.json can't be read"):
        prepare.run(experiment(images, tmp_path / "out"), tmp_path)


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
