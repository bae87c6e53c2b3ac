"""Small runs of the real jobs, for tests: the digits config with a network that compiles in seconds."""

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np

ROOT = pathlib.Path(__file__).parents[2]

TINY = {
    "model.embed_dim": 16,
    "model.depth": 3,
    "optimizer.decay": "none",
    "train.steps": 8,
    "train.batch_size": 16,
    "train.log_every": 2,
    "train.image_every": 0,
    "train.save_every": 4,
    "train.num_images": 20,
    "sample.num_samples": 20,
    "sample.batch_size": 16,
    "sample.steps": 4,
}


def tiny_experiment(**overrides):
    """The resolved digits experiment, tiny, with dotted fields replaced."""
    from configs.digits import get_config
    from uvit_jax.jobs.config import resolve

    config = get_config()
    config.update_from_flattened_dict(TINY | {name.replace("__", "."): value for name, value in overrides.items()})
    return resolve(config)


def command(*arguments: str, config: str = "configs/digits.py", tiny: bool = True) -> list[str]:
    """The command line of a job as a user types it."""
    overrides = [f"--config.{name}={value}" for name, value in TINY.items()] if tiny else []
    return [sys.executable, "-m", "uvit_jax.main", f"--config={config}", *overrides, *arguments]


def environment(devices: int = 1) -> dict[str, str]:
    """The environment of a job on this many (fake) CPU devices."""
    flags = f"--xla_force_host_platform_device_count={devices}" if devices > 1 else ""
    return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}


def run(*arguments: str, timeout: float = 300, **options) -> subprocess.CompletedProcess:
    """Runs a job to its end."""
    return subprocess.run(
        command(*arguments, **options), cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=timeout
    )


def final_state(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """Every array of a run's newest checkpoint, by name, and its step."""
    import orbax.checkpoint as ocp

    steps = [int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()]
    folder = workdir / "checkpoints" / str(max(steps))
    arrays = {"step": np.asarray(max(steps))}
    for item in ("params", "ema", "optimizer"):
        tree = ocp.StandardCheckpointer().restore(folder.absolute() / item)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            arrays[item + jax.tree_util.keystr(path)] = np.asarray(leaf)
    return arrays


def assert_same_bits(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    """Fails naming the first array that differs in any bit."""
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert array.tobytes() == other[name].tobytes(), name
