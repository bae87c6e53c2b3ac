"""`prepare`, killed at any moment and run again, leaves the bytes of an unbroken run."""

import pathlib
import random
import signal

import pytest

from tests.jobs.images import write_images, write_kl
from tests.jobs.runs import command, run_command
from tests.jobs.signalled import signalled

pytestmark = pytest.mark.slow

KILLS, SHARDS = 20, 100
BEGIN, FINISH = (
    f"uvit_jax.data.prepared.shard_writer:ShardWriter.{method}"
    for method in ("__enter__", "__exit__")
)


def prepare(root: pathlib.Path, out: pathlib.Path) -> list[str]:
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
    return command("--job=prepare", *config, tiny=False)


def files(folder: pathlib.Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_twenty_kills_at_random_moments_leave_the_same_bytes(tmp_path):
    write_images(tmp_path / "images", classes=8, per_class=100, size=(70, 64))
    write_kl(tmp_path / "kl.safetensors")
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    result = run_command(prepare(tmp_path, straight))
    assert result.returncode == 0, result.stderr
    assert len(list(straight.glob("*.array_record"))) == SHARDS

    # Each run gets a few shards further, most of them; the others are killed at work on their
    # first.
    moments, counts = random.Random(0), []
    for _ in range(KILLS):
        method, call = (FINISH, moments.randint(1, 4)) if moments.random() < 0.8 else (BEGIN, 1)
        result = run_command(
            signalled(
                prepare(tmp_path, killed), method, call=call, seconds=moments.uniform(0, 0.05)
            )
        )
        assert result.returncode == -signal.SIGKILL, result.stderr
        counts.append(len(list(killed.glob("*.array_record"))))
    assert counts == sorted(counts), "a finished shard was lost"
    assert 10 < counts[-1] < SHARDS, "the kills fell before or after all the work"

    result = run_command(prepare(tmp_path, killed))
    assert result.returncode == 0, result.stderr
    assert "going on" in result.stderr
    assert files(killed) == files(straight)
