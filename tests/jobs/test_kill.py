"""A run killed or told to stop at any moment and started again ends with the same bits as one never
stopped.
"""

import pathlib
import random
import signal
import subprocess
import time

import pytest

from tests.jobs.runs import (
    ROOT,
    assert_same_bits,
    command,
    environment,
    final_state,
    run,
    run_command,
)
from tests.jobs.signalled import signalled
from uvit_jax.telemetry.writers import read_metrics

pytestmark = pytest.mark.slow

# Saving at every third step keeps a save in flight for most of the loop.
ARGUMENTS = ("--config.train.steps=60", "--config.train.save_every=3", "--config.train.log_every=5")
SAVE = "uvit_jax.training.checkpoint:Checkpoints.save"


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("straight")
    result = run(*ARGUMENTS, f"--workdir={workdir}")
    assert result.returncode == 0, result.stderr
    return final_state(workdir)


def train(workdir: pathlib.Path) -> list[str]:
    return command(*ARGUMENTS, f"--workdir={workdir}")


def finish(workdir, expected) -> None:
    result = run(*ARGUMENTS, f"--workdir={workdir}")
    assert result.returncode == 0, result.stderr
    assert_same_bits(final_state(workdir), expected)
    assert [line["step"] for line in read_metrics(workdir / "metrics.jsonl")] == list(
        range(5, 61, 5)
    )
    assert not list((workdir / "checkpoints").glob("*tmp*"))


@pytest.mark.parametrize("seed", [0, 1])
def test_resume_is_bit_exact_after_kills_at_random_moments(never_killed, tmp_path, seed):
    moments = random.Random(seed)
    for _ in range(3):
        call, seconds = moments.randint(1, 5), moments.uniform(0, 0.2)
        result = run_command(signalled(train(tmp_path), SAVE, call=call, seconds=seconds))
        assert result.returncode == -signal.SIGKILL, result.stderr
    finish(tmp_path, never_killed)


def test_resume_is_bit_exact_after_a_kill_during_a_save(never_killed, tmp_path):
    for _ in range(3):
        process = subprocess.Popen(
            train(tmp_path),
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None and not list((tmp_path / "checkpoints").glob("*tmp*")):
            time.sleep(0.001)
        assert process.poll() is None, "no save was ever in flight"
        process.kill()
        process.wait()
    finish(tmp_path, never_killed)


def test_a_sigterm_saves_at_once_and_the_same_command_goes_on_to_the_same_bits(
    never_killed, tmp_path
):
    result = run_command(
        signalled(train(tmp_path), SAVE, call=2, seconds=0.01, sends=signal.SIGTERM)
    )
    assert result.returncode == 143
    newest = max(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert 6 <= newest < 60
    last = f"preempted at step {newest}: the checkpoint is saved, the same command continues"
    assert result.stderr.splitlines()[-1] == last
    finish(tmp_path, never_killed)
