"""Forward mode over reverse mode, and programs of the network for any batch, on the plain path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export

from tests.models.tiny_uvit import FAST_COMPILE, LABEL_TOKEN, LABELS, TEXT_TOKENS, tiny_model
from uvit_jax.diffusion.sampler import Sampler
from uvit_jax.diffusion.sampler_config import SamplerConfig
from uvit_jax.diffusion.schedules import VPLinear

PLAIN = {"kernels": "xla", "attention": "xla"}
SLOW = [
    {"remat": "full"},
    LABELS | {"time": "adaln", "skip": "none", "dtype": "bfloat16", "scan_blocks": True},
    {"dtype": "fp8", "depth": 1},
    {"skip": "linear_then_add", "qkv_bias": True, "time_mlp": True, "conv": "before"},
    {"skip": "add_then_linear"},
]


def difference(found, expected):
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return sum(float(jnp.vdot(a - b, a - b)) for a, b in pairs) ** 0.5


@pytest.mark.parametrize(
    "fields",
    [
        LABELS | {"depth": 1},
        {"depth": 3, "remat": "matmuls", "scan_blocks": True, "skip": "add"},
        *(pytest.param({"depth": 3} | fields, marks=pytest.mark.slow) for fields in SLOW),
    ],
    ids=str,
)
def test_the_gradient_has_a_forward_mode(fields):
    tiny = tiny_model(**PLAIN | fields)
    model = nnx.merge(tiny.graphdef, tiny.params)
    network = lambda x, t: model(x, t, **tiny.condition)  # noqa: E731
    gradient = jax.grad(lambda x, t: jnp.sum(network(x, t) ** 2), argnums=(0, 1))
    at = jnp.asarray(tiny.x), jnp.asarray(tiny.t)
    along = jax.random.normal(jax.random.key(0), at[0].shape), jnp.ones(2)

    def both(at, along):
        near = lambda e: gradient(*jax.tree.map(lambda a, b: a + e * b, at, along))  # noqa: E731
        sides = jax.lax.map(near, jnp.asarray([1e-2, -1e-2]))
        return jax.jvp(gradient, at, along)[1], jax.tree.map(lambda a: (a[0] - a[1]) / 2e-2, sides)

    tangent, expected = jax.jit(both, compiler_options=FAST_COMPILE)(at, along)
    size = difference(expected, jax.tree.map(jnp.zeros_like, expected))
    assert size > 0
    # Finite differences of half precision are of rounding.
    assert difference(tangent, expected) < (0.01 if tiny.config.dtype == "float32" else 1) * size


def test_the_forward_pass_has_a_forward_mode_which_is_its_gradients():
    tiny = tiny_model(**PLAIN | {"depth": 1})
    along = jax.tree.map(jnp.ones_like, tiny.params)
    _, tangent = jax.jit(
        lambda p, v: jax.jvp(tiny.loss, (p,), (v,)), compiler_options=FAST_COMPILE
    )(tiny.params, along)
    gradient = jax.jit(jax.grad(tiny.loss), compiler_options=FAST_COMPILE)(tiny.params)
    total = sum(float(leaf.sum()) for leaf in jax.tree.leaves(gradient))
    assert float(tangent) == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize(
    "fields",
    [
        LABEL_TOKEN | {"depth": 1},
        TEXT_TOKENS | {"depth": 3, "remat": "full", "scan_blocks": True, "conv": "none"},
        *(
            pytest.param(fields, marks=pytest.mark.slow)
            for fields in (
                LABELS | {"time": "adaln", "conv": "before", "skip": "add"},
                {
                    "patch_embed": "conv_stack",
                    "patch_size": 4,
                    "image_size": 16,
                    "dtype": "bfloat16",
                },
                {"dtype": "fp8", "depth": 1, "pos_embed": "sincos_2d"},
                {"kernels": "triton", "attention": "cudnn", "time_mlp": True},
            )
        ),
    ],
    ids=str,
)
def test_one_exported_program_serves_every_batch(fields):
    tiny = tiny_model(**fields)
    (b,) = export.symbolic_shape("b")
    name, *_ = *tiny.condition, None
    rows = [tiny.x, tiny.t, *tiny.condition.values()]

    def network(params, x, t, *condition):
        given = {name: condition[0]} if name else {}
        return nnx.merge(tiny.graphdef, params)(x, t, **given)

    shapes = [jax.ShapeDtypeStruct((b, *array.shape[1:]), array.dtype) for array in rows]
    program = export.export(jax.jit(network))(tiny.shapes, *shapes)
    for batch in (1, 2):
        given = [array[:batch] for array in rows]
        expected = jax.jit(network)(tiny.params, *given)
        np.testing.assert_allclose(program.call(tiny.params, *given), expected, rtol=0, atol=1e-5)


def test_the_samplers_call_is_exported_for_every_batch():
    tiny = tiny_model(depth=1)
    network = lambda params, x, t, _: nnx.merge(tiny.graphdef, params)(x, t)  # noqa: E731
    sampler = Sampler(network, VPLinear(), tiny.config.sample_shape, config=SamplerConfig(steps=2))
    indices = jax.ShapeDtypeStruct(export.symbolic_shape("b"), jnp.int32)
    program = export.export(jax.jit(lambda p, i: sampler(p, seed=3, indices=i)))(
        tiny.shapes, indices
    )
    expected = sampler(tiny.params, seed=3, indices=jnp.arange(3))
    for batch in (2, 3):
        found = program.call(tiny.params, jnp.arange(batch))
        np.testing.assert_allclose(
            found, expected[:batch], rtol=0, atol=1e-5 * np.abs(expected).max()
        )


def test_a_batch_of_none_gives_none():
    for fields in ({"depth": 1}, {"depth": 1, "dtype": "fp8", "patch_embed": "conv_stack"}):
        tiny = tiny_model(**fields)
        none = jax.jit(nnx.merge(tiny.graphdef, tiny.params))(tiny.x[:0], tiny.t[:0])
        assert none.shape == (0, *tiny.config.sample_shape)
