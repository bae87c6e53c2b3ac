import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests.compiled.compiled_programs import TPU_FOUR_SLICES, TPU_SCAN
from uvit_jax.compiled.collectives import collectives
from uvit_jax.compiled.hlo import parse
from uvit_jax.compiled.hlo_time import instruction_seconds
from uvit_jax.compiled.overlap import link_bandwidth, overlap
from uvit_jax.compiled.topology import parse_topology, topology_devices
from uvit_jax.parallel.chips import TPUS
from uvit_jax.parallel.mesh import MeshConfig, make_mesh

# A cycle a second, an operation a second: cycles and FLOPs are seconds.
CHIP = dataclasses.replace(TPUS["v5p"], clock=1.0, peak_flops=1.0)


def overlap_of(text, bandwidth=1.0, chip=CHIP):
    """The overlap, and its spans by the names of their collectives."""
    module = parse(text)
    result = overlap(module, collectives(module), chip, lambda collective: bandwidth)
    return result, {span.collective.name: span for span in result.spans}


def work(name, cycles, operand="%p"):
    return (
        f"  %{name} = f32[8]{{0}} fusion({operand}), kind=kLoop, calls=%f, "
        f'backend_config={{"window_config":{{"estimated_cycles":"{cycles}"}}}}'
    )


def program(*lines):
    body = "\n".join(lines)
    return f"""HloModule m, is_scheduled=true, num_partitions=4

%f (a: f32[8]) -> f32[8] {{
  ROOT %a = f32[8]{{0}} parameter(0)
}}

ENTRY %main (p: f32[8]) -> f32[8] {{
  %p = f32[8]{{0}} parameter(0)
{body}
}}
"""


GROUPS = "replica_groups={{0,1,2,3}}, use_global_device_ids=true"
# Four chips' all-reduce of 32 bytes sends 2 x 3/4 x 32 = 48, an all-gather to 128 bytes 3/4 x 128 =
# 96.
REDUCE, GATHER = 48, 96


def test_a_collective_of_one_instruction_stops_the_chip():
    result, spans = overlap_of(
        program(
            work("before", 100),
            f"  %r = f32[8]{{0}} all-reduce(%p), {GROUPS}, to_apply=%f",
            work("after", 50),
        )
    )
    assert (result.compute, result.communication, result.hidden) == (150, REDUCE, 0)
    assert result.step == 150 + REDUCE
    assert not spans["r"].asynchronous


def test_what_is_scheduled_between_beginning_and_end_hides_and_nothing_else_does():
    result, spans = overlap_of(
        program(
            work("before", 1000),
            f"  %s = f32[8]{{0}} all-reduce-start(%p), {GROUPS}, to_apply=%f",
            work("between", 30),
            "  %d = f32[8]{0} all-reduce-done(%s)",
            work("after", 1000),
        )
    )
    assert (spans["s"].asynchronous, spans["s"].beside, spans["s"].hidden) == (True, 30, 30)
    assert (result.exposed, result.step) == (REDUCE - 30, 2030 + REDUCE - 30)


def test_an_operation_hides_no_more_than_its_own_time_of_all_collectives_together():
    result, spans = overlap_of(
        program(
            f"  %long = f32[8]{{0}} all-reduce-start(%p), {GROUPS}, to_apply=%f",
            f"  %s = (f32[8]{{0}}, f32[32]{{0}}) all-gather-start(%p), {GROUPS}, dimensions={{0}}",
            work("shared", 100),
            "  %d = f32[32]{0} all-gather-done(%s)",
            work("alone", 10),
            "  %e = f32[8]{0} all-reduce-done(%long)",
        )
    )
    assert (spans["s"].seconds, spans["s"].hidden) == (GATHER, GATHER)
    assert (spans["long"].seconds, spans["long"].hidden) == (REDUCE, 4 + 10)
    assert result.exposed == REDUCE - 14


