import json
import pathlib
import runpy
import subprocess
import sys

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits

from benchmarks import train_loop
from benchmarks.digits import read, scores
from benchmarks.text import subset
from tests.jobs.runs import ROOT, TINY, environment, tiny_experiment
from uvit_jax.errors import UserError
from uvit_jax.experiment.assembled import assemble
from uvit_jax.experiment.config import load_experiment
from uvit_jax.experiment.data_card import DataCard
from uvit_jax.training.loop import Window


def test_scores_tell_real_digits_from_collapsed_and_mislabelled_ones():
    data = load_digits()
    images = np.round(data.images * 255 / 16).astype(np.uint8)[..., None]
    real = scores(images, data.target)
    assert real["svm_agreement"] > 0.99
    assert real["frechet_distance"] < 0.01
    assert 0.2 < real["frechet_distance_of_two_halves_of_the_data"] < 0.4
    assert scores(images, (data.target + 1) % 10)["svm_agreement"] < 0.01
    collapsed = np.repeat(images[:10], 180, axis=0)[: len(images)]
    assert (
        scores(collapsed, np.repeat(data.target[:10], 180)[: len(images)])["frechet_distance"] > 1.2
    )


def test_samples_are_read_as_the_jobs_write_them(tmp_path):
    images, labels = np.arange(128, dtype=np.uint8).reshape(2, 8, 8, 1), np.array([3, 7])
    for names in (("images", "labels"), ("arr_0", "arr_1")):
        np.savez(tmp_path / "samples.npz", **dict(zip(names, (images, labels), strict=True)))
        found = read(tmp_path / "samples.npz")
        assert np.array_equal(found[0], images)
        assert found[1].tolist() == [3, 7]
    np.savez(tmp_path / "samples.npz", images=images)
    with pytest.raises(
        UserError, match=r"has labels of shape \(0,\), expected a digit of each image"
    ):
        read(tmp_path / "samples.npz")
    np.savez(tmp_path / "samples.npz", images=images.reshape(2, 4, 16, 1), labels=labels)
    with pytest.raises(UserError, match=r"holds images of shape \(4, 16, 1\), expected digits"):
        read(tmp_path / "samples.npz")


NO_CONFIG = (
    "train_step.py configs/nosuch.py",
    "error: there is no config file configs/nosuch.py",
)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        NO_CONFIG,
        (
            "train_step.py configs/digits.py --set model.dept=3",
            "error: config.model has no field 'dept', did you mean 'depth'?",
        ),
        (
            "train_step.py configs/digits.py --set model.depth",
            "error: --set has 'model.depth', expected section.field=value",
        ),
        ("digits.py nosuch.npz", "error: nosuch.npz can't be read"),
        ("text.py nosuch", "error: nosuch has no annotations/captions_train2017.json"),
    ],
)
def test_a_mistake_ends_in_one_clear_sentence(arguments, message, monkeypatch, capsys):
    script, *_ = given = arguments.split()
    monkeypatch.setattr(sys, "argv", given)
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "benchmarks" / script), run_name="__main__")
    stdout, stderr = capsys.readouterr()
    assert (ended.value.code, stdout) == (2, "")
    assert stderr.startswith(message)
    assert stderr.count("\n") == 1


def test_a_process_that_ends_with_a_mistake_says_nothing_else():
    arguments, message = NO_CONFIG
    script, *rest = arguments.split()
    command = [sys.executable, str(pathlib.Path("benchmarks", script)), *rest]
    ended = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(message)
    assert ended.stderr.count("\n") == 1


def test_captioned_images_are_not_laid_over_others(tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "captions_train2017.json").touch()
    with pytest.raises(UserError, match=r"annotations is there already, expected another --out"):
        subset(tmp_path, "train2017", tmp_path / "annotations", 16)


def windows(**others):
    """Windows of 10 steps that end at steps 20, 30, ...: 10.1 s each, 1 s of data, 0.5 s of log."""
    common = {"metrics": {}, "steps": 10, "seconds": 10.1, "data_seconds": 1.0, "log_seconds": 0.5}
    return {step: Window(**common | others.get(f"at_{step}", {})) for step in (20, 30, 40, 50)}


