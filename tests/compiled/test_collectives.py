import json
import os
import subprocess
import sys

import pytest

from tests.compiled.compiled_programs import GPU, TPU_FOUR_SLICES, TPU_SCAN
from uvit_jax.compiled.collectives import Traffic, collectives, summary, wire_bytes
from uvit_jax.compiled.hlo import matmul_flops, parse, unknown_loops
from uvit_jax.compiled.replica_groups import replica_groups

# Programs over 8 devices as a mesh (data 2, fsdp 2, tensor 2): every collective there is, and a
# scanned block whose parameters are split by fsdp and tensor. Writes each program's text and the
# compiler's FLOPs.
PROGRAMS = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
kind = sys.argv[1]
if kind == "cpu":
    devices = jax.devices()
else:
    from jax.experimental import topologies
    name, _, slices = kind.partition("*")
    options = {"num_slices": int(slices)} if slices else {}
    devices = topologies.get_topology_desc(name, "tpu", **options).devices
mesh = Mesh(np.array(devices).reshape(2, 2, 2), ("data", "fsdp", "tensor"))
def array(shape, dtype, *spec):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*spec)))
def every(x):
    pairs = [(0, 1), (1, 0)]
    return (jax.lax.psum(x, ("data", "tensor")), jax.lax.all_gather(x, "fsdp"),
            jax.lax.psum_scatter(x, "tensor", tiled=True),
            jax.lax.all_to_all(x, "tensor", 0, 1, tiled=True),
            jax.lax.ppermute(x, "fsdp", pairs))
def loss(weights, x):
    def block(x, w):
        h = jax.nn.relu(jnp.einsum("bd,dh->bh", x, w[0]))
        y = x + jnp.einsum("bh,hd->bd", h, w[1])
        return jax.lax.with_sharding_constraint(y, NamedSharding(mesh, P(("data", "fsdp")))), None
    return jax.lax.scan(block, x, weights)[0].sum()
out = (P(), P("fsdp"), P("tensor"), P(None, "tensor"), P())
programs = {
    "every": (jax.shard_map(every, mesh=mesh, in_specs=P(), out_specs=out, check_vma=False),
              [array((256, 1024), jnp.float32)]),
    "step": (jax.grad(loss), [(array((7, 512, 1024), jnp.float32, None, "fsdp", "tensor"),
                               array((7, 1024, 512), jnp.float32, None, "tensor", "fsdp")),
                              array((256, 512), jnp.float32, ("data", "fsdp"))]),
}
made = {}
for name, (function, arguments) in programs.items():
    compiled = jax.jit(function).lower(*arguments).compile()
    made[name] = [compiled.as_text(), compiled.cost_analysis().get("flops")]
