import logging
import types

import jax
import numpy as np
import pytest

from uvit_jax.compiled.topology import parse_topology, topology_devices
from uvit_jax.errors import say_once
from uvit_jax.parallel.compiler import OVERLAPS, compiler_options
from uvit_jax.parallel.mesh import AXES, MeshConfig, make_mesh

GATHERS = "xla_enable_async_all_gather"
SUMS = "xla_tpu_enable_sparse_core_collective_offload_all_reduce"


def mesh_of(kind, fsdp, platform="tpu"):
    """The parts of a mesh that the options depend on."""
    device = types.SimpleNamespace(platform=platform, device_kind=kind)
    return types.SimpleNamespace(
        devices=np.array([device]), shape=dict(zip(AXES, (2, fsdp, 1), strict=True))
    )


@pytest.mark.parametrize(
    ("kind", "fsdp", "overlap", "asked"),
    [
        ("TPU v5", 1, "auto", set()),
        ("TPU v5", 8, "auto", {GATHERS}),
        ("TPU v5", 8, "none", set()),
        ("TPU v5", 1, "sparsecore", {SUMS}),
        ("TPU v5", 8, "sparsecore", {GATHERS, SUMS}),
        ("TPU v5 lite", 8, "sparsecore", {GATHERS}),
        ("TPU of tomorrow", 8, "sparsecore", {GATHERS}),
    ],
)
def test_options_are_those_of_the_chip_and_the_mesh(kind, fsdp, overlap, asked):
    options = compiler_options.__wrapped__(mesh_of(kind, fsdp), overlap)
    assert {name for name in (GATHERS, SUMS) if options.get(name)} == asked


@pytest.mark.parametrize(
    ("kind", "platform"), [("TPU v5 lite", "tpu"), ("NVIDIA H100 80GB HBM3", "gpu"), ("cpu", "cpu")]
)
def test_sparsecore_says_once_where_there_are_none(kind, platform, caplog):
    say_once.cache_clear()
    mesh = mesh_of(kind, 8, platform)
    with caplog.at_level(logging.WARNING, "uvit_jax"):
        options = [compiler_options.__wrapped__(mesh, "sparsecore") for _ in range(2)]
        assert options == [compiler_options.__wrapped__(mesh, "auto")] * 2
        compiler_options.__wrapped__(mesh_of("TPU v5", 8), "sparsecore")
    (record,) = caplog.records
    assert record.getMessage() == (
        f"overlap is 'sparsecore', but {kind} is not a v5p, whose SparseCores can sum "
        "gradients: compiled as with 'auto'"
    )


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_gpus_leave_products_to_cublaslt(overlap):
    options = compiler_options.__wrapped__(mesh_of("NVIDIA H100 80GB HBM3", 1, "gpu"), overlap)
    assert options == {"xla_gpu_enable_triton_gemm": False}
    # XLA refuses a name that it does not know, whatever it compiles for.
    assert jax.jit(lambda x: x + 1, compiler_options=options)(1) == 2


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_other_platforms_get_no_options(overlap):
    assert compiler_options(make_mesh(MeshConfig()), overlap) == {}


@pytest.mark.tpu
@pytest.mark.parametrize("overlap", ["auto", "sparsecore"])
def test_the_compiler_knows_every_option(overlap):
    pytest.importorskip("libtpu")
    devices = topology_devices(parse_topology("v5p:2x2x1"))
    mesh = make_mesh(MeshConfig(fsdp=2), devices)
    x = jax.ShapeDtypeStruct(
        (8,), np.float32, sharding=jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    )
    jax.jit(lambda x: x + 1, compiler_options=compiler_options(mesh, overlap)).lower(x).compile()