def test_the_loops_summary_parts_the_steps_from_the_checkpoint():
    measured = train_loop.Measured(
        40, log_every=10, bare=[[1.1, 1.0], [1.0, 0.9]], saved=30, checkpoint_bytes=7
    )
    measured.windows = windows(
        at_40={"seconds": 13.1, "hook_seconds": 2.0}, at_50={"seconds": 10.6}
    )
    experiment = tiny_experiment(train__save_every=500, train__log_every=50)
    row = train_loop.summary(measured, experiment)
    expected = {
        "steps": 40,
        "bare_seconds": 1.0,
        "loop_seconds": (10.1 + 10.1 + 13.1 + 10.6) / 40,
        "share": 43.9 / 40 - 1,
        "without_checkpoints_share": 0.01,
        "data_share": 0.1,
        "log_seconds": 0.5,
        "log_share": 0.05,
        "own_log_share": 0.01,
        "save_blocking_seconds": 2.0,
        "save_seconds": 3.5,
        "own_save_blocking_share": 2.0 / 500,
        "own_save_share": 3.5 / 500,
        "own_share": 0.01 + 3.5 / 500,
    }
    assert {name: row[name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("configs/imagenet256.py:large", {"model.image_size": "8", "model.num_classes": "11"}),
        pytest.param("configs/cifar10.py", {"model.image_size": "8"}, marks=pytest.mark.slow),
        pytest.param(
            "configs/mscoco256.py",
            {
                "model.image_size": "8",
                "model.context_length": "3",
                "model.context_dim": "4",
                "prepare.dtype": "bfloat16",
            },
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_train_loop_is_measured_on_data_made_for_the_config(name, fields, tmp_path, capsys):
    network = {
        "model.embed_dim": "16",
        "model.depth": "1",
        "model.num_heads": "2",
        "model.dtype": "float32",
    }
    experiment = load_experiment(name, network | fields | {"train.batch_size": "4"})
    row = train_loop.measure(experiment, steps=8, examples=12, own_data=False, parent=str(tmp_path))
    assert not list(tmp_path.iterdir())
    assert (row["steps"], row["log_every"], row["batch"]) == (8, 2, 4)
    assert len(row["loop_seconds_each"]) == 4
    assert all(seconds > 0 for seconds in [*row["loop_seconds_each"], *row["bare_seconds_each"][0]])
    assert len(row["bare_seconds_each"]) == 2
    assert row["save_blocking_seconds"] > 0
    assert row["own_save_every"] == experiment.train.save_every
    # Parameters, their average and two moments, of 4 bytes each, and a few counts.
    assembled = assemble(experiment, DataCard(""))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(assembled.abstract_params))
    assert 0 <= row["checkpoint_bytes"] - 16 * parameters < 100
    train_loop.show(row)
    assert f"save_every={experiment.train.save_every}: logs" in capsys.readouterr().out


def test_the_train_loop_of_packaged_data_is_measured_from_the_command_line(
    tmp_path, capsys, monkeypatch
):
    settings = [f"{name}={value}" for name, value in TINY.items()]
    out = tmp_path / "loop.json"
    options = [
        "--batch-size",
        "16",
        "--steps",
        "5",
        "--folder",
        str(tmp_path),
        "--out",
        str(out),
        "--set",
        *settings,
    ]
    monkeypatch.setattr("sys.argv", ["train_loop.py", "configs/digits.py", *options])
    train_loop.main()
    assert capsys.readouterr().out.startswith("configs/digits.py, batch 16, ")
    row = json.loads(out.read_text())
    assert (row["config"], row["batch"], row["own_log_every"], row["own_save_every"]) == (
        "configs/digits.py",
        16,
        2,
        4,
    )
    assert row["steps"] >= 5
    assert row["save_blocking_seconds"] > 0
