import functools
import logging

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_policies
from jax.extend.core import Literal

from uvit_jax.models.kernels import backends, norm
from uvit_jax.models.kernels.attention import (
    packed_attention,
    resolve,
    triton_attention,
    why_not_triton,
)
from uvit_jax.models.kernels.attention_triton import Tiling, Tuning
from uvit_jax.models.kernels.triton_blocks import channels, cut

# The paper's models; beside them one odd and one small shape.
LARGE = [
    pytest.param(*shape, marks=pytest.mark.slow) for shape in [(258, 72), (257, 64), (334, 64)]
]
ODD, SMALL = (70, 96), (16, 8)
SMALL_TAIL = Tuning(*[Tiling(row_tail=16)] * 3)
NARROW = Tuning(*[Tiling(rows=32, columns=16)] * 3)
WIDE = Tuning(*[Tiling(rows=128, columns=128, row_tail=128)] * 3)


def random_qkv(tokens, head_dim, dtype=jnp.float32, batch=2, heads=3):
    rng = np.random.default_rng(tokens + head_dim)
    qkv = rng.standard_normal((batch, tokens, 3, heads, head_dim), np.float32)
    d_out = rng.standard_normal((batch, tokens, heads, head_dim), np.float32)
    return jnp.asarray(qkv, dtype), jnp.asarray(d_out, dtype)


def exact(qkv):
    query, key, value = jnp.moveaxis(qkv.astype(jnp.float32), 2, 0)
    logits = jnp.einsum("bqhk,bshk->bhqs", query, key) / qkv.shape[-1] ** 0.5
    return jnp.einsum("bhqs,bshk->bqhk", jax.nn.softmax(logits), value)


# Interpreted kernels take long to compile and no time to run.
@functools.partial(
    jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0}
)
def value_and_grads(attend, qkv, d_out):
    out, vjp = jax.vjp(attend, qkv)
    (d_qkv,) = vjp(d_out.astype(out.dtype))
    return out, d_qkv[:, :, 0], d_qkv[:, :, 1], d_qkv[:, :, 2]


def errors(attend, qkv, d_out):
    found = value_and_grads(attend, qkv, d_out)
    expected = value_and_grads(exact, qkv.astype(jnp.float32), d_out.astype(jnp.float32))
    return [
        float(jnp.linalg.norm(a.astype(jnp.float32) - b) / jnp.linalg.norm(b))
        for a, b in zip(found, expected, strict=True)
    ]


def kernel(tuning):
    return lambda qkv: triton_attention(qkv, tuning, True)


def xla(qkv):
    return packed_attention(qkv, implementation="xla")


@pytest.mark.parametrize(
    ("tokens", "head_dim"), [ODD, pytest.param(*SMALL, marks=pytest.mark.slow), *LARGE]
)
def test_kernel_and_its_gradient_are_exact_in_float32(tokens, head_dim):
    qkv, d_out = random_qkv(tokens, head_dim)
    assert max(errors(kernel(Tuning()), qkv, d_out)) < 2e-6


@pytest.mark.parametrize(
    ("tokens", "head_dim"), [SMALL, pytest.param(*ODD, marks=pytest.mark.slow), *LARGE]
)
def test_kernel_is_as_close_as_xla_in_bfloat16(tokens, head_dim):
    qkv, d_out = random_qkv(tokens, head_dim, jnp.bfloat16)
    for found, twin in zip(
        errors(kernel(Tuning()), qkv, d_out), errors(xla, qkv, d_out), strict=True
    ):
        assert found < 1.5 * twin


@pytest.mark.parametrize(
    "tuning", [SMALL_TAIL, *(pytest.param(x, marks=pytest.mark.slow) for x in (NARROW, WIDE))]
)
def test_tuning_changes_no_result(tuning):
    qkv, d_out = random_qkv(66, 72)
    assert max(errors(kernel(tuning), qkv, d_out)) < 2e-6


def test_large_logits_neither_overflow_nor_lose_their_tail():
    qkv, _ = random_qkv(70, 72)
    qkv = qkv * jnp.asarray([12.0, 12.0, 1.0])[:, None, None]
    assert jnp.allclose(kernel(Tuning())(qkv), exact(qkv), atol=1e-4)


def test_saving_attention_by_name_leaves_the_backward_pass_no_use_for_the_forward_kernel():
    qkv, _ = random_qkv(16, 8)

    def uses(policy):
        attend = jax.checkpoint(kernel(Tuning()), policy=policy)
        jaxpr = jax.make_jaxpr(jax.grad(lambda qkv: jnp.sum(attend(qkv) ** 2)))(qkv)
        (again,) = (eqn.params["jaxpr"] for eqn in jaxpr.eqns if eqn.primitive.name == "remat2")
        # A call that nothing uses may be there, or be left out already.
        forward = [
            x for eqn in again.eqns if eqn.params.get("name") == "forward" for x in eqn.outvars
        ]
        return any(
            x in forward for eqn in again.eqns for x in eqn.invars if not isinstance(x, Literal)
        )

    assert not uses(checkpoint_policies.save_only_these_names("attention"))
    assert uses(checkpoint_policies.nothing_saveable)


