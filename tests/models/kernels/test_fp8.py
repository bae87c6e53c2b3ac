import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvit_jax.models.kernels.products import fp8_product, quantize
from uvit_jax.models.uvit import UViTConfig
from uvit_jax.training.network import abstract_network

TINY = UViTConfig(image_size=8, embed_dim=64, depth=3, num_heads=2, num_classes=5, dtype="fp8")


def arrays(scale_x=1.0, scale_w=1.0, dtype=jnp.bfloat16):
    keys = jax.random.split(jax.random.key(0), 3)
    x, w, dy = (jax.random.normal(key, shape) for key, shape in zip(keys, SHAPES, strict=True))
    return (scale_x * x).astype(dtype), scale_w * w, dy.astype(dtype)


SHAPES = ((2, 33, 128), (128, 48), (2, 33, 48))


def error(found, expected):
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("scales", [(1.0, 1.0), (1e-4, 0.02), (300.0, 1e-3), (1e4, 1e4)])
def test_product_is_as_close_as_three_bits_of_mantissa_allow_at_any_scale(scales):
    x, w, _ = arrays(*scales)
    exact = np.asarray(x, np.float64) @ np.asarray(w, np.float64)
    # Each factor is off by at most 2^-4, evenly: 2^-4 / sqrt(3) of it, times a little for the
    # spread within a binade.
    assert 0.01 < error(fp8_product(x, w), exact) < 0.05


def test_product_is_that_of_the_rounded_factors():
    x, w, _ = arrays()
    rounded = [
        bits.astype(jnp.float32) * inverse
        for bits, inverse in (
            quantize(x, 4 * jnp.abs(x[:, ::16]).max()),
            quantize(w, jnp.abs(w).max()),
        )
    ]
    assert error(fp8_product(x, w), rounded[0] @ rounded[1]) < 4e-3


def test_gradients_are_those_of_the_bfloat16_product():
    x, w, dy = arrays()
    found = jax.vjp(fp8_product, x, w)[1](dy)
    expected = jax.vjp(lambda x, w: x @ w.astype(x.dtype), x, w)[1](dy)
    assert [g.dtype for g in found] == [jnp.bfloat16, jnp.float32]
    for a, b in zip(found, expected, strict=True):
        assert error(a, b) < 0.015  # in 8 bits it would be twice that


def test_outliers_are_cut_and_zeros_stay_zeros():
    x, w, _ = arrays()
    outlier = x.at[0, 5, 7].set(1e6)  # on no 16th token
    assert jnp.isfinite(fp8_product(outlier, w)).all()
    np.testing.assert_array_equal(fp8_product(outlier, w)[1], fp8_product(x, w)[1])
    assert (fp8_product(jnp.zeros_like(x), w) == 0).all()
    assert (fp8_product(x, jnp.zeros_like(w)) == 0).all()


@pytest.mark.parametrize(("place", "special"), [(0, 2), (1, 2), (5, 7)])
def test_a_special_token_sixteen_times_larger_is_as_close_as_the_others(place, special):
    x, w, _ = arrays()
    x = x.at[:, place].multiply(16)
    found, exact = fp8_product(x, w, special), np.asarray(x, np.float64) @ np.asarray(w, np.float64)
    others = np.arange(x.shape[1]) != place
    assert error(found[:, place], exact[:, place]) < 0.05
    assert error(found[:, others], exact[:, others]) < 0.05


def test_infinity_and_nan_stay_in_their_rows():
    x, w, _ = arrays()
    bad = x.at[0, 0, 3].set(jnp.nan).at[0, 7, 1].set(jnp.inf).at[1, 16, 2].set(-jnp.inf)
    found, expected = (
        np.asarray(fp8_product(bad, w), np.float32),
        np.asarray(fp8_product(x, w), np.float32),
    )
    rows = np.zeros(x.shape[:2], bool)
    rows[[0, 0, 1], [0, 7, 16]] = True
    assert np.isnan(found[rows]).all()
    assert error(found[~rows], expected[~rows]) < 0.05


def test_the_smallest_and_largest_numbers_have_a_scale():
    for largest in (2e-38, 3e38):
        bits, inverse = quantize(jnp.asarray([largest, 0.0, -largest]), jnp.asarray(largest))
        np.testing.assert_allclose(
            bits.astype(jnp.float32) * inverse, [largest, 0, -largest], rtol=0.07
        )


def test_product_has_a_forward_mode_of_its_gradient():
    x, w, dy = arrays()
    gradient = lambda x, w: jax.vjp(fp8_product, x, w)[1](dy)  # noqa: E731
    tangent = jax.jvp(gradient, (x, w), (jnp.zeros_like(x), jnp.ones_like(w)))[1][0]
    assert (
        error(tangent, jnp.broadcast_to(dy.astype(jnp.float32).sum(-1, keepdims=True), x.shape))
        < 0.05
    )


def test_scales_are_powers_of_two_that_use_the_range():
    for largest in (1e-6, 0.7, 1.0, 448.0, 449.0, 3e5):
        bits, inverse = quantize(jnp.asarray([largest, -largest]), jnp.asarray(largest))
        assert np.log2(float(inverse)) == round(np.log2(float(inverse)))
        assert 224 <= float(bits[0]) <= 448


@functools.cache
def network_of(config):
    _, network, init = abstract_network(config)
    return jax.jit(network), jax.jit(init)(jax.random.key(1))


@pytest.mark.parametrize(
    "skip",
    [
        "concat",
        *(pytest.param(x, marks=pytest.mark.slow) for x in ("add_then_linear", "linear_then_add")),
    ],
)
def test_network_in_fp8_is_near_the_bfloat16_one_and_not_it(skip):
    config = dataclasses.replace(TINY, skip=skip, qkv_bias=True)
    x, t, label = (
        jax.random.normal(jax.random.key(2), (3, 8, 8, 3)),
        jnp.asarray([1.0, 400.0, 900.0]),
        jnp.arange(3),
    )
    network, params = network_of(config)
    found = network(params, x, t, label)
    others = {}
    for dtype in ("float32", "bfloat16"):
        network, same = network_of(dataclasses.replace(config, dtype=dtype))
        assert jax.tree.structure(same) == jax.tree.structure(params)
        others[dtype] = network(params, x, t, label)
    assert error(others["bfloat16"], others["float32"]) < error(found, others["float32"]) < 0.1


def test_every_product_of_a_block_is_in_8_bits():
    network, params = network_of(TINY)
    text = network.lower(params, jnp.zeros((1, 8, 8, 3)), jnp.zeros(1), jnp.zeros(1, int)).as_text()
    # Of each factor one conversion: qkv, proj, fc1 and fc2 in 3 blocks, two of the skip in one.
    into = [
        line
        for line in text.splitlines()
        if "stablehlo.convert" in line and line.split("->")[-1].count("f8E4M3FN")
    ]
    assert len(into) == 2 * (3 * 4 + 2)