def test_a_loop_hides_with_all_its_rounds_and_counts_what_is_in_it_as_often():
    text = program(
        f"  %s = f32[8]{{0}} all-reduce-start(%p), {GROUPS}, to_apply=%f",
        "  %w = f32[8]{0} while(%p), condition=%c, body=%b, "
        'backend_config={"known_trip_count":{"n":"5"}}',
        "  %d = f32[8]{0} all-reduce-done(%s)",
    ).replace(
        "ENTRY",
        f"""%c (q: f32[8]) -> pred[] {{
  %q = f32[8]{{0}} parameter(0)
  ROOT %t = pred[] constant(true)
}}

%b (q: f32[8]) -> f32[8] {{
  %q = f32[8]{{0}} parameter(0)
{work("step", 7, "%q")}
  ROOT %inner = f32[8]{{0}} all-reduce(%step), {GROUPS}, to_apply=%f
}}

ENTRY""",
    )
    result, spans = overlap_of(text)
    assert result.compute == 35
    assert (spans["s"].beside, spans["s"].hidden) == (35, 35)
    assert (spans["inner"].collective.count, spans["inner"].asynchronous) == (5, False)
    assert result.communication == 6 * REDUCE


def test_what_the_sparse_cores_do_is_beside_the_program():
    text = program(
        "  %s = ((f32[8]{0}), f32[8]{0}) call-start(%p), to_apply=%sc, "
        'async_execution_thread="sparsecore"',
        work("between", 500),
        "  %d = f32[8]{0} call-done(%s)",
    ).replace(
        "ENTRY",
        f"""%sc (q: f32[8]) -> f32[8] {{
  %q = f32[8]{{0}} parameter(0)
  ROOT %r = f32[8]{{0}} all-reduce(%q), {GROUPS}, to_apply=%f
}}, execution_thread="sparsecore"

ENTRY""",
    )
    result, spans = overlap_of(text)
    assert (spans["r"].asynchronous, spans["r"].collective.count) == (True, 1)
    assert (result.compute, result.hidden, result.exposed) == (500, REDUCE, 0)


def test_only_the_fusions_that_carry_a_gather_on_hide_it():
    module = parse(TPU_SCAN)
    result, spans = overlap_of(TPU_SCAN, bandwidth=1e-6)
    product = 2 * 16 * 64 * 512 * 1024
    gather = spans["all-gather.27"]
    assert (gather.asynchronous, gather.beside) == (True, product)
    assert gather.hidden == min(product, gather.seconds)
    # The text of this program has no cycles: products at the peak, as often as the loop goes round.
    assert sorted(instruction_seconds(module, CHIP)[module.entry].values())[-2:] == [
        0,
        14 * product,
    ]
    assert result.compute == 14 * product
    # The reduce-scatter inside a fusion, and the all-reduce in the loop.
    assert {name: span.asynchronous for name, span in spans.items() if name != "all-gather.27"} == {
        "all-reduce.16": False,
        "all-reduce.15": False,
    }


def test_a_transfer_between_slices_ends_where_its_result_is_received():
    received = TPU_FOUR_SLICES.replace(
        "  %send-done = ",
        work("busy", 1000, "%param.1")
        + "\n  %recv-done = (f32[8,4,128]{2,1,0:T(8,128)}, token[]) recv-done(%recv)\n"
        "  %send-done = ",
    ).replace("ENTRY", "%f (a: f32[8]) -> f32[8] {\n  ROOT %a = f32[8]{0} parameter(0)\n}\n\nENTRY")
    _, spans = overlap_of(received, bandwidth=100.0)
    assert (spans["send"].asynchronous, spans["send"].beside) == (True, 1000)
    assert spans["send"].hidden == spans["send"].seconds == 2 * 16 * 1024 * 3 / 4 / 100
    # One that ends nowhere in the text counts as waiting.
    assert (spans["send.1"].asynchronous, spans["send.1"].hidden) == (False, 0)


