import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.ad_checkpoint import checkpoint_policies
from jax.extend.core import Literal

from tests.training.mesh_runs import batches, compile_step
from uvit_jax.compiled.hlo import instruction_flops, matmul_flops, parse
from uvit_jax.compiled.topology import parse_topology, topology_devices
from uvit_jax.models.attention import Attention
from uvit_jax.models.flops import forward_flops
from uvit_jax.models.kernels import fused_attention
from uvit_jax.models.kernels.attention import (
    mosaic_attention,
    packed_attention,
    resolve,
    why_not_mosaic,
)
from uvit_jax.models.kernels.compute import Compute
from uvit_jax.models.uvit_config import UViTConfig
from uvit_jax.parallel.mesh import MeshConfig, make_mesh

# The paper's models; beside them few tokens, one tile and one token more than a tile.
SHAPES = [(258, 72), (257, 64), (334, 64), (17, 72), (128, 64), (129, 8)]


def random_planes(tokens, head_dim, dtype=jnp.float32, batch=2, heads=3):
    rng = np.random.default_rng(tokens + head_dim)
    planes = rng.standard_normal((3, batch, tokens, heads * head_dim), np.float32)
    d_out = rng.standard_normal((batch, tokens, heads * head_dim), np.float32)
    return jnp.asarray(planes, dtype), jnp.asarray(d_out, dtype)


def exact(planes, head_dim):
    _, b, t, c = planes.shape
    query, key, value = planes.astype(jnp.float32).reshape(3, b, t, -1, head_dim)
    logits = jnp.einsum("bqhk,bshk->bhqs", query, key) / head_dim**0.5
    return jnp.einsum("bhqs,bshk->bqhk", jax.nn.softmax(logits), value).reshape(b, t, c)


def xla(planes, head_dim):
    _, b, t, c = planes.shape
    qkv = jnp.moveaxis(planes.reshape(3, b, t, -1, head_dim), 0, 2)
    return packed_attention(qkv, implementation="xla").reshape(b, t, c)


def kernel(planes, head_dim):
    return mosaic_attention(planes, head_dim, True)


@functools.partial(jax.jit, static_argnums=(0, 3))
def value_and_grads(attend, planes, d_out, head_dim):
    out, vjp = jax.vjp(lambda planes: attend(planes, head_dim), planes)
    (d_planes,) = vjp(d_out.astype(out.dtype))
    return out, *d_planes


def errors(attend, planes, d_out, head_dim):
    found = value_and_grads(attend, planes, d_out, head_dim)
    expected = value_and_grads(
        exact, planes.astype(jnp.float32), d_out.astype(jnp.float32), head_dim
    )
    return [
        float(jnp.linalg.norm(a.astype(jnp.float32) - b) / jnp.linalg.norm(b))
        for a, b in zip(found, expected, strict=True)
    ]


@pytest.mark.parametrize(("tokens", "head_dim"), SHAPES)
def test_kernel_and_its_gradient_are_exact_in_float32(tokens, head_dim):
    assert max(errors(kernel, *random_planes(tokens, head_dim), head_dim)) < 2e-6


@pytest.mark.parametrize(("tokens", "head_dim"), SHAPES)
def test_kernel_is_as_close_as_xla_in_bfloat16(tokens, head_dim):
    given = random_planes(tokens, head_dim, jnp.bfloat16)
    for found, twin in zip(
        errors(kernel, *given, head_dim), errors(xla, *given, head_dim), strict=True
    ):
        assert found < 1.5 * twin < 0.02


def test_large_logits_neither_overflow_nor_lose_their_tail():
    planes, _ = random_planes(70, 72)
    planes = planes * jnp.asarray([12.0, 12.0, 1.0])[:, None, None, None]
    assert jnp.allclose(kernel(planes, 72), exact(planes, 72), atol=1e-4)


def test_channels_that_are_not_a_whole_number_of_heads_are_refused():
    planes, _ = random_planes(16, 8)
    with pytest.raises(AssertionError, match="24 channels are not a whole number of heads of 16"):
        kernel(planes, 16)


def test_keeping_planes_and_result_leaves_the_backward_pass_no_use_for_the_forward_kernel():
    planes, _ = random_planes(16, 8)

    def uses(policy):
        def loss(planes):
            planes = jax.ad_checkpoint.checkpoint_name(planes, "planes")
            return jnp.sum(jax.ad_checkpoint.checkpoint_name(kernel(planes, 8), "attention") ** 2)

        jaxpr = jax.make_jaxpr(jax.grad(jax.checkpoint(loss, policy=policy)))(planes)
        (again,) = (eqn.params["jaxpr"] for eqn in jaxpr.eqns if eqn.primitive.name == "remat2")
        calls = [eqn for eqn in again.eqns if eqn.primitive.name == "pallas_call"]
        forward = [
            x for eqn in calls if "attention_forward" in str(eqn.params) for x in eqn.outvars
        ]
        return any(
            x in forward for eqn in again.eqns for x in eqn.invars if not isinstance(x, Literal)
        )

    assert not uses(checkpoint_policies.save_only_these_names("planes", "attention"))
    assert uses(checkpoint_policies.nothing_saveable)


