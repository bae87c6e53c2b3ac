import dataclasses
import math

import pytest

from tests.jobs.runs import tiny_experiment
from uvit_jax.experiment.step_program import abstract_state
from uvit_jax.jobs import preflight
from uvit_jax.jobs.forecast import figures, search
from uvit_jax.jobs.forecast.hardware import open_hardware
from uvit_jax.jobs.forecast.program import shard_bytes
from uvit_jax.parallel.chips import GiB


@pytest.mark.parametrize("start", [1, 4, 64, 300, 5000])
@pytest.mark.parametrize("per_example", [0.011, 0.13, 3.0])
def test_the_search_finds_the_largest_batch_in_a_few_compiles(start, per_example):
    """Memory as compilers use it: nearly linear in the batch, with a step in it."""
    limit = 15.75

    def measure(batch_size):
        batch = batch_size // 4
        total = 8.0 + per_example * batch + (0.3 if batch > 20 else 0.0)
        parts = {"parameters": 2 * GiB, "optimizer": 4 * GiB, "EMA": 2 * GiB}
        memory = {
            "parts": parts,
            "total": int(total * GiB),
            "capacity": int(limit * GiB),
            "fits": total <= limit,
        }
        return {"memory": memory, "batch": {"global": 4 * batch, "per_replica": batch}}

    found = search.largest_batch(measure(4 * start), measure)
    assert len(found["tries"]) <= 1 + search.BATCH_COMPILES
    true = max(
        (b for b in range(1, 1000) if 8.0 + per_example * b + (0.3 if b > 20 else 0) <= limit),
        default=None,
    )
    largest = found["largest_per_replica"]
    assert largest <= true
    # Above 16 batches go in eights.
    assert largest >= (true if true < 16 else 0.9 * true - 8)
    assert found["largest_global"] == 4 * largest


def test_no_batch_fits_beside_a_state_that_does_not():
    memory = {
        "parts": {"parameters": 10 * GiB, "optimizer": 20 * GiB, "EMA": 10 * GiB},
        "capacity": 16 * GiB,
    }
    tries = [{"per_replica": 4, "fits": False, "total": 45 * GiB}]
    assert search.next_batch(tries, memory) in (1, 2)
    tries.append({"per_replica": 1, "fits": False, "total": 42 * GiB})
    assert search.next_batch(tries, memory) is None


def test_every_mesh_divides_devices_heads_and_batch():
    experiment = tiny_experiment(train__batch_size=8, model__embed_dim=24)
    meshes = search.possible_meshes(experiment.model, experiment.train, 16)
    assert all(math.prod(mesh) == 16 for mesh in meshes)
    # There are no sixteen parts of a batch of eight, nor sixteen parts of eight heads or of 24
    # channels.
    assert {tensor for _, _, tensor in meshes} == {2, 4, 8}
    assert {fsdp for _, fsdp, _ in meshes} == {1, 2, 4, 8}
    assert (2, 4, 2) in meshes
    assert len(set(meshes)) == len(meshes)


@pytest.mark.tpu
def test_the_mesh_with_the_best_compiled_step_is_taken():
    pytest.importorskip("libtpu")
    experiment = tiny_experiment(
        preflight__topology="v5e:4x4", train__batch_size=64, mesh__data=8, mesh__tensor=2
    )
    slices = open_hardware(experiment.preflight)
    assembled = preflight.open_assembled(experiment, slices)
    _, state = abstract_state(assembled, experiment.optimizer, experiment.train.steps)

    def made_up(mesh, bound):
        changed = dataclasses.replace(experiment, mesh=mesh)
        roofline = {"bound": bound, "no_overlap": 2 * bound, "highest_mfu": 0.5}
        sizes = {"parameters": shard_bytes(state.params), "optimizer": 0, "EMA": 0}
        memory = {"parts": sizes, "total": GiB, "capacity": slices.capacity, "fits": True}
        facts = figures.describe(preflight.open_assembled(changed, slices), 64, slices)
        return facts | {"roofline": roofline, "memory": memory}

    asked = []

    def measure(mesh):
        asked.append(mesh)
        return made_up(mesh, 1.0 / len(asked))

    base = made_up(experiment.mesh, 3.0)
    line = search.memory_line([search._try(base)], base["memory"])
    estimates = search.estimate_meshes(
        experiment.model, experiment.train, slices, state, base, line
    )
    found = search.best_mesh(estimates, base, measure)
    # The figures above call the second one faster.
    assert len(asked) == search.MESH_COMPILES
    assert found["best"] == dataclasses.asdict(asked[1])
    assert [row["mesh"] for row in found["compiled"]] == [
        base["mesh"],
        *map(dataclasses.asdict, asked),
    ]
    # With hardly any memory only those are left that split the state.
    small = dataclasses.replace(slices, capacity=shard_bytes(state) // 4)
    line = (0.0, 0.0)
    left = search.estimate_meshes(experiment.model, experiment.train, small, state, base, line)
    assert left
    assert all(one["mesh"]["fsdp"] * one["mesh"]["tensor"] > 2 for one in left)
