"""One of two processes that test_hosts.py starts; it writes its answers to a file of JSON."""

import json
import os
import pathlib
import sys

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from uvit_jax.data.pipeline import train_batches
from uvit_jax.data.training_data import ArrayData
from uvit_jax.errors import UserError
from uvit_jax.experiment import workdir
from uvit_jax.models.uvit_sharding import RULES
from uvit_jax.parallel import hosts
from uvit_jax.parallel.arrays import fetch, place
from uvit_jax.parallel.distributed import DistributedConfig, start
from uvit_jax.parallel.mesh import AXES, batch_sharding
from uvit_jax.parallel.process_exit import leave
from uvit_jax.parallel.sharding import tree_shardings
from uvit_jax.training.checkpoint import Checkpoints
from uvit_jax.training.state import TrainState

WEIGHTS = {
    "mlp": {
        "fc1": {"kernel": np.arange(32, dtype=np.float32).reshape(4, 8), "bias": np.arange(8.0)}
    }
}
SOURCE = ArrayData("ramp", np.zeros((20, 1, 1, 1), np.float32), np.arange(20), ["0"] * 20)


def make_state(mesh: Mesh, step: int) -> TrainState:
    """A state without a network, sharded by the rules, whose weights grow by 1 per step."""
    trees = [
        jax.tree.map(lambda array, i=i: np.float32(array + step + 100 * i), WEIGHTS)
        for i in range(3)
    ]
    host = TrainState(np.int32(step), *trees)
    return place(host, tree_shardings(host, mesh, RULES))


def make_batches(mesh: Mesh):
    return train_batches(
        SOURCE, fields=("label",), batch_size=8, seed=3, sharding=batch_sharding(mesh)
    )


def values(state: TrainState) -> list:
    """Every number of a state."""
    return [fetch(leaf).tolist() for leaf in jax.tree.leaves(state)]


def labels(mesh: Mesh, batches) -> list:
    """Labels of the next two batches."""
    return [fetch(next(batches)["label"]).tolist() for _ in range(2)]


def attempt(function, *arguments) -> str:
    try:
        return str(function(*arguments))
    except UserError as error:
        return f"{type(error).__name__}: {error}"


def fail_on(process: int) -> int:
    if hosts.index() == process:
        raise UserError(f"no file on {process}")
    return 10 * hosts.index()


def main(port: str, process: int, folder: pathlib.Path) -> None:
    config = DistributedConfig(coordinator=f"127.0.0.1:{port}", timeout=120)
    start(config, {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(process)})
    answers = {
        "place": [hosts.index(), hosts.is_first(), hosts.are_several(), jax.device_count()],
        "alike": attempt(hosts.agree, {"field": [1, None], "ü": "é" * process * 0}),
        "value": attempt(
            hosts.agree, {"same": 1, "config.train.batch_size": 64 if process else 128}
        ),
        "absent": attempt(
            hosts.agree, {"same": 1} if process else {"same": 1, "config.model.new": 3}
        ),
        "own": attempt(hosts.on_all, fail_on, 7),
        "fault of 0": attempt(hosts.on_all, fail_on, 0),
        "fault of 1": attempt(hosts.on_all, fail_on, 1),
        "first alone": hosts.on_first(lambda: 5 + hosts.index()),
        "fault of the first": attempt(hosts.on_first, fail_on, 0),
        "no fault of 1": attempt(hosts.on_first, fail_on, 1),
        "secret": hosts.same_secret(),
        "largest": [hosts.largest(process), hosts.largest(-process)],
        "shared": attempt(workdir.open_workdir, folder / "shared" / "run"),
    }
    workdir._SECONDS_UNTIL_SEEN = 0.3
    answers["unshared"] = attempt(workdir.open_workdir, folder / f"host{process}")
    # Process 0 has cleaned up by now: it came through the same collectives.
    answers["left"] = sorted(os.listdir(folder / "shared" / "run"))

    devices = np.array(jax.devices())
    meshes = {
        "data": Mesh(devices.reshape(4, 1, 1), AXES),
        "interleaved": Mesh(devices[[0, 2, 1, 3]].reshape(2, 2, 1), AXES),
        "tensor": Mesh(devices.reshape(1, 1, 4), AXES),
        "halves": Mesh(devices[[0, 2, 1, 3]].reshape(2, 1, 2), AXES),
    }
    for name, mesh in meshes.items():
        spread = place(
            np.arange(24).reshape(4, 6), NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None))
        )
        whole = place({"a": np.arange(3)}, NamedSharding(mesh, PartitionSpec()))["a"]
        batches = make_batches(mesh)
        answers[name] = [
            fetch(spread).tolist(),
            fetch(whole).tolist(),
            fetch(np.arange(2)).tolist(),
        ]
        answers[f"{name} labels"] = labels(mesh, batches)
        batches.close()

    # A checkpoint of one device is resumed here, and one of here on one device.
    mesh = meshes["interleaved"]
    template = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
        make_state(mesh, 0),
    )
    batches, checkpoints = make_batches(mesh), Checkpoints(folder / "of_one")
    answers["restored"] = values(checkpoints.restore(template, batches))
    answers["restored labels"] = labels(mesh, batches)
    checkpoints.close()
    checkpoints = Checkpoints(folder / "of_two")
    checkpoints.save(make_state(mesh, 6), batches)
    checkpoints.close()
    batches.close()
    (folder / f"{process}.json").write_text(json.dumps(answers))
    leave(0, agreed=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3]))