@pytest.mark.parametrize("qkv_bias", [False, True])
def test_attention_by_planes_and_its_gradients_are_those_of_the_packed_form(qkv_bias, monkeypatch):
    layer = Attention(48, 3, qkv_bias=qkv_bias, dtype=jnp.float32, rngs=nnx.Rngs(params=0))
    if qkv_bias:
        layer.qkv.bias[...] = jax.random.normal(jax.random.key(1), layer.qkv.bias.shape)
    graphdef, params = nnx.split(layer)
    x = jax.random.normal(jax.random.key(2), (2, 19, 48))

    def loss(params, x):
        product, bias = fused_attention.attention(
            Compute(attention="mosaic"), nnx.merge(graphdef, params), x
        )
        return jnp.sum((product + bias) ** 2)

    def value_and_grads():
        return jax.value_and_grad(loss, (0, 1))(params, x)

    expected = value_and_grads()  # there is no TPU: the packed form runs
    monkeypatch.setattr(fused_attention, "resolve", lambda *_: "mosaic")
    monkeypatch.setattr(
        fused_attention, "mosaic_attention", functools.partial(mosaic_attention, interpret=True)
    )
    for found, twin in zip(
        jax.tree.leaves(value_and_grads()), jax.tree.leaves(expected), strict=True
    ):
        assert jnp.allclose(found, twin, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "dtype", "platform", "word"),
    [
        ((2, 258, 3, 16, 72), jnp.bfloat16, "tpu", None),
        ((2, 257, 3, 8, 64), jnp.bfloat16, "tpu", None),
        ((2, 334, 3, 8, 64), jnp.bfloat16, "tpu", None),
        ((2, 512, 3, 8, 64), jnp.bfloat16, "tpu", None),
        ((2, 258, 3, 16, 72), jnp.float32, "tpu", "float32"),
        ((2, 258, 3, 16, 72), jnp.bfloat16, "cpu", "cpu"),
        ((2, 513, 3, 8, 64), jnp.bfloat16, "tpu", "513"),
        ((2, 258, 3, 16, 36), jnp.bfloat16, "tpu", "36"),
        ((2, 258, 3, 8, 144), jnp.bfloat16, "tpu", "144"),
        ((2, 512, 3, 16, 72), jnp.bfloat16, "tpu", "512 tokens with 16 heads of 72"),
    ],
)
def test_mosaic_is_taken_where_it_fits_and_says_why_where_not(shape, dtype, platform, word, caplog):
    reason = why_not_mosaic(shape, dtype, platform)
    assert (reason is None) if word is None else (word in reason)
    expected = "mosaic" if word is None else "xla"
    with caplog.at_level(logging.WARNING, "uvit_jax"):
        assert resolve("auto", shape, dtype, platform) == expected
        assert not caplog.records
        assert resolve("mosaic", shape, dtype, platform) == expected
        assert resolve("triton", shape, dtype, platform) == expected
    assert resolve("xla", shape, dtype, platform) == "xla"


def test_on_a_gpu_the_name_of_tpus_kernel_stands_for_the_best_one_there(caplog):
    with caplog.at_level(logging.WARNING, "uvit_jax"):
        for _ in range(2):
            assert resolve("mosaic", (2, 4097, 3, 16, 72), jnp.bfloat16, "gpu") == "cudnn"
    assert [record.getMessage() for record in caplog.records] == [
        "attention = mosaic falls back to cudnn: the Mosaic kernel runs on platform tpu, not gpu"
    ]


def kernel_flops(module):
    """What each kernel of a program says that it computes, in ascending order."""
    found = (
        (computation, x)
        for computation, x in module.instructions()
        if '"tpu_custom_call"' in x.attributes
    )
    return sorted(instruction_flops(computation, x) for computation, x in found)


def arrays_of_pairs(module, tokens):
    """Arrays with two dimensions of all tokens, or of those padded to a tile."""
    shapes = {shape for _, instruction in module.instructions() for shape in instruction.shapes}
    return [
        shape for shape in shapes if sum(tokens <= size < tokens + 128 for size in shape.dims) > 1
    ]


@pytest.mark.tpu
@pytest.mark.parametrize("name", ["v5e:1x1", "v4:2x2x1"])
def test_the_largest_models_kernels_compile_for_tpus_that_are_not_there(name):
    pytest.importorskip("libtpu")
    device = topology_devices(parse_topology(name))[0]
    sharding = jax.sharding.SingleDeviceSharding(device)
    b, t, heads, head_dim = 4, 258, 16, 72

    def gradient(planes, d_out):
        out, vjp = jax.vjp(lambda planes: mosaic_attention(planes, head_dim), planes)
        return out, vjp(d_out)

    shapes = [(3, b, t, heads * head_dim), (b, t, heads * head_dim)]
    arguments = [jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding) for shape in shapes]
    module = parse(jax.jit(gradient).lower(*arguments).compile().as_text())
    product = 2 * b * heads * t**2 * head_dim
    assert kernel_flops(module) == [2 * product, 5 * product]
    assert not arrays_of_pairs(module, t)


@pytest.mark.tpu
def test_a_train_step_with_tensor_parallelism_keeps_all_pairs_of_tokens_off_the_memory():
    pytest.importorskip("libtpu")
    config = UViTConfig(
        image_size=32,
        embed_dim=256,
        num_heads=4,
        depth=3,
        num_classes=11,
        dtype="bfloat16",
        remat="matmuls",
    )
    mesh = make_mesh(MeshConfig(data=2, tensor=2), topology_devices(parse_topology("v5e:2x2")))
    example = batches(config)[0]
    step, _ = compile_step(config, mesh, example)
    module = parse(step.as_text())
    assert (
        len(kernel_flops(module)) == 2 * config.depth
    )  # nothing runs a second time for the backward pass
    assert not arrays_of_pairs(module, config.num_tokens)
    # Preflight counts what the kernels say of themselves.
    model_flops = 3 * forward_flops(config) * len(example["x"])
    assert matmul_flops(module) == pytest.approx(model_flops / mesh.size, rel=0.1)
