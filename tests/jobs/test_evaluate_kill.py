"""An evaluation killed at any moment and started again gives the same numbers and images."""

import json
import pathlib
import random
import signal
import subprocess
import time

import numpy as np
import pytest

from tests.jobs.evaluate_runs import write_run
from tests.jobs.runs import ROOT, TINY, command, environment, run_command, tiny_experiment
from tests.jobs.signalled import signalled
from uvit_jax.telemetry.writers import read_metrics

pytestmark = pytest.mark.slow

COUNT, BATCH = 600, 16
ARGUMENTS = (
    "--job=evaluate",
    f"--config.evaluate.num_samples={COUNT}",
    "--config.evaluate.num_features=300",
    "--config.evaluate.save=npz",
    "--config.sample.steps=25",
)
SAVE = "uvit_jax.metrics.scores:Scores.save"  # after every batch


def evaluate(workdir: pathlib.Path, out: pathlib.Path, *arguments: str) -> list[str]:
    return command(*ARGUMENTS, f"--workdir={workdir}", f"--config.evaluate.out={out}", *arguments)


def finish(command: list[str], code: int = 0) -> subprocess.CompletedProcess:
    result = run_command(command)
    assert result.returncode == code, result.stderr[-3000:]
    return result


def killed(command: list[str], *, call: int, seconds: float = 0.0) -> None:
    finish(signalled(command, SAVE, call=call, seconds=seconds), -signal.SIGKILL)


def count_of(state: pathlib.Path) -> int:
    with np.load(state) as held:
        return int(held["count"])


def result(out: pathlib.Path) -> tuple[dict, bytes]:
    """The report but for how long it took, and all images."""
    report = json.loads((out / "evaluation.json").read_text())
    assert not (out / ".evaluation").exists()
    images = np.load(out / "samples.npz")["arr_0"]
    assert len(images) == COUNT
    return {name: part for name, part in report.items() if name != "seconds"}, images.tobytes()


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory) -> tuple[pathlib.Path, tuple]:
    workdir = write_run(tmp_path_factory.mktemp("run"), tiny_experiment())
    line = finish(evaluate(workdir, workdir / "straight")).stdout  # makes the reference, too
    assert line.startswith(f"evaluated {COUNT} images: own_feature_fd ")
    return workdir, result(workdir / "straight")


def test_kills_at_random_moments_change_no_number_and_no_image(never_killed, tmp_path):
    workdir, expected = never_killed
    moments, state, counts = random.Random(0), tmp_path / ".evaluation" / "state.npz", [0]
    for _ in range(5):
        killed(
            evaluate(workdir, tmp_path), call=moments.randint(1, 4), seconds=moments.uniform(0, 0.1)
        )
        counts.append(count_of(state) if state.exists() else 0)
    assert counts == sorted(counts), "what was saved was lost"
    assert 0 < counts[-1] < COUNT
    finish(evaluate(workdir, tmp_path))
    assert result(tmp_path) == expected


def test_what_was_saved_before_a_kill_is_not_drawn_again(never_killed, tmp_path):
    workdir, expected = never_killed
    killed(evaluate(workdir, tmp_path), call=COUNT // 2 // BATCH)
    saved = count_of(tmp_path / ".evaluation" / "state.npz")
    assert 0 < saved < COUNT
    error = finish(evaluate(workdir, tmp_path)).stderr
    assert f"going on: {saved} of {COUNT} are scored already" in error
    report = json.loads((tmp_path / "evaluation.json").read_text())
    assert report["seconds"]["samples of this run"] == COUNT - saved
    assert result(tmp_path) == expected


def test_half_of_another_evaluation_is_not_gone_on_with(never_killed, tmp_path):
    workdir, _ = never_killed
    killed(evaluate(workdir, tmp_path), call=2)
    assert (tmp_path / ".evaluation" / "state.npz").exists()
    error = finish(evaluate(workdir, tmp_path, "--config.sample.seed=1"), 2).stderr
    assert error.splitlines()[-1] == (
        f"error: {tmp_path} holds half of another evaluation (samples sampler seed = 0 there, 1 "
        f"now): expected another config.evaluate.out, or {tmp_path}/.evaluation deleted"
    )


def test_a_run_that_is_killed_while_it_evaluates_logs_each_evaluation_once(tmp_path):
    arguments = {
        "train.steps": 30,
        "train.save_every": 5,
        "train.log_every": 5,
        "evaluate.every": 10,
    }
    arguments |= {"evaluate.train_samples": 40, "evaluate.num_features": 300}
    flags = [f"--config.{name}={value}" for name, value in (TINY | arguments).items()]

    def train(workdir):
        return command(*flags, f"--workdir={workdir}", tiny=False)

    def evaluations(workdir):
        return [line for line in read_metrics(workdir / "metrics.jsonl") if "loss" not in line]

    finish(train(tmp_path / "straight"))
    for evaluated in range(
        2
    ):  # killed as soon as the first evaluation is there, then as soon as the second is
        process = subprocess.Popen(
            train(tmp_path / "killed"),
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        metrics = tmp_path / "killed" / "metrics.jsonl"
        while process.poll() is None and not (
            metrics.exists() and len(evaluations(tmp_path / "killed")) > evaluated
        ):
            time.sleep(0.002)
        process.kill()
        process.wait()
    finish(train(tmp_path / "killed"))
    assert [line["step"] for line in evaluations(tmp_path / "killed")] == [10, 20, 30]
    assert evaluations(tmp_path / "killed") == evaluations(tmp_path / "straight")
    losses = [
        line["step"]
        for line in read_metrics(tmp_path / "killed" / "metrics.jsonl")
        if "loss" in line
    ]
    assert losses == list(range(5, 31, 5))
