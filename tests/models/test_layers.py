"""Layers outside the blocks: flax's own numbers, and gradients that are summed in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from uvit_jax.models.embeddings import conv3x3
from uvit_jax.models.layers import broadcast_like, convolve, linear, lookup
from uvit_jax.models.uvit_config import UViTConfig
from uvit_jax.parallel.sharding import path_name
from uvit_jax.training.network import abstract_network

HALF = jnp.bfloat16
CONFIG = UViTConfig(
    image_size=16,
    patch_size=2,
    in_channels=4,
    embed_dim=32,
    depth=3,
    num_heads=2,
    num_classes=11,
    dtype="bfloat16",
)


def layers(dtype):
    rngs = nnx.Rngs(0)
    return {
        "linear": (
            nnx.Linear(5, 7, dtype=dtype, bias_init=nnx.initializers.normal(), rngs=rngs),
            linear,
            (6, 4, 5),
        ),
        "conv": (conv3x3(3, 4, dtype=dtype, rngs=rngs), convolve, (2, 8, 6, 3)),
        "strided": (conv3x3(3, 4, strides=2, dtype=dtype, rngs=rngs), convolve, (2, 8, 6, 3)),
    }


@pytest.mark.parametrize("dtype", [jnp.float32, HALF])
@pytest.mark.parametrize("name", ["linear", "conv", "strided"])
def test_a_layer_gives_what_flax_gives_and_in_float32_its_gradients(name, dtype):
    layer, ours, shape = layers(dtype)[name]
    x = jax.random.normal(jax.random.key(1), shape)
    graphdef, state = nnx.split(layer)
    theirs, wanted = jax.vjp(lambda state, x: nnx.merge(graphdef, state)(x), state, x)
    found, gradients = jax.vjp(lambda state, x: ours(nnx.merge(graphdef, state), x), state, x)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, theirs)
    if dtype == jnp.float32:
        dy = jax.random.normal(jax.random.key(2), found.shape)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
            gradients(dy),
            wanted(dy),
        )


@pytest.mark.parametrize(
    ("row", "shape"),
    [
        ((8,), (512, 8)),
        ((3, 8), (200, 3, 8)),
        ((4, 1, 8), (4, 300, 8)),
        ((3, 1, 1, 8), (3, 9, 40, 8)),
    ],
)
def test_what_is_spread_over_many_rows_has_the_sum_of_their_gradients(row, shape):
    value, dy = (
        jax.random.normal(jax.random.key(0), row),
        jax.random.normal(jax.random.key(1), shape).astype(HALF),
    )
    y, gradient = jax.vjp(lambda row: broadcast_like(row, dy), value)
    np.testing.assert_array_equal(y, jnp.broadcast_to(value.astype(HALF), shape))
    aligned = (1,) * (len(shape) - len(row)) + row
    axes = tuple(i for i in range(len(shape)) if aligned[i] == 1)
    exact = np.asarray(dy, np.float64).sum(axes, keepdims=True).reshape(row)
    np.testing.assert_allclose(gradient(dy)[0], exact, rtol=1e-5, atol=1e-4)


def test_a_row_that_is_looked_up_often_has_the_sum_of_its_gradients():
    table = nnx.Embed(10, 8, dtype=HALF, rngs=nnx.Rngs(0))
    ids = jnp.where(jnp.arange(900) % 2, 9, jnp.arange(900) % 9)
    dy = jax.random.normal(jax.random.key(1), (900, 8)).astype(HALF)
    graphdef, state = nnx.split(table)
    rows, gradient = jax.vjp(lambda state: lookup(nnx.merge(graphdef, state), ids, HALF), state)
    np.testing.assert_array_equal(rows, table(ids))
    exact = np.stack([np.asarray(dy, np.float64)[np.asarray(ids) == i].sum(0) for i in range(10)])
    np.testing.assert_allclose(gradient(dy)[0]["embedding"][...], exact, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"time": "adaln", "patch_embed": "conv_stack", "qkv_bias": True},
    ],
)
def test_no_gradient_of_a_large_batch_is_summed_in_bfloat16(changes):
    config = UViTConfig(**{**vars(CONFIG), **changes})
    _, network, init = abstract_network(config)
    params = jax.jit(init)(jax.random.key(0))
    keys, b = jax.random.split(jax.random.key(1), 3), 128
    x, target = (jax.random.normal(key, (b, *config.sample_shape)) for key in keys[:2])
    t, label = (
        999 * jax.random.uniform(keys[2], (b,)),
        jnp.where(jnp.arange(b) % 2, 10, jnp.arange(b) % 10),
    )

    @jax.jit
    def gradients(*batch):
        loss = lambda params, x, t, label, target: jnp.mean(  # noqa: E731
            jnp.square(network(params, x, t, label) - target)
        )
        return jax.grad(loss)(params, *batch)

    parts = [
        gradients(*(array[i : i + 4] for array in (x, t, label, target))) for i in range(0, b, 4)
    ]
    exact = jax.tree.map(
        lambda *each: np.mean([np.asarray(g, np.float64) for g in each], 0), *parts
    )
    found = gradients(x, t, label, target)
    errors = jax.tree.map(
        lambda g, e: np.linalg.norm(np.asarray(g, np.float64) - e) / np.linalg.norm(e), found, exact
    )
    # Not the kernels', which products sum as they do.
    sums = {path_name(path): error for path, error in jax.tree_util.tree_leaves_with_path(errors)}
    worst = max((error, name) for name, error in sums.items() if not name.endswith("kernel"))
    assert worst[0] < 0.01, worst


def test_an_id_outside_the_table_is_not_a_number_instead_of_another_row():
    table = nnx.Embed(3, 2, rngs=nnx.Rngs(0))
    rows = jax.jit(lambda ids: lookup(table, ids, jnp.float32))(jnp.array([-1, 0, 2, 3]))
    assert np.isnan(rows).all(1).tolist() == [True, False, False, True]
    np.testing.assert_array_equal(rows[1:3], table.embedding[...][jnp.array([0, 2])])