def test_lowers_for_a_gpu_without_copies_around_the_kernels():
    qkv, d_out = random_qkv(258, 72, jnp.bfloat16)

    def gradient(qkv, d_out):
        return jax.vjp(lambda x: packed_attention(x, implementation="triton"), qkv)[1](d_out)[0]

    # Pads, slices, transposes and concatenations would show beside the three kernels.
    try:
        text = jax.jit(gradient).trace(qkv, d_out).lower(lowering_platforms=("cuda",)).as_text()
    except RuntimeError as missing:
        pytest.skip(f"from jax 0.11 on, lowering for a GPU wants one: {missing}")
    operations = [
        line.split("= ")[1].split("(")[0].split()[0]
        for line in text.splitlines()
        if " = stablehlo" in line
    ]
    assert set(operations) == {"stablehlo.custom_call"}
    assert len(operations) == 3


def test_twin_is_exact():
    qkv, d_out = random_qkv(257, 64)
    assert max(errors(xla, qkv, d_out)) < 2e-6


@pytest.mark.parametrize(
    ("length", "size", "smallest", "expected"),
    [
        (258, 64, 16, (4, [(256, 16, 2)])),
        (258, 64, 64, (4, [(256, 64, 2)])),
        (334, 128, 16, (2, [(256, 64, 64), (320, 16, 14)])),
        (320, 64, 16, (5, [])),
        (72, 128, 16, (0, [(0, 64, 64), (64, 16, 8)])),
        (8, 128, 16, (0, [(0, 16, 8)])),
        (120, 128, 16, (0, [(0, 128, 120)])),
        (64, 128, 16, (0, [(0, 64, 64)])),
    ],
)
def test_cut_holds_everything_once_with_little_to_spare(length, size, smallest, expected):
    whole, tail = cut(length, size, smallest)
    assert (whole, [(block.start, block.size, block.valid) for block in tail]) == expected


def test_channels_of_a_head_are_powers_of_two():
    for head_dim in range(8, 136, 8):
        blocks = channels(head_dim)
        assert sum(block.valid for block in blocks) == head_dim
        assert all(block.size & (block.size - 1) == 0 for block in blocks)


@pytest.mark.parametrize(
    ("shape", "dtype", "platform", "expected", "word"),
    [
        ((2, 258, 3, 16, 72), jnp.bfloat16, "gpu", "triton", None),
        ((2, 257, 3, 8, 64), jnp.float16, "gpu", "triton", None),
        ((2, 258, 3, 16, 72), jnp.float32, "gpu", "xla", "float32"),
        ((2, 4096, 3, 16, 72), jnp.bfloat16, "tpu", "xla", "tpu"),
        ((2, 4096, 3, 16, 72), jnp.bfloat16, "gpu", "cudnn", "4096"),
        ((2, 258, 3, 16, 36), jnp.bfloat16, "gpu", "xla", "36"),
        ((2, 258, 3, 16, 256), jnp.bfloat16, "gpu", "xla", "256"),
    ],
)
def test_triton_is_taken_where_it_fits_and_says_why_where_not(
    shape, dtype, platform, expected, word, caplog
):
    reason = why_not_triton(shape, dtype, platform)
    assert (reason is None) if word is None else (word in reason)
    with caplog.at_level(logging.WARNING, "uvit_jax"):
        assert resolve("auto", shape, dtype, platform) == expected
        assert not caplog.records
        assert resolve("triton", shape, dtype, platform) == expected
    assert resolve("xla", shape, dtype, platform) == "xla"
    # What jax would refuse (`_src/cudnn/fused_attention_stablehlo.py`) goes to nobody's crash.
    half, fits = jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16), shape[-1] in (64, 72)
    assert resolve("cudnn", shape, dtype, platform) == (
        "cudnn" if half and fits and platform == "gpu" else expected
    )


def test_a_fall_back_is_said_once(caplog):
    with caplog.at_level(logging.WARNING, "uvit_jax"):
        for _ in range(2):
            resolve("triton", (2, 258, 3, 16, 44), jnp.bfloat16, "gpu")
    assert [record.getMessage() for record in caplog.records] == [
        "attention = triton falls back to xla: the Triton kernel takes a head_dim that is a "
        "multiple of 8 up to 128, not 44"
    ]


def test_without_pallas_triton_backend_other_kernels_run(monkeypatch):
    monkeypatch.setattr(backends, "triton", None)
    assert resolve("auto", (2, 258, 3, 16, 72), jnp.bfloat16, "gpu") == "cudnn"
    assert norm.resolve(jnp.bfloat16, 1152, "gpu") == "xla"


def test_a_first_block_of_logits_that_are_all_minus_infinity_leaves_the_others():
    qkv, _ = random_qkv(70, 8)
    qkv = (
        qkv.at[:, :, 0]
        .set(jnp.abs(qkv[:, :, 0]) + 1)
        .at[:, :64, 1]
        .set(-3e38)
        .at[:, :, 0]
        .multiply(4)
    )
    found = jax.jit(kernel(Tuning()))(qkv)
    np.testing.assert_allclose(found, exact(qkv), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("heads", "expected"), [(66 * 4, "hopper"), (None, "triton")])
def test_a_batch_that_is_not_known_yet_counts_as_a_small_one(monkeypatch, heads, expected):
    monkeypatch.setattr(backends, "mosaic_gpu", object())
    monkeypatch.setattr(backends, "on_hopper", lambda: True)
    batch = jax.export.symbolic_shape("b")[0] if heads is None else heads // 4
    assert resolve("auto", (batch, 258, 3, 4, 72), jnp.bfloat16, "gpu") == expected
    assert resolve("auto", (batch, 258, 3, 4, 72), jnp.bfloat16, "cpu") == "xla"
