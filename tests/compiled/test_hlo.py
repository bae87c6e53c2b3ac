import re

import jax
import jax.numpy as jnp
import pytest

from tests.compiled.compiled_programs import GPU, TPU_FOUR_SLICES, TPU_SCAN
from uvit_jax.compiled.hlo import (
    Shape,
    executions,
    instruction_flops,
    matmul_flops,
    parse,
    unknown_loops,
)

LAYERS, BATCH, DIM = 5, 96, 192


def compiled(function, *shapes):
    return (
        jax.jit(function)
        .lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))
        .compile()
    )


def text_of(function, *shapes):
    return compiled(function, *shapes).as_text()


def layers(x, kernels):
    return jax.lax.scan(lambda x, w: (jax.nn.relu(x @ w), None), x, kernels)[0]


def gradient(x, kernels):
    return jax.grad(lambda kernels: layers(x, kernels).sum())(kernels)


def flops_of(text, name):
    module = parse(text)
    (found,) = (instruction_flops(c, i) for c, i in module.instructions() if i.name == name)
    return found


def test_an_instruction_is_read_whole():
    module = parse(TPU_SCAN)
    assert (module.entry, module.num_partitions, module.num_replicas) == ("main.6_spmd", 8, 1)
    computation = module.computations["async_collective_fusion.85"]
    assert computation.root == "tuple.72"
    product = computation.instructions["convolution.7"]
    assert product.opcode == "convolution"
    assert product.shapes == (Shape("bf16", (16, 64, 1024)),)
    assert product.operands == ("param_4", "bitcast.9")
    assert computation.operand_shapes(product) == (
        ("bf16", (16, 64, 512)),
        ("bf16", (512, 1024, 1)),
    )
    assert product.attribute("window") == "{size=1}"
    assert product.op_name == "jit(step)/jvp()/while/body/btd,dh->bth/dot_general"
    body = module.computations["wide.region_0.1_spmd.sunk"].instructions
    assert body["fusion.85"].called == ("async_collective_fusion.85",)
    assert body["fusion.85"].operands[4:] == ("get-tuple-element.611", "get-tuple-element.613")
    assert len(body["async-collective-start"].shapes) == 4
    assert body["constant.113.clone.1..sunk"].literal == "1"
    loop = module.computations[module.entry].instructions["while.42"]
    assert set(loop.called) == {"wide.region_1.2_spmd", "wide.region_0.1_spmd.sunk"}


def test_an_attribute_ends_where_its_brackets_close():
    body = parse(TPU_SCAN).computations["wide.region_0.1_spmd.sunk"].instructions
    assert (
        body["async-collective-start"].attribute("output_to_operand_aliasing") == "{{0}: (0, {})}"
    )
    assert body["all-reduce.15"].attribute("replica_groups") == "[4,2]<=[8]"
    send = parse(TPU_FOUR_SLICES).computations["main.0_spmd"].instructions["send"]
    assert send.attribute("_xla_megascale_target") == '"{1,2,3,4}x{0:3}"'
    assert send.attribute("channel_id") == "2"
    assert send.attribute("absent") is None
    assert send.ints("channel_id") == (2,)


def test_shapes_of_every_dtype_have_their_bytes():
    sizes = {
        "pred": 1,
        "bf16": 2,
        "f32": 4,
        "f8e4m3fn": 1,
        "c64": 8,
        "u8": 1,
        "s4": 0.5,
        "token": 0,
    }
    assert {dtype: Shape(dtype, (3, 4)).bytes / 12 for dtype in sizes} == sizes
    assert Shape("f32", ()).bytes == 4


def test_operands_without_percent_signs_and_with_shapes_are_read():
    text = """HloModule m
main {
  a = f32[2,3]{1,0} parameter(0)
  b = f32[3,4]{1,0} parameter(1)
  ROOT c = f32[2,4]{1,0} dot(f32[2,3]{1,0} a, f32[3,4]{1,0} b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
"""
    assert matmul_flops(parse(text)) == matmul_flops(
        parse(text.replace("f32[2,3]{1,0} a, f32[3,4]{1,0} b", "a, b"))
    )
    assert matmul_flops(parse(text)) == 2 * 2 * 3 * 4


@pytest.mark.parametrize(
    "text", ["", "no program", "HloModule m\n", "HloModule m\nENTRY %e () -> f32[] {\n  what\n}\n"]
)
def test_what_is_no_program_does_nothing(text):
    module = parse(text)
    assert matmul_flops(module) == 0
    assert unknown_loops(module) == ()


def test_a_scanned_step_counts_its_body_once_or_as_often_as_it_runs():
    program = compiled(gradient, (BATCH, DIM), (LAYERS, DIM, DIM))
    module = parse(program.as_text())
    # A layer forward is one product, backward two; the first one's input needs no gradient but the
    # body is the same.
    one = 2 * BATCH * DIM * DIM
    assert matmul_flops(module) == 3 * LAYERS * one
    assert matmul_flops(module, loops=False) == 3 * one
    assert matmul_flops(module, loops=False) == pytest.approx(
        program.cost_analysis()["flops"], rel=0.03
    )


