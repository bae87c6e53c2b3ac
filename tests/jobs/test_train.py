import dataclasses
import json
import math
import pathlib
import shutil
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.jobs.runs import assert_same_bits, final_state, tiny_experiment
from uvit_jax.errors import Preempted, UserError
from uvit_jax.experiment import folder_lock
from uvit_jax.experiment.saved_config import config_of_run
from uvit_jax.jobs import evaluate, sample, train
from uvit_jax.jobs.sampling.gallery import Gallery
from uvit_jax.parallel import hosts
from uvit_jax.telemetry import writers
from uvit_jax.telemetry.writers import read_metrics
from uvit_jax.training.checkpoint import Checkpoints


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    return workdir, train.run(tiny_experiment(train__image_every=3, train__keep_every=4), workdir)


def test_a_run_leaves_config_metrics_checkpoints_and_pictures(trained):
    workdir, message = trained
    assert "step 8" in message
    assert str(workdir) in message
    assert json.loads((workdir / "config.json").read_text())["model"]["embed_dim"] == 16
    # Step 0 where some are kept for good: averages made later need it.
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["0", "4", "8"]
    assert sorted(path.name for path in (workdir / "samples").iterdir()) == [
        "denoising.png",
        "final.png",
        "step_00000003.png",
        "step_00000006.png",
    ]
    assert list((workdir / "tensorboard").iterdir())
    for picture in (*(workdir / "samples").iterdir(), workdir / "loss.png"):
        assert np.asarray(Image.open(picture)).std() > 0, picture


def test_metrics_hold_what_users_plot(trained):
    metrics = read_metrics(trained[0] / "metrics.jsonl")
    assert [line["step"] for line in metrics] == [2, 4, 6, 8]
    assert [line["images"] for line in metrics] == [32, 64, 96, 128]
    assert all(
        line["loss"] > 0 and line["grad_norm"] > 0 and line["images_per_sec"] > 0
        for line in metrics
    )
    # The rate of the update just made: warm-up over 100 steps to 1e-3, counted from 0.
    np.testing.assert_allclose(
        [line["lr"] for line in metrics], [1e-5, 3e-5, 5e-5, 7e-5], rtol=1e-4
    )


def test_metrics_say_what_share_of_the_time_the_host_waited(trained):
    for line in read_metrics(trained[0] / "metrics.jsonl"):
        shares = [line["data_wait"], line["log_wait"], line["save_wait"]]
        assert min(shares) >= 0
        assert 0 < sum(shares) <= 1
        assert 0 <= line["idle_wait"] <= 1
        # The checkpoint of step 4 lies between the lines of steps 4 and 6.
        assert (line["save_wait"] > 0) == (line["step"] == 6)


