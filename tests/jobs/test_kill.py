"""A run killed or told to stop at any moment and started again ends with the same bits as one never stopped."""

import random
import signal
import subprocess
import time

import pytest

from tests.jobs.runs import ROOT, assert_same_bits, command, environment, final_state, run
from uvit_jax.telemetry.writers import read_metrics

pytestmark = pytest.mark.slow

# Saving at every third step keeps a save in flight for most of the loop.
ARGUMENTS = ("--config.train.steps=60", "--config.train.save_every=3", "--config.train.log_every=5")


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("straight")
    began = time.monotonic()
    result = run(*ARGUMENTS, f"--workdir={workdir}")
    assert result.returncode == 0, result.stderr
    return final_state(workdir), time.monotonic() - began


def start(workdir, **options) -> subprocess.Popen:
    return subprocess.Popen(
        command(*ARGUMENTS, f"--workdir={workdir}"),
        cwd=ROOT,
        env=environment(),
        **{"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL} | options,
        start_new_session=True,
    )


def kill(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def finish(workdir, expected) -> None:
    result = run(*ARGUMENTS, f"--workdir={workdir}")
    assert result.returncode == 0, result.stderr
    assert_same_bits(final_state(workdir), expected)
    assert [line["step"] for line in read_metrics(workdir / "metrics.jsonl")] == list(range(5, 61, 5))
    assert not list((workdir / "checkpoints").glob("*tmp*"))


@pytest.mark.parametrize("seed", [0, 1])
def test_resume_is_bit_exact_after_kills_at_random_moments(never_killed, tmp_path, seed):
    expected, seconds = never_killed
    moments = random.Random(seed)
    for _ in range(3):
        process = start(tmp_path)
        try:
            process.wait(timeout=moments.uniform(0.2, 1) * seconds)
        except subprocess.TimeoutExpired:
            kill(process)
    finish(tmp_path, expected)


def test_resume_is_bit_exact_after_a_kill_during_a_save(never_killed, tmp_path):
    expected, seconds = never_killed
    kills = 0
    for _ in range(3):
        process = start(tmp_path)
        deadline = time.monotonic() + 3 * seconds
        while process.poll() is None and time.monotonic() < deadline:
            if list((tmp_path / "checkpoints").glob("*tmp*")):
                kill(process)
                kills += 1
                break
            time.sleep(0.001)
    assert kills == 3, "no save was ever in flight"
    finish(tmp_path, expected)


def test_a_sigterm_saves_at_once_and_the_same_command_goes_on_to_the_same_bits(never_killed, tmp_path):
    expected, seconds = never_killed
    process = start(tmp_path, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 3 * seconds
    metrics = tmp_path / "metrics.jsonl"
    while process.poll() is None and time.monotonic() < deadline and not (metrics.exists() and metrics.read_text()):
        time.sleep(0.001)
    process.terminate()
    told = process.communicate(timeout=60)[1]
    assert process.returncode == 143
    newest = max(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    last = f"preempted at step {newest}: the checkpoint is saved, the same command continues"
    assert told.splitlines()[-1] == last
    finish(tmp_path, expected)