def test_without_a_clock_products_take_what_they_need_at_the_peak():
    text = program(work("fast", 100)).replace(
        "  ROOT %a = f32[8]{0} parameter(0)",
        "  %a = f32[8]{0} parameter(0)\n  %m = f32[8,8]{1,0} broadcast(%a), dimensions={0}\n"
        "  ROOT %dot = f32[8]{0} dot(%a, %m), lhs_contracting_dims={0}, rhs_contracting_dims={0}",
    )
    assert overlap_of(text)[0].compute == 100
    assert overlap_of(text, chip=dataclasses.replace(CHIP, clock=None))[0].compute == 2 * 8 * 8


@pytest.mark.parametrize(("flops", "moved", "seconds"), [(5000, 10, 5000), (5000, 20_000, 10_000)])
def test_a_kernel_takes_what_it_says_of_itself(flops, moved, seconds):
    cost = f'"cost_estimate":{{"flops":"{flops}","transcendentals":"7","bytes_accessed":"{moved}"}}'
    text = program(
        '  %k = f32[8]{0} custom-call(%p), custom_call_target="tpu_custom_call", '
        f'backend_config={{"custom_call_config":{{"body":"TUz",{cost}}}}}'
    )
    assert overlap_of(text, chip=dataclasses.replace(CHIP, hbm_bandwidth=2.0))[0].compute == seconds


def test_a_group_sends_over_the_links_that_join_it():
    topology = parse_topology("v5p:4x4x4")
    bandwidth = link_bandwidth(
        topology, [(x, y, z) for x in range(4) for y in range(4) for z in range(4)]
    )

    def sent(groups, network="ici"):
        text = program(f"  %r = f32[8]{{0}} all-reduce(%p), {GROUPS}, to_apply=%f")
        (collective,) = collectives(parse(text))
        return bandwidth(dataclasses.replace(collective, groups=groups, network=network))

    link = topology.chip.link_bandwidth
    assert sent((tuple(range(64)),)) == 6 * link
    assert sent((tuple(range(4)), tuple(range(4, 8)))) == 2 * link
    # The slowest group is waited for.
    assert sent((tuple(range(8)), (0, 1))) == link
    assert sent((tuple(range(64)),), "dcn") == topology.chip.dcn_bandwidth


@pytest.mark.tpu
def test_the_cycles_of_a_product_are_near_the_peak_and_gathers_are_made_asynchronous():
    pytest.importorskip("libtpu")
    topology = parse_topology("v5e:2x4")
    mesh = make_mesh(MeshConfig(fsdp=8), topology_devices(topology))
    split, whole = NamedSharding(mesh, PartitionSpec("fsdp")), NamedSharding(mesh, PartitionSpec())

    def layers(x, weights):
        for weight in weights:
            x = jax.lax.with_sharding_constraint(
                x @ jax.lax.with_sharding_constraint(weight, whole), split
            )
        return x

    size = 4096
    x = jax.ShapeDtypeStruct((8 * size, size), jnp.bfloat16, sharding=split)
    weights = [jax.ShapeDtypeStruct((size, size), jnp.bfloat16, sharding=split)] * 4
    module = parse(jax.jit(layers).lower(x, weights).compile().as_text())
    found = collectives(module)
    result = overlap(module, found, topology.chip, lambda collective: topology.ici_bandwidth)
    products = 4 * 2 * size**3 / topology.chip.peak_flops
    assert 0.95 * products < result.compute < 1.5 * products
    assert sum(c.bytes for c in found if c.kind == "all-gather") == 4 * 2 * size**2
    assert result.communication == pytest.approx(4 * 2 * size**2 * 7 / 8 / topology.ici_bandwidth)
    assert sum(span.asynchronous for span in result.spans) >= 2
    assert 0.4 * result.communication < result.hidden <= math.nextafter(result.communication, 1)