def test_a_profile_is_a_trace_of_the_steps_that_a_resumed_run_has_left(trained, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(trained[0], workdir)
    train.run(tiny_experiment(train__steps=11, train__profile="5:11"), workdir)
    (path,) = (workdir / "profile").glob("plugins/profile/*/*.xplane.pb")
    events = [
        event
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes
        for line in plane.lines
        for event in line.events
    ]
    steps = [dict(event.stats)["step_num"] for event in events if event.name == "train"]
    assert steps == [9, 10]  # the run goes on after step 8
    assert {"data", "log"} <= {event.name for event in events}


@pytest.mark.parametrize(
    "profile", ["5", "5:", "5:5", "9:5", "0:5", "a:b", "-1:5", "9:12", "5:6:7"]
)
def test_a_profile_that_is_not_steps_of_the_run_is_refused(profile):
    with pytest.raises(
        UserError,
        match=rf"^config\.train\.profile is '{profile}', expected START:STOP, .* to 8 \(steps\)$",
    ):
        tiny_experiment(train__profile=profile)


def test_the_lines_of_a_step_are_on_the_disk_before_its_checkpoint(tmp_path, monkeypatch):
    events = []
    save, write, flush = train.Checkpoints.save, train.MetricWriter.write, train.MetricWriter.flush

    def recorded(name, function):
        return lambda self, *arguments: (
            events.append(name(*arguments)),
            function(self, *arguments),
        )[1]

    monkeypatch.setattr(
        train.Checkpoints, "save", recorded(lambda state, *rest: ("save", int(state.step)), save)
    )
    monkeypatch.setattr(
        train.MetricWriter, "write", recorded(lambda step, scalars: ("line", step), write)
    )
    monkeypatch.setattr(train.MetricWriter, "flush", recorded(lambda: ("flush",), flush))
    monkeypatch.setattr(writers, "_SECONDS_BETWEEN_FLUSHES", math.inf)  # a busy machine takes them
    train.run(tiny_experiment(train__save_every=3, train__log_every=2), tmp_path)
    assert events[: events.index(("save", 8)) + 1] == [
        ("line", 2),
        ("flush",),
        ("save", 3),
        ("line", 4),
        ("line", 6),
        ("flush",),
        ("save", 6),
        ("line", 8),
        ("flush",),
        ("save", 8),
    ]


def test_the_same_command_again_trains_no_further(trained):
    workdir, _ = trained
    before = final_state(workdir)
    assert "step 8" in train.run(tiny_experiment(), workdir)
    assert_same_bits(before, final_state(workdir))


def test_fewer_steps_than_the_run_has_made_are_refused_and_change_nothing(trained):
    workdir, _ = trained
    before = (workdir / "config.json").read_bytes()
    with pytest.raises(
        UserError, match=r"^config\.train\.steps is 7, expected at least 8, .* or another --workdir"
    ):
        train.run(tiny_experiment(train__steps=7), workdir)
    assert (workdir / "config.json").read_bytes() == before


def test_a_preempted_run_goes_on_to_the_same_bits(trained, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(train.PreemptionNotice, "__call__", lambda self, step: step == 5)
        with pytest.raises(
            Preempted, match=r"^preempted at step 5: the checkpoint is saved, the same command"
        ):
            train.run(tiny_experiment(), tmp_path)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["4", "5"]
    assert not (tmp_path / "samples").exists()
    train.run(tiny_experiment(), tmp_path)
    assert_same_bits(final_state(tmp_path), final_state(trained[0]))
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [2, 4, 6, 8]


def test_another_architecture_in_the_workdir_is_refused_by_field(trained):
    with pytest.raises(
        UserError, match=r"holds a model with depth = 3, but config\.model\.depth is 5"
    ):
        train.run(tiny_experiment(model__depth=5), trained[0])


def files(workdir):
    return {path: path.read_bytes() for path in sorted(workdir.iterdir()) if path.is_file()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"diffusion__prediction": "v"},
            r"holds a model with prediction = 'noise', but config\.diffusion\.prediction is",
        ),
        (
            {"diffusion__schedule": "stable_diffusion"},
            r"holds a model with schedule = 'vp_linear', but config\.diffusion\.sched",
        ),
    ],
)
@pytest.mark.parametrize("how", ["train", "train from", "sample", "sample from"])
def test_weights_that_mean_something_else_are_refused_and_nothing_is_written(
    trained, tmp_path, how, changes, message
):
    workdir = tmp_path if how.endswith("from") else trained[0]
    before = files(workdir)
    experiment = tiny_experiment(**changes)
    if how.endswith("from"):
        experiment = dataclasses.replace(experiment, init_from=str(trained[0]))
    with pytest.raises(UserError, match=message):
        (train if how.startswith("train") else sample).run(experiment, workdir)
    assert files(workdir) == before


def test_a_run_goes_on_with_other_batches_at_the_next_example_and_its_changed_average_is_known(
    trained, tmp_path
):
    workdir = shutil.copytree(trained[0], tmp_path / "run")
    again = {"train__batch_size": 8, "train__log_every": 1, "train__steps": 10, "ema__rate": 0.9}
    train.run(tiny_experiment(**again), workdir)
    metrics = read_metrics(workdir / "metrics.jsonl")
    assert [line["images"] for line in metrics] == [32, 64, 96, 128, 136, 144]
    position = json.loads((workdir / "checkpoints" / "10" / "data" / "metadata").read_text())
    rates = [[0, 0.998], [8, 0.9]]
    assert position == {"format_version": 1, "next_example": 144, "ema_rates": rates}
    sweep = tiny_experiment(ema__rate=0.9, evaluate__sweep="ema=5")
    with pytest.raises(
        UserError,
        match=r"has had the rate 0\.998 up to step 8 and 0\.9 from there on, expected one",
    ):
        evaluate.run(sweep, workdir)