def test_loops_in_loops_multiply():
    def program(x, w):
        step = lambda i, x: x @ w  # noqa: E731
        return jax.lax.fori_loop(0, 3, lambda i, x: jax.lax.fori_loop(2, 9, step, x) + 1, x)

    module = parse(text_of(program, (BATCH, DIM), (DIM, DIM)))
    assert matmul_flops(module) == 3 * 7 * 2 * BATCH * DIM * DIM


LOOPS = {
    "up": (lambda i: i < 11, lambda i: i + 1, 3, 8),
    "up_by_three": (lambda i: i < 11, lambda i: i + 3, 0, 4),
    "up_to_and_with": (lambda i: i <= 11, lambda i: i + 2, 1, 6),
    "down": (lambda i: i > 2, lambda i: i - 1, 9, 7),
    "down_to_and_with": (lambda i: i >= 2, lambda i: i - 4, 9, 2),
    "bound_first": (lambda i: jax.lax.gt(11, i), lambda i: 1 + i, 4, 7),
    "until": (lambda i: i != 6, lambda i: i + 2, 0, 3),
    "shifted": (lambda i: i + 1 < 6, lambda i: i + 1, 0, 5),
}


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_that_does_not_say_how_often_it_runs_is_counted_from_its_condition(name):
    condition, step, start, expected = LOOPS[name]
    program = lambda x: jax.lax.while_loop(  # noqa: E731
        lambda c: condition(c[0]), lambda c: (step(c[0]), c[1] @ c[1]), (start, x)
    )
    text = re.sub(r',?"known_trip_count":\{[^}]*\}', "", text_of(program, (16, 16)))
    module = parse(text)
    assert unknown_loops(module) == ()
    assert matmul_flops(module) == expected * 2 * 16**3


def test_a_bound_carried_through_the_loop_is_followed():
    text = """HloModule m
%body (p: (s32[], s32[])) -> (s32[], s32[]) {
  %p = (s32[], s32[]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] get-tuple-element(%p), index=1
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  ROOT %t = (s32[], s32[]) tuple(%next, %n)
}
%condition (p.1: (s32[], s32[])) -> pred[] {
  %p.1 = (s32[], s32[]) parameter(0)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  %n.1 = s32[] get-tuple-element(%p.1), index=1
  ROOT %lt = pred[] compare(%i.1, %n.1), direction=LT
}
ENTRY %main () -> (s32[], s32[]) {
  %zero = s32[] constant(0)
  %six = s32[] constant(6)
  %init = (s32[], s32[]) tuple(%zero, %six)
  ROOT %loop = (s32[], s32[]) while(%init), condition=%condition, body=%body
}
"""
    assert executions(parse(text)) == {"main": 1, "body": 6, "condition": 7}
    # One that the body changes in a way that isn't followed is not guessed at.
    changed = parse(text.replace("tuple(%next, %n)", "tuple(%next, %next)"))
    assert unknown_loops(changed) == ("loop",)
    assert executions(changed)["body"] == 1


def test_a_loop_whose_end_depends_on_data_is_named_and_taken_once():
    def program(x):
        end = jnp.int32(x[0, 0])
        return jax.lax.while_loop(lambda c: c[0] < end, lambda c: (c[0] + 1, c[1] @ c[1]), (0, x))

    module = parse(text_of(program, (16, 16)))
    assert len(unknown_loops(module)) == 1
    assert matmul_flops(module) == 2 * 16**3


def test_every_branch_of_a_conditional_counts():
    def program(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: x @ x @ x, x)

    assert matmul_flops(parse(text_of(program, (64, 64)))) == 3 * 2 * 64**3


