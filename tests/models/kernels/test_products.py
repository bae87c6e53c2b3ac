"""The MLP's products, and weights' gradients as partial sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from uvit_jax.models.blocks import MLP
from uvit_jax.models.kernels import compute, fused
from uvit_jax.models.kernels.products import PARTS, gradient_parts, product, weight_tangent
from uvit_jax.models.placement import OneDevice


@pytest.mark.parametrize(
    ("shape", "tokens", "platform", "expected"),
    [
        ((1152, 4608), 57_792, "gpu", PARTS),
        ((4608, 1152), 57_792, "gpu", PARTS),
        ((1152, 4608), 258, "gpu", 1),
        ((1152, 4608), 57_792, "tpu", 1),
        ((1024, 4096), 57_792, "gpu", 1),
        ((512, 2048), 57_792, "gpu", 1),
    ],
)
def test_partial_sums_where_tiles_leave_a_gpu_idle(shape, tokens, platform, expected):
    assert gradient_parts(tokens, shape, platform) == expected


@pytest.mark.parametrize("parts", [1, 4])
def test_partial_sums_are_as_close_to_float32_as_one_sum(parts):
    keys = jax.random.split(jax.random.key(0), 2)
    x, dy = (
        jax.random.normal(key, (8, 64, width), jnp.bfloat16)
        for key, width in zip(keys, (24, 40), strict=True)
    )
    exact = jnp.einsum("btk,btn->kn", x.astype(jnp.float32), dy.astype(jnp.float32))
    kernel = jax.ShapeDtypeStruct((24, 40), jnp.bfloat16)
    (found,) = jax.linear_transpose(lambda kernel: weight_tangent(x, kernel, parts), kernel)(dy)
    assert found.dtype == jnp.bfloat16
    assert np.linalg.norm(found - exact) < 0.004 * np.linalg.norm(exact)


def test_product_is_the_same_and_its_gradients_too_but_for_rounding():
    keys = jax.random.split(jax.random.key(1), 3)
    x = jax.random.normal(keys[0], (4, 16, 24), jnp.bfloat16)
    kernel = jax.random.normal(keys[1], (24, 40))
    dy = jax.random.normal(keys[2], (4, 16, 40), jnp.bfloat16)
    results = []
    for parts in (1, 4):
        y, vjp = jax.vjp(
            lambda x, kernel, n=parts: product(x, kernel, fp8=False, parts=n), x, kernel
        )
        results.append((y, *vjp(dy)))
    (y, dx, d_kernel), (y4, dx4, d_kernel4) = results
    np.testing.assert_array_equal(y, y4)
    np.testing.assert_array_equal(dx, dx4)
    exact = jnp.einsum("btk,btn->kn", x.astype(jnp.float32), dy.astype(jnp.float32))
    one, four = (
        np.linalg.norm(found - exact) / np.linalg.norm(exact) for found in (d_kernel, d_kernel4)
    )
    assert d_kernel4.dtype == jnp.float32
    assert four < max(one, 0.005)


class Shared(OneDevice):
    """One of several devices."""

    single_device = False


@pytest.mark.parametrize(
    ("dtype", "placement", "expected"),
    [(jnp.bfloat16, OneDevice(), 4), (jnp.float32, OneDevice(), 1), (jnp.bfloat16, Shared(), 1)],
)
def test_only_one_device_and_half_precision_take_partial_sums(
    monkeypatch, dtype, placement, expected
):
    seen = []
    monkeypatch.setattr(fused, "gradient_parts", lambda tokens, shape, platform: 4)

    def recorded(*args, parts, **options):
        seen.append(parts)
        return product(*args, **options)

    monkeypatch.setattr(compute, "product", recorded)
    how = compute.Compute(jnp.dtype(dtype).name, placement=placement)
    fused.mlp(how, MLP(16, 32, dtype=dtype, rngs=nnx.Rngs(0)), jnp.zeros((2, 4, 16), dtype))
    assert seen == [expected, expected]
