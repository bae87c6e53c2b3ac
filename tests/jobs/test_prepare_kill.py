"""`prepare`, killed at any moment and started again, leaves the bytes that a run never killed leaves."""

import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from tests.jobs.images import write_images, write_kl
from tests.jobs.runs import ROOT, environment

pytestmark = pytest.mark.slow

KILLS = 20


def command(root: pathlib.Path, out: pathlib.Path) -> list[str]:
    fields = {
        "prepare.source": root / "images",
        "prepare.out": out,
        "autoencoder.name": root / "kl.safetensors",
        "model.image_size": 16,
        "model.in_channels": 4,
        "prepare.images_per_shard": 8,
        "prepare.batch_size": 4,
    }
    config = [f"--config.{name}={value}" for name, value in fields.items()]
    return [sys.executable, "-m", "uvit_jax.main", "--job=prepare", "--config=configs/digits.py", *config]


def files(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_twenty_kills_at_random_moments_leave_the_same_bytes(tmp_path):
    write_images(tmp_path / "images", classes=8, per_class=100, size=(70, 64))
    write_kl(tmp_path / "kl.safetensors")
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    began = time.monotonic()
    result = subprocess.run(command(tmp_path, straight), cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    seconds, shards = time.monotonic() - began, len(list(straight.glob("*.array_record")))
    assert shards == 100

    # Most kills fall where shards are written, whatever the start takes; each run gets a few shards further.
    moments, counts = random.Random(0), []
    for _ in range(KILLS):
        process = subprocess.Popen(
            command(tmp_path, killed),
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        if moments.random() < 0.2:
            time.sleep(moments.uniform(0, 0.5 * seconds))
        else:
            before, deadline = len(list(killed.glob("*.array_record"))), time.monotonic() + 60
            while process.poll() is None and time.monotonic() < deadline:
                if len(list(killed.glob("*.array_record"))) > before:
                    break
                time.sleep(0.005)
            time.sleep(moments.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
        counts.append(len(list(killed.glob("*.array_record"))))
    assert counts == sorted(counts), "a finished shard was lost"
    assert 10 < counts[-1] < shards, "the kills fell before or after all the work"

    result = subprocess.run(command(tmp_path, killed), cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "going on" in result.stderr
    assert files(killed) == files(straight)
