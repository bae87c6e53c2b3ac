"""Small runs of the real jobs, for tests: the digits config with a network that compiles in
seconds.
"""

import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Sequence

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
    from uvit_jax.experiment.config import resolve

    config = get_config()
    config.update_from_flattened_dict(
        TINY | {name.replace("__", "."): value for name, value in overrides.items()}
    )
    return resolve(config)


def command(*arguments: str, config: str = "configs/digits.py", tiny: bool = True) -> list[str]:
    """The command line of a job as a user types it."""
    overrides = [f"--config.{name}={value}" for name, value in TINY.items()] if tiny else []
    return [sys.executable, "-m", "uvit_jax.main", f"--config={config}", *overrides, *arguments]


def environment(devices: int = 1) -> dict[str, str]:
    """The environment of a job on this many (fake) CPU devices, with the session's compiled
    programs (`tests/conftest.py`).
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if devices > 1:
        flags += f" --xla_force_host_platform_device_count={devices}"
    return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}


def run_command(
    line: Sequence[str], *, timeout: float = 300, **variables: str
) -> subprocess.CompletedProcess:
    """Runs a command line to its end, with these environment variables besides."""
    return subprocess.run(
        line,
        cwd=ROOT,
        env=environment() | variables,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def run(*arguments: str, timeout: float = 300, **options) -> subprocess.CompletedProcess:
    """Runs a job to its end."""
    return run_command(command(*arguments, **options), timeout=timeout)


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as asked:
        asked.bind(("", 0))
        return asked.getsockname()[1]


def start_hosts(
    processes: int, devices_each: int, *arguments: str, timeout: int = 120, **options
) -> list:
    """A job's processes as so many hosts, each with its (fake) CPU devices."""
    port = free_port()
    return [
        subprocess.Popen(
            command(
                *arguments,
                f"--config.distributed.coordinator=127.0.0.1:{port}",
                f"--config.distributed.num_processes={processes}",
                f"--config.distributed.process_id={process}",
                f"--config.distributed.timeout={timeout}",
                **options,
            ),
            cwd=ROOT,
            env=environment(devices_each),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(processes)
    ]


def ends(processes: list, timeout: float = 300) -> list[subprocess.CompletedProcess]:
    """Waits for these processes; none is left behind."""
    try:
        told = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *texts)
        for process, texts in zip(processes, told, strict=True)
    ]


def run_hosts(
    processes: int, devices_each: int, *arguments: str, **options
) -> list[subprocess.CompletedProcess]:
    """Runs a job on so many hosts to its end."""
    return ends(start_hosts(processes, devices_each, *arguments, **options))


def final_state(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """Every array of a run's newest checkpoint, by name, and its step."""
    import orbax.checkpoint as ocp

    steps = [int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()]
    folder = workdir / "checkpoints" / str(max(steps))
    arrays = {"step": np.asarray(max(steps))}
    for item in ("params", "ema", "optimizer"):
        # As NumPy's arrays: the devices they were saved from need not be there.
        checkpointer, path = ocp.PyTreeCheckpointer(), folder.absolute() / item
        metadata = checkpointer.metadata(path).item_metadata.tree
        wanted = jax.tree.map(lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray), metadata)
        tree = checkpointer.restore(path, restore_args=wanted)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            arrays[item + jax.tree_util.keystr(path)] = np.asarray(leaf)
    return arrays


def assert_same_bits(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    """Fails naming the first array that differs in any bit."""
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert array.tobytes() == other[name].tobytes(), name