def test_one_job_at_a_time_writes_to_a_folder_and_others_may_read_from_it(
    trained, tmp_path, monkeypatch
):
    monkeypatch.setattr(folder_lock, "SECONDS_TO_WAIT", {"here": 0.2, "elsewhere": 0.2})
    drawn = tiny_experiment(sample__num_samples=1, sample__out=str(tmp_path))
    before = (trained[0] / "metrics.jsonl").read_bytes()
    with folder_lock.locked(trained[0], "train"):
        with pytest.raises(
            UserError,
            match=rf"^{trained[0]} is in use by the job train \(process \d+ on .* one job at a",
        ):
            train.run(tiny_experiment(train__steps=9), trained[0])
        assert sample.run(drawn, trained[0]).startswith("sampled 1 image")
    with (
        folder_lock.locked(tmp_path, "sample"),
        pytest.raises(UserError, match=rf"^{tmp_path} is in use by the job sam"),
    ):
        sample.run(drawn, trained[0])
    assert (trained[0] / "metrics.jsonl").read_bytes() == before


def test_a_loss_that_is_no_number_stops_the_run_with_its_step(tmp_path):
    experiment = tiny_experiment(optimizer__lr=1e30, optimizer__warmup_steps=0)
    with pytest.raises(
        UserError, match=r"the loss is (nan|inf) at step [2468]: lower config\.optimizer\.lr"
    ):
        train.run(experiment, tmp_path)


def test_a_host_with_an_old_listing_goes_on_from_the_step_of_the_others(
    trained, tmp_path, monkeypatch
):
    workdir = shutil.copytree(trained[0], tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / "8")
    train.run(tiny_experiment(), workdir)  # another host's view: the run has come to step 8
    hidden = Checkpoints.latest_step.fget
    monkeypatch.setattr(
        Checkpoints, "latest_step", property(lambda self: min(4, hidden(self) or 4))
    )
    monkeypatch.setattr(hosts, "largest", lambda value: 8 if value == 4 else value)
    monkeypatch.setattr(train, "fit", lambda train_step, state, batches, **options: state)
    with pytest.raises(
        Preempted, match=r"^preempted at step 8:"
    ):  # where it began, for nothing is trained here
        train.run(tiny_experiment(train__steps=9), workdir)


def test_a_picture_that_fails_costs_no_checkpoint(tmp_path, monkeypatch):
    def failing(self, state):
        raise UserError("no picture")

    monkeypatch.setattr(Gallery, "draw_step", failing)
    with pytest.raises(UserError, match=r"^no picture$"):
        train.run(tiny_experiment(train__image_every=4), tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["4"]


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_no_checkpoint_is_of_numbers_that_are_none(tmp_path, monkeypatch, name):
    # The steps from the fifth on, between two logs, have none; the fourth's checkpoint is the last
    # good one.
    fit = train.fit

    def breaking(train_step, *arguments, **options):
        def step(state, batch):
            state, metrics = train_step(state, batch)
            return state, metrics | {name: jnp.where(state.step > 4, jnp.nan, metrics[name])}

        return fit(step, *arguments, **options)

    monkeypatch.setattr(train, "fit", breaking)
    with pytest.raises(
        UserError,
        match=r"^the (loss|norm of the gradients) is nan at step 6: lower config\.optimizer",
    ):
        train.run(tiny_experiment(train__log_every=8, train__save_every=2), tmp_path)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "4"]


def test_samples_are_files_named_by_label_and_a_grid(trained, tmp_path):
    experiment = tiny_experiment(
        sample__num_samples=5, sample__labels="3,7", sample__out=str(tmp_path / "out")
    )
    message = sample.run(experiment, trained[0])
    assert str(tmp_path / "out") in message
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [
        "000000_label_3.png",
        "000001_label_7.png",
        "000002_label_3.png",
        "000003_label_7.png",
        "000004_label_3.png",
        "grid.png",
        "samples.json",
    ]
    assert Image.open(tmp_path / "out" / names[0]).size == (8, 8)


def test_a_folder_for_samples_that_cannot_be_made_is_named_by_its_field(trained, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        UserError, match=rf"^config\.sample\.out {tmp_path}/file/out can't be written to"
    ):
        sample.run(tiny_experiment(sample__out=str(tmp_path / "file" / "out")), trained[0])


