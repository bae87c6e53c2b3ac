"""An evaluation killed at any moment and started again gives the numbers and images of one never killed."""

import json
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.jobs.evaluate_runs import write_run
from tests.jobs.runs import CACHE, ROOT, TINY, command, environment, tiny_experiment
from uvit_jax.telemetry.writers import read_metrics

pytestmark = pytest.mark.slow

COUNT = 600
# A state is saved after every batch, not once a minute, so that kills come at every stage of a save.
OFTEN = """
import sys
from uvit_jax import main
from uvit_jax.jobs import scoring
scoring.SECONDS_BETWEEN_SAVES = 0.0
main.run(sys.argv)
"""
ARGUMENTS = (
    "--job=evaluate",
    f"--config.evaluate.num_samples={COUNT}",
    "--config.evaluate.num_features=300",
    "--config.evaluate.save=npz",
    "--config.sample.steps=25",
)


def start(workdir: pathlib.Path, out: pathlib.Path, *arguments: str) -> subprocess.Popen:
    _, _, _, *given = command(*ARGUMENTS, f"--workdir={workdir}", f"--config.evaluate.out={out}", *arguments)
    return subprocess.Popen(
        [sys.executable, "-c", OFTEN, *given],
        cwd=ROOT,
        env=environment() | CACHE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen) -> tuple[str, str]:
    told = process.communicate(timeout=300)
    assert process.returncode == 0, told[1][-3000:]
    return told


def kill(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def result(out: pathlib.Path) -> tuple[dict, bytes]:
    """The report but for how long it took, and all images."""
    report = json.loads((out / "evaluation.json").read_text())
    assert not (out / ".evaluation").exists()
    images = np.load(out / "samples.npz")["arr_0"]
    assert len(images) == COUNT
    return {name: part for name, part in report.items() if name != "seconds"}, images.tobytes()


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory) -> tuple[pathlib.Path, tuple, float]:
    workdir = write_run(tmp_path_factory.mktemp("run"), tiny_experiment())
    finish(start(workdir, workdir / "first"))  # compiles, and makes the reference
    began = time.monotonic()
    told = finish(start(workdir, workdir / "straight"))
    assert told[0].startswith(f"evaluated {COUNT} images: own_feature_fd ")
    return workdir, result(workdir / "straight"), time.monotonic() - began


def test_kills_at_random_moments_change_no_number_and_no_image(never_killed, tmp_path):
    workdir, expected, seconds = never_killed
    moments, kills = random.Random(0), 0
    while kills < 4:
        process = start(workdir, tmp_path)
        try:
            process.wait(timeout=moments.uniform(0.4, 1) * seconds)
            break
        except subprocess.TimeoutExpired:
            kill(process)
            kills += 1
    assert kills
    finish(start(workdir, tmp_path))
    assert result(tmp_path) == expected


def test_what_was_saved_before_a_kill_is_not_drawn_again(never_killed, tmp_path):
    workdir, expected, seconds = never_killed
    process, state = start(workdir, tmp_path), tmp_path / ".evaluation" / "state.npz"
    deadline = time.monotonic() + 5 * seconds
    saved = 0
    while process.poll() is None and time.monotonic() < deadline and saved < COUNT // 2:
        if state.exists():
            with np.load(state) as held:
                saved = int(held["count"])
        time.sleep(0.01)
    kill(process)
    assert COUNT // 2 <= saved < COUNT, "the kill came too late"
    with np.load(state) as held:
        saved = int(held["count"])
    _, told = finish(start(workdir, tmp_path))
    assert f"going on: {saved} of {COUNT} are scored already" in told
    report = json.loads((tmp_path / "evaluation.json").read_text())
    assert report["seconds"]["samples of this run"] == COUNT - saved
    assert result(tmp_path) == expected


def test_half_of_another_evaluation_is_not_gone_on_with(never_killed, tmp_path):
    workdir, _, seconds = never_killed
    process, state = start(workdir, tmp_path), tmp_path / ".evaluation" / "state.npz"
    deadline = time.monotonic() + 5 * seconds
    while process.poll() is None and time.monotonic() < deadline and not state.exists():
        time.sleep(0.01)
    kill(process)
    assert state.exists()
    other = start(workdir, tmp_path, "--config.sample.seed=1")
    _, told = other.communicate(timeout=300)
    assert other.returncode == 2
    assert told.splitlines()[-1] == (
        f"error: {tmp_path} holds half of another evaluation (samples sampler seed = 0 there, 1 now): expected another "
        f"config.evaluate.out, or {tmp_path}/.evaluation deleted"
    )


def test_a_run_that_is_killed_while_it_evaluates_logs_each_evaluation_once(tmp_path):
    arguments = {"train.steps": 30, "train.save_every": 5, "train.log_every": 5, "evaluate.every": 10}
    arguments |= {"evaluate.train_samples": 40, "evaluate.num_features": 300}
    flags = [f"--config.{name}={value}" for name, value in (TINY | arguments).items()]

    def train(workdir):
        return subprocess.Popen(
            command(*flags, f"--workdir={workdir}", tiny=False),
            cwd=ROOT,
            env=environment() | CACHE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def evaluations(workdir):
        return [line for line in read_metrics(workdir / "metrics.jsonl") if "loss" not in line]

    straight = train(tmp_path / "straight")
    finish(straight)
    for evaluated in range(2):  # killed as soon as the first evaluation is there, then as soon as the second is
        process = train(tmp_path / "killed")
        metrics = tmp_path / "killed" / "metrics.jsonl"
        while process.poll() is None and not (metrics.exists() and len(evaluations(tmp_path / "killed")) > evaluated):
            time.sleep(0.002)
        kill(process)
    finish(train(tmp_path / "killed"))
    assert [line["step"] for line in evaluations(tmp_path / "killed")] == [10, 20, 30]
    assert evaluations(tmp_path / "killed") == evaluations(tmp_path / "straight")
    losses = [line["step"] for line in read_metrics(tmp_path / "killed" / "metrics.jsonl") if "loss" in line]
    assert losses == list(range(5, 31, 5))