print(json.dumps(made))
"""
TPU_THAT_IS_NOT_THERE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def programs(kind):
    """The module of each program and the compiler's FLOPs, compiled in a process of 8 devices."""
    flags = (
        {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
        if kind == "cpu"
        else TPU_THAT_IS_NOT_THERE
    )
    environment = os.environ | {"JAX_PLATFORMS": "cpu"} | flags
    run = subprocess.run(
        [sys.executable, "-c", PROGRAMS, kind],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    made = json.loads(run.stdout.splitlines()[-1])
    return {name: (parse(text), flops) for name, (text, flops) in made.items()}


@pytest.fixture(scope="module")
def cpu():
    return programs("cpu")


DATA_AND_TENSOR = ((0, 1, 4, 5), (2, 3, 6, 7))
FSDP = ((0, 2), (1, 3), (4, 6), (5, 7))
TENSOR = ((0, 1), (2, 3), (4, 5), (6, 7))
# A device holds 256 x 1024 float32 of the argument: kind -> (bytes of the whole buffer, sent,
# groups).
MIB = 2**20
EVERY = {
    "all-reduce": (MIB, 3 * MIB // 2, DATA_AND_TENSOR),
    "all-gather": (2 * MIB, MIB, FSDP),
    "reduce-scatter": (MIB, MIB // 2, TENSOR),
    "all-to-all": (MIB, MIB // 2, TENSOR),
    "collective-permute": (
        MIB,
        MIB,
        ((0, 2), (1, 3), (2, 0), (3, 1), (4, 6), (5, 7), (6, 4), (7, 5)),
    ),
}


def check_every_collective(module):
    found = {c.kind: c for c in collectives(module)}
    assert len(collectives(module)) == len(found)
    read = {kind: (c.bytes, c.wire_bytes, tuple(sorted(c.groups))) for kind, c in found.items()}
    assert read == EVERY
    assert {c.network for c in found.values()} == {"ici"}
    assert {(c.count, c.inside_loop) for c in found.values()} == {(1, False)}
    assert found["all-reduce"].op_name.endswith("shard_map/psum")


def check_step(module, flops):
    # A device has 64 of 256 rows and half of the hidden channels; one product forward and two
    # backward for each.
    product = 2 * 64 * 512 * 512
    assert matmul_flops(module) == 7 * 6 * product
    assert matmul_flops(module, loops=False) == pytest.approx(flops, rel=0.04)
    assert unknown_loops(module) == ()
    found = collectives(module)
    # Each layer's two kernels are gathered over fsdp, one layer at a time and not the whole stack.
    gathers = [c for c in found if c.kind == "all-gather"]
    assert {(c.count, c.inside_loop, c.group_size) for c in gathers} == {(7, True, 2)}
    assert {shape.elements for c in gathers for shape in c.shapes} == {512 * 512}
    # Activations are summed over tensor, forward and backward.
    sums = [c for c in found if c.kind == "all-reduce" and c.shapes[0].elements == 64 * 512]
    assert [c.count for c in sums if sorted(c.groups) == sorted(TENSOR)] == [7, 7]


def test_every_kind_of_collective_is_read_from_a_compiled_program(cpu):
    check_every_collective(cpu["every"][0])


def test_a_scanned_step_gathers_one_layer_at_a_time(cpu):
    check_step(*cpu["step"])


def test_a_group_over_two_slices_goes_over_dcn(cpu):
    module = cpu["every"][0]
    by_half = {c.kind: c.network for c in collectives(module, slice_of=[0, 0, 0, 0, 1, 1, 1, 1])}
    assert by_half == dict.fromkeys(EVERY, "ici") | {"all-reduce": "dcn"}
    by_turns = {c.kind: c.network for c in collectives(module, slice_of=[0, 0, 1, 1, 0, 0, 1, 1])}
    assert by_turns == dict.fromkeys(EVERY, "ici") | {
        "all-gather": "dcn",
        "collective-permute": "dcn",
    }


@pytest.mark.tpu
@pytest.mark.parametrize("kind", ["v5e:2x4", "v5p:2x2x2"])
def test_tpu_programs_are_read(kind):
    pytest.importorskip("libtpu")
    made = programs(kind)
    check_every_collective(made["every"][0])
    check_step(*made["step"])


@pytest.mark.tpu
def test_a_tpu_program_over_two_slices_says_what_crosses_them():
    pytest.importorskip("libtpu")
    made = programs("v5e:2x2*2")
    slice_of = [0] * 4 + [1] * 4
    found = collectives(made["every"][0], slice_of=slice_of)
    assert {c.kind for c in found if c.network == "ici"} >= {
        "all-gather",
        "reduce-scatter",
        "all-to-all",
    }
    (across,) = (c for c in found if c.network == "dcn")
    # Summed within the slice first, so that each device sends its half of the buffer.
    assert (across.kind, across.group_size, across.bytes) == ("all-reduce", 2, MIB // 2)
    step = collectives(made["step"][0], slice_of=slice_of)
    assert {c.kind for c in step if c.network == "dcn"} == {"all-reduce"}
    # The gradients of both kernels, split by fsdp and tensor, once a layer.
    assert sum(c.count * c.bytes for c in step if c.network == "dcn") == pytest.approx(
        7 * 2 * 256 * 512 * 4, rel=0.1
    )


def test_what_a_tpu_spreads_over_fusions_is_one_gather():
    found = {c.name: c for c in collectives(parse(TPU_SCAN))}
    assert set(found) == {"all-gather.27", "all-reduce.16", "all-reduce.15"}
    gather = found["all-gather.27"]
    assert (gather.kind, gather.count, gather.inside_loop) == ("all-gather", 14, True)
    assert (gather.bytes, gather.wire_bytes) == (2 * 1024 * 512, 1024 * 512)
    assert gather.shapes == (("bf16", (1, 1024, 512)),)
    assert sorted(gather.groups) == sorted(FSDP)


def test_an_all_reduce_of_which_a_fusion_keeps_a_part_is_a_reduce_scatter():
    found = {c.name: c for c in collectives(parse(TPU_SCAN))}
    scatter = found["all-reduce.16"]
    assert (scatter.kind, scatter.count, scatter.inside_loop) == ("reduce-scatter", 1, False)
    assert (scatter.bytes, scatter.wire_bytes) == (2 * 2 * 512 * 1024, 2 * 512 * 1024)
    # The fusion has the place in the JAX program.
    assert scatter.op_name == "jit(step)/transpose(jvp())/btd,dh->bth/dot_general"
    assert (found["all-reduce.15"].kind, found["all-reduce.15"].count) == ("all-reduce", 14)


def test_what_crosses_slices_is_named_as_what_it_does():
    module = parse(TPU_FOUR_SLICES)
    # The program is of one slice's partitions: these don't tell of slices, whatever the mesh's
    # order.
    found = collectives(module, slice_of=[0, 1, 2, 3] * 4)
    within, *across = found
    assert (within.kind, within.network, within.groups) == ("all-reduce", "ici", ((0, 1, 2, 3),))
    size = 16 * 1024 * 4
    assert [(c.kind, c.network, c.group_size, c.bytes, c.wire_bytes) for c in across] == [
        ("all-reduce", "dcn", 4, size // 4, 2 * size // 4 * 3 // 4),
        ("all-gather", "dcn", 4, size * 4, size * 3),
        ("all-to-all", "dcn", 4, size * 16, size * 12),
        ("collective-permute", "dcn", 2, size, size),
    ]
    assert [c.op_name for c in across] == [
        "all-reduce_0",
        "all_gather.3_0",
        "all_to_all.15_0",
        "ppermute.3_0",
    ]
    assert across[0].groups[1] == across[2].groups[1] == (100001, 200001, 300001, 400001)
    assert across[1].shapes == (("f32", (64, 1024)),)
    assert across[3].groups[-1] == (400000, 100000)


def test_gpu_collectives_begin_and_end_and_count_once():
    found = collectives(parse(GPU))
    buffer = 2 * 2 * 512 * 2048
    assert [(c.kind, c.bytes, c.wire_bytes, c.groups) for c in found] == [
        ("all-gather", buffer, buffer // 2, ((0, 1),)),
        ("reduce-scatter", buffer, buffer // 2, ((0, 1),)),
        ("collective-permute", buffer // 4, buffer // 4, ((0, 1), (1, 0))),
    ]
    assert found[0].shapes == found[1].shapes == (("bf16", (512, 2048)),) * 2


def test_a_collective_that_runs_beside_the_program_counts_once():
    text = """HloModule m, num_partitions=4
%async_computation (a: f32[8]) -> f32[2] {
  %a = f32[8]{0} parameter(0)
  ROOT %scatter = f32[2]{0} reduce-scatter(%a), channel_id=1, replica_groups=[1,4]<=[4], dimensions={0}, to_apply=%add
}
ENTRY %main (p: f32[8]) -> f32[2] {
  %p = f32[8]{0} parameter(0)
  %start = ((f32[8]{0}), f32[2]{0}, u32[]) async-start(%p), calls=%async_computation
  %update = ((f32[8]{0}), f32[2]{0}, u32[]) async-update(%start), calls=%async_computation
  ROOT %done = f32[2]{0} async-done(%update), calls=%async_computation
}
"""  # noqa: E501
    (found,) = collectives(parse(text))
    assert (found.kind, found.count, found.bytes, found.wire_bytes) == ("reduce-scatter", 1, 32, 24)


@pytest.mark.parametrize(
    ("written", "groups"),
    [
        ("{{0,1},{2,3}}", ((0, 1), (2, 3))),
        ("{}", (tuple(range(8)),)),
        ("[2,4]<=[8]", ((0, 1, 2, 3), (4, 5, 6, 7))),
        ("[4,2]<=[2,4]T(1,0)", ((0, 4), (1, 5), (2, 6), (3, 7))),
        ("[2,4]<=[2,2,2]T(1,0,2)", ((0, 1, 4, 5), (2, 3, 6, 7))),
        ("mesh['a'=2,'b'=4] {'a'}", ((0, 4), (1, 5), (2, 6), (3, 7))),
        ("mesh['a'=2,'b'=4] {'b'}", ((0, 1, 2, 3), (4, 5, 6, 7))),
        ("mesh['a'=2,'b'=4] {'a','b'}", (tuple(range(8)),)),
        ("mesh['a'=2,'b'=4] {'b':(2)2}", ((0, 1), (2, 3), (4, 5), (6, 7))),
        ("mesh['a'=2,'b'=4] {'a','b':(1)2}", ((0, 2, 4, 6), (1, 3, 5, 7))),
        ("mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}", ((0, 1), (2, 3), (4, 5), (6, 7))),
        ("mesh['a'=4,'b'=2], device_ids=(0,2,4,6,1,3,5,7) {'b'}", ((0, 2), (4, 6), (1, 3), (5, 7))),
        ("something['new']", (tuple(range(8)),)),
    ],
)
def test_groups_are_read_in_every_form(written, groups):
    module = parse(f"""HloModule m, num_partitions=8
ENTRY %main (p: f32[8]) -> f32[8] {{
  %p = f32[8]{{0}} parameter(0)
  ROOT %r = f32[8]{{0}} all-reduce(%p), channel_id=1, replica_groups={written}, use_global_device_ids=true
}}
""")  # noqa: E501
    assert replica_groups(module, module.computations["main"].instructions["r"]) == groups


def test_what_a_ring_sends():
    assert wire_bytes("all-reduce", 800, 4) == 1200
    assert wire_bytes("all-gather", 800, 4) == wire_bytes("reduce-scatter", 800, 4) == 600
    assert wire_bytes("all-to-all", 800, 4) == 600
    assert (
        wire_bytes("collective-permute", 800, 2)
        == wire_bytes("collective-broadcast", 800, 4)
        == 800
    )
    assert wire_bytes("all-reduce", 4, 3) == 6
    assert {wire_bytes(kind, 800, 1) for kind in EVERY} == {0}


def test_a_collective_of_one_device_is_left_out():
    text = """HloModule m, num_partitions=2
ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %r = f32[8]{0} all-reduce(%p), channel_id=1, replica_groups={{0},{1}}, use_global_device_ids=true
}
"""  # noqa: E501
    assert collectives(parse(text)) == []


def test_the_summary_counts_executions_and_has_most_bytes_first():
    rows = summary(collectives(parse(TPU_SCAN)))
    size = 2 * 16 * 64 * 512
    assert rows == [
        Traffic("all-reduce", "ici", 14, 14 * size, 14 * size),
        Traffic("all-gather", "ici", 14, 14 * 2 * 1024 * 512, 14 * 1024 * 512),
        Traffic("reduce-scatter", "ici", 1, 4 * 512 * 1024, 2 * 512 * 1024),
    ]
    assert summary([]) == []