def test_samples_of_other_requests_have_folders_of_their_own(trained, tmp_path):
    workdir = shutil.copytree(trained[0], tmp_path / "run")
    asked = [
        {},
        {"sample__labels": "3"},
        {"sample__weights": "params"},
        {"sample__guidance_scale": 1.0},
        {"sample__format": "npz"},
        {"sample__num_samples": 2},
        {"sample__batch_size": 2},
    ]
    lines = [
        sample.run(tiny_experiment(**{"sample__num_samples": 1} | changes), workdir)
        for changes in asked
    ]
    assert lines[0].startswith("sampled 1 image in ")
    assert lines[0].endswith("/grid.png, 1 PNG")
    folders = [line.split(": see ")[1].split("/grid.png")[0] for line in lines]
    assert folders[0] == folders[-1]  # how many are drawn at a time is no part of what they are
    assert len(set(folders)) == len(asked) - 1
    assert all(pathlib.Path(folder).name.startswith("step_00000008_seed_0_") for folder in folders)
    assert len(list(pathlib.Path(folders[0]).glob("0*.png"))) == 1


def test_a_folder_of_samples_holds_those_of_one_call(trained, tmp_path):
    def draw(**changes) -> str:
        asked = {
            "sample__num_samples": 3,
            "sample__labels": "3,7",
            "sample__out": str(tmp_path / "out"),
        } | changes
        return sample.run(tiny_experiment(**asked), trained[0])

    draw()
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(UserError, match=r"another request \(labels = '3,7' there, '7' now\)"):
        draw(sample__labels="7")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert draw(sample__num_samples=5).endswith("5 PNGs")
    files = [path.name for path in (tmp_path / "out").glob("0*.png")]
    assert len(files) == 5
    assert set(files) > {name for name in before if name.startswith("0")}


def test_images_are_let_go_once_they_are_written(trained, tmp_path, monkeypatch):
    alive, most = [], 0

    def batches(self, params, first, count):
        nonlocal most
        for _ in range(first, count, 2):
            batch = np.zeros((2, 8, 8, 1), np.uint8)
            alive.append(weakref.ref(batch))
            yield batch
            del batch
            most = max(most, sum(ref() is not None for ref in alive))

    monkeypatch.setattr(sample, "GRID_SAMPLES", 3)
    monkeypatch.setattr(sample.Generation, "batches", batches)
    sample.run(tiny_experiment(sample__num_samples=20, sample__out=str(tmp_path)), trained[0])
    assert len(alive) == 10
    assert most <= 2


def test_sample_i_depends_on_seed_and_i_alone(trained, tmp_path):
    def images(**overrides):
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        sample.run(
            tiny_experiment(sample__format="npz", sample__out=str(out), **overrides), trained[0]
        )
        return np.load(out / "samples.npz")

    one = images(sample__num_samples=20, sample__batch_size=16)
    other = images(sample__num_samples=11, sample__batch_size=4)
    assert one["images"].dtype == np.uint8
    assert one["images"].shape == (20, 8, 8, 1)
    assert one["labels"].tolist() == [*range(10), *range(10)]
    # Another batch size may round the last bit of a float differently, hence one grey level.
    assert np.abs(one["images"][:11].astype(int) - other["images"]).max() <= 1
    assert np.any(images(sample__num_samples=11, sample__seed=1)["images"] != one["images"][:11])
    raw = images(sample__num_samples=11, sample__weights="params")
    assert np.any(raw["images"] != one["images"][:11])


def test_an_older_checkpoint_can_be_sampled_and_a_missing_one_is_named(trained, tmp_path):
    sample.run(tiny_experiment(sample__step=4, sample__out=str(tmp_path / "out")), trained[0])
    with pytest.raises(UserError, match="holds no step 6, expected one of 0, 4, 8"):
        sample.run(tiny_experiment(sample__step=6), trained[0])


def test_sampling_an_empty_workdir_says_that_nothing_was_trained(tmp_path):
    with pytest.raises(UserError, match="holds no checkpoint: train first"):
        sample.run(tiny_experiment(), tmp_path)


def test_a_workdir_remembers_its_config(trained):
    config = config_of_run(trained[0])
    assert config.model.embed_dim == 16
    assert tuple(config.optimizer.betas) == (0.9, 0.99)
    with pytest.raises(UserError, match=r"holds no config\.json"):
        config_of_run(trained[0] / "samples")