CONVOLUTIONS = {
    "same": dict(window_strides=(1, 1), padding="SAME"),
    "strided": dict(window_strides=(2, 2), padding="SAME"),
    "dilated": dict(window_strides=(1, 1), padding="VALID", rhs_dilation=(2, 2)),
    "transposed": dict(window_strides=(1, 1), padding=((2, 2), (2, 2)), lhs_dilation=(2, 2)),
    "grouped": dict(window_strides=(1, 1), padding="SAME", feature_group_count=4),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_agree_with_the_compiler(name):
    groups = CONVOLUTIONS[name].get("feature_group_count", 1)
    program = compiled(
        lambda x, w: jax.lax.conv_general_dilated(
            x, w, dimension_numbers=("NHWC", "HWIO", "NHWC"), **CONVOLUTIONS[name]
        ),
        (2, 16, 16, 32),
        (3, 3, 32 // groups, 64),
    )
    flops = program.cost_analysis()["flops"]
    assert matmul_flops(parse(program.as_text())) == pytest.approx(flops, rel=0.02)


def test_batched_products_and_attention_agree_with_the_compiler():
    program = compiled(
        lambda q: jax.value_and_grad(lambda q: jax.nn.dot_product_attention(q, q, q).sum())(q),
        (2, 64, 4, 128),
    )
    module = parse(program.as_text())
    # Two products forward, four backward.
    assert matmul_flops(module) == 6 * 2 * 2 * 4 * 64 * 64 * 128
    assert matmul_flops(module) == pytest.approx(program.cost_analysis()["flops"], rel=0.06)


def test_a_tpu_loop_is_counted_from_its_condition_and_its_products_are_found_in_fusions():
    module = parse(TPU_SCAN)
    assert executions(module)["wide.region_0.1_spmd.sunk"] == 14
    assert executions(module)["async_collective_fusion.85"] == 14
    assert matmul_flops(module, loops=False) == 2 * 16 * 64 * 512 * 1024
    assert matmul_flops(module) == 14 * 2 * 16 * 64 * 512 * 1024


@pytest.mark.parametrize(
    ("line", "flops"),
    [
        # A product over [16, 64] rows, its gradient over both, as TPUs write them.
        (
            "c = bf16[16,64,512] convolution(%a, %b), window={size=1}, dim_labels=0bf_io0->0bf",
            2 * 16 * 64 * 1024 * 512,
        ),
        (
            "g = bf16[512,1024,1] convolution(%x, %a), window={size=16}, dim_labels=0fb_0io->bf0",
            2 * 1024 * 512 * 1024,
        ),
        # Scores of 16 examples' 12 heads: a window as long as both that slides over zeros.
        (
            "s = f32[16,12,64,64] convolution(%q, %q), window={size=16x12 stride=15x11 "
            "lhs_dilate=16x12}, "
            "dim_labels=0b1f_0o1i->01bf",
            2 * 16 * 12 * 64 * 64 * 32,
        ),
        # Query, key and value of 16 heads from one kernel: a window that slides over a single
        # element.
        (
            "q = bf16[16,64,3,16,64] convolution(%y, %w), window={size=1x3x16 pad=0_0x2_2x15_15 "
            "rhs_reversal=0x1x1}, "
            "dim_labels=0bf12_i12o0->0b12f",
            2 * 16 * 64 * 1024 * 3 * 16 * 64,
        ),
        ("m = f32[256,256] convolution(%s, %s), dim_labels=bf_io->bf", 2 * 256**3),
        ("k = f32[256,256] convolution(%s, %s), dim_labels=unheard-of", 0),
    ],
)
def test_tpu_windows_that_stand_for_products(line, flops):
    text = f"""HloModule m
ENTRY %main () -> f32[] {{
  %a = bf16[16,64,1024]{{2,1,0:T(8,128)(2,1)}} parameter(0)
  %b = bf16[1024,512,1]{{1,0,2:T(8,128)(2,1)}} parameter(1)
  %x = bf16[16,64,512]{{2,1,0:T(8,128)(2,1)}} parameter(2)
  %q = bf16[16,64,12,32]{{3,1,2,0:T(8,128)(2,1)}} parameter(3)
  %y = bf16[16,64,1024,1,1]{{2,1,0,4,3:T(8,128)(2,1)}} parameter(4)
  %w = bf16[1024,3,16,64,1]{{3,0,2,1,4:T(8,128)(2,1)}} parameter(5)
  %s = f32[256,256]{{1,0:T(8,128)}} parameter(6)
  ROOT %{line}
}}
"""
    assert matmul_flops(parse(text)) == flops


@pytest.mark.parametrize(
    ("name", "flops"),
    [
        ("custom-call.1", 2 * 2 * 512 * 2048 * 1024),
        ("dot.26", 2 * 2 * 512 * 2048 * 1024),
        ("dot_product_attention_fwd.5", 2 * 2 * 4 * 12 * 258 * 258 * 64),
        ("dot_product_attention_bwd.8", 5 * 2 * 4 * 12 * 258 * 258 * 64),
        ("cudnn-conv.2", 2 * 32 * 16 * 16 * 128 * 64 * 9),
        ("cudnn-conv-bw-filter.2", 2 * 32 * 16 * 16 * 128 * 64 * 9),
        ("cudnn-conv-bw-input.2", 2 * 32 * 16 * 16 * 128 * 64 * 9),
        ("mystery", 0),
    ],
)
def test_gpu_libraries_do_products_too(name, flops):
    assert flops_of(GPU, name) == flops


def test_a_pallas_kernel_says_its_own_operations():
    text = """HloModule m
ENTRY %main (p: bf16[8,128]) -> bf16[8,128] {
  %p = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %k = bf16[8,128]{1,0} custom-call(%p), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"body":"TUzvUgFN","cost_estimate":{"flops":"123456","transcendentals":"0"}}}
}
"""
    assert matmul_flops(parse(text)) == 123456
