"""Train steps of small models on meshes of this process's devices: a program for tests, which
prints JSON.

python -m tests.training.mesh_runs train '[{"mesh": [2, 2, 2], "model": {...}}, ...]'
python -m tests.training.mesh_runs collectives '[...]'

`train`: ten steps on the mesh and on one device alone, from the same weights on the same batches;
how far the losses and the weights differ, and what share of the state a device holds. TPU's
attention, where a case asks for it, is interpreted on the mesh and XLA's on the one device.
`collectives`: those of the compiled step. `tpu`: those of the step compiled for four TPU chips that
aren't there.
"""

import dataclasses
import functools
import json
import sys
from typing import Any

import jax
import numpy as np

from uvit_jax.compiled.collectives import collectives
from uvit_jax.compiled.hlo import parse
from uvit_jax.compiled.topology import parse_topology, topology_devices
from uvit_jax.diffusion.schedules import VPLinear
from uvit_jax.models.kernels import fused_attention
from uvit_jax.models.kernels.attention import mosaic_attention
from uvit_jax.models.uvit import UViTConfig
from uvit_jax.parallel.mesh import MeshConfig, batch_sharding, make_mesh
from uvit_jax.training.network import abstract_network
from uvit_jax.training.optimizer import make_optimizer
from uvit_jax.training.optimizer_config import OptimizerConfig
from uvit_jax.training.state import abstract, create_sharded
from uvit_jax.training.step import Objective, make_train_step

STEPS, BATCH = 10, 16
# 21 patches: no dimension of a parameter is the number of tokens, 23 with labels.
SMALL = {
    "image_size": (6, 14),
    "in_channels": 3,
    "embed_dim": 64,
    "depth": 5,
    "num_heads": 8,
    "mlp_ratio": 4,
}


def batches(config: UViTConfig) -> list[dict[str, np.ndarray]]:
    """The same random batches whatever the mesh."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(STEPS):
        batch = {"x": rng.standard_normal((BATCH, *config.sample_shape)).astype(np.float32)}
        if config.num_classes:
            batch["label"] = rng.integers(0, config.num_classes - 1, BATCH).astype(np.int32)
        if config.context_dim:
            shape = (BATCH, config.context_length, config.context_dim)
            batch["context"] = rng.standard_normal(shape).astype(np.float32)
        made.append(batch)
    return made


def null_of(config: UViTConfig) -> Any:
    """The empty condition."""
    return (
        np.ones((config.context_length, config.context_dim), np.float32)
        if config.context_dim
        else 3
    )


def compile_step(
    config: UViTConfig, mesh: jax.sharding.Mesh, batch: dict[str, np.ndarray]
) -> tuple[Any, Any]:
    """The compiled step, and what makes a state on the mesh."""
    _, network, init_params = abstract_network(config, mesh)
    optimizer = make_optimizer(OptimizerConfig(lr=2e-3, warmup_steps=5), STEPS)
    objective = Objective(VPLinear(), p_uncond=0.1, null_condition=null_of(config))
    step = make_train_step(network, objective, optimizer, ema_rate=0.9, seed=1)
    template = abstract(init_params, optimizer, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, template)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
    shapes = {
        name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=batch_sharding(mesh))
        for name, array in batch.items()
    }
    return jitted.lower(template, shapes).compile(), lambda: create_sharded(
        init_params, optimizer, 0, template
    )


def train(config: UViTConfig, mesh: jax.sharding.Mesh) -> tuple[list[float], Any]:
    """The losses of ten steps, and the state after them."""
    examples = batches(config)
    step, create = compile_step(config, mesh, examples[0])
    state, losses = create(), []
    for batch in examples:
        state, metrics = step(state, jax.device_put(batch, batch_sharding(mesh)))
        losses.append(float(metrics["loss"]))
    return losses, state


def distance(one: Any, other: Any) -> float:
    """The largest relative difference of any array, in the 2-norm."""
    one, other = jax.device_get((one, other))
    distances = jax.tree.map(
        lambda a, b: np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-6), one, other
    )
    return float(max(jax.tree.leaves(distances)))


def share(state: Any) -> float:
    """The bytes of parameters, EMA and optimizer on the first device, over those of the whole."""
    leaves = jax.tree.leaves((state.params, state.ema, state.opt_state))
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves) / sum(
        leaf.nbytes for leaf in leaves
    )


def traffic(case: dict[str, Any], devices: list[jax.Device] | None = None) -> list[dict[str, Any]]:
    """The collectives of a case's compiled step."""
    config, mesh = (
        UViTConfig(**SMALL | case["model"]),
        make_mesh(MeshConfig(*case["mesh"]), devices),
    )
    step, _ = compile_step(config, mesh, batches(config)[0])
    return [
        {
            "kind": found.kind,
            "bytes": found.bytes,
            "count": found.count,
            "inside_loop": found.inside_loop,
            "group_size": found.group_size,
            "shapes": [list(shape.dims) for shape in found.shapes],
            "origin": found.op_name,
        }
        for found in collectives(parse(step.as_text()))
    ]


def interpret_mosaic() -> None:
    """Makes attention = "mosaic" TPU's kernels by Pallas's interpreter, and any other XLA's."""
    fused_attention.resolve = lambda name, *_: "mosaic" if name == "mosaic" else "xla"
    fused_attention.mosaic_attention = functools.partial(mosaic_attention, interpret=True)


def compare(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Differences of each case's training from that on one device."""
    alone, results = {}, []
    for case in cases:
        config = UViTConfig(**SMALL | case["model"])
        plain = dataclasses.replace(config, attention="xla")
        if plain not in alone:
            alone[plain] = train(plain, make_mesh(MeshConfig(), jax.devices()[:1]))
        losses, state = train(config, make_mesh(MeshConfig(*case["mesh"])))
        expected_losses, expected = alone[plain]
        results.append(
            {
                "losses": float(np.max(np.abs(np.divide(losses, expected_losses) - 1))),
                "params": distance(state.params, expected.params),
                "ema": distance(state.ema, expected.ema),
                "share": share(state),
            }
        )
    return results


if __name__ == "__main__":
    jax.config.update("jax_default_matmul_precision", "highest")
    task, given = sys.argv[1], json.loads(sys.argv[2])
    if task == "train":
        interpret_mosaic()
        results: list[Any] = compare(given)
    else:
        devices = topology_devices(parse_topology("v5e:2x2")) if task == "tpu" else None
        results = [traffic(case, devices) for case in given]
    print(json.dumps(results))
