import functools
import itertools

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
from scipy import special

from uvit_jax.models.kernels import gelu, gelu_triton
from uvit_jax.models.kernels.tiles import Tuning

IMPLEMENTATIONS = ("xla", "interpret")
SLOW_XLA = [pytest.param("xla", marks=pytest.mark.slow), "interpret"]
DTYPES = ("float32", "bfloat16")
SHAPES = ((3, 258, 72), (1, 7, 4608), (2, 9, 512))
QUICK = (
    ("xla", "bfloat16", SHAPES[0]),
    ("interpret", "float32", SHAPES[0]),
    ("interpret", "bfloat16", SHAPES[1]),
)
SLOW = [case for case in itertools.product(IMPLEMENTATIONS, DTYPES, SHAPES) if case not in QUICK]
# bfloat16's half spacing is 2e-3 of a number.
TOLERANCE = {"float32": 2e-6, "bfloat16": 4e-3}


def arguments(shape, dtype):
    keys = jax.random.split(jax.random.key(1), 4)
    u, dg = (2 * jax.random.normal(k, shape) for k in keys[:2])
    kernel = jax.random.normal(keys[2], (shape[-1], 24)) / 8
    return (
        u.astype(dtype),
        jax.random.normal(keys[3], shape[-1:]),
        kernel.astype(dtype),
        dg.astype(dtype),
    )


def assert_close(out, ref, tolerance):
    for o, r in zip(jax.tree.leaves(out), jax.tree.leaves(ref), strict=True):
        o, r = np.asarray(o, np.float64), np.asarray(r, np.float64)
        assert np.linalg.norm(o - r) <= tolerance * np.linalg.norm(r)


def plain(u, bias):
    z = u.astype(jnp.float32) + bias
    return 0.5 * z * (1 + jax.lax.erf(z / np.sqrt(2)))


def test_the_tail_of_the_normal_distribution_is_as_good_as_is_said():
    # Every 4,099th float32 up to where Phi(-z) leaves float32's range.
    z = np.arange(0, np.float32(12.9).view(np.uint32), 4099, dtype=np.uint32).view(np.float32)
    q, bell = (np.asarray(out, np.float64) for out in gelu_triton.tail(jnp.asarray(z)))
    exact = special.ndtr(-z.astype(np.float64))
    assert np.abs(q - exact).max() < 2.5e-7
    for most, of_itself in ((3, 1e-6), (6, 2e-4), (12.9, 4e-3)):
        within = z <= most
        assert (np.abs(q - exact) / exact)[within].max() < of_itself
    np.testing.assert_allclose(bell, np.exp(-0.5 * z.astype(np.float64) ** 2), rtol=1e-5)
    minus, _ = gelu_triton.tail(jnp.asarray(-z))
    np.testing.assert_array_equal(minus, q.astype(np.float32))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_values_are_as_close_as_is_said_all_over_float32(implementation):
    bits = np.arange(0, 2**31, 2**31 // 2**16, dtype=np.uint32)
    z = np.concatenate([bits, bits | np.uint32(2**31)]).view(np.float32)
    z = z[np.isfinite(z)][: 2**16 - 2**9].reshape(1, -1, 512)
    g, vjp = jax.vjp(
        lambda u: gelu.bias_gelu(u, jnp.zeros(512), implementation=implementation), jnp.asarray(z)
    )
    wide = z.astype(np.float64)
    np.testing.assert_allclose(g, wide * special.ndtr(wide), rtol=1e-6, atol=2.5e-7)
    with np.errstate(over="ignore", under="ignore"):
        slope = special.ndtr(wide) + wide * np.exp(-(wide**2) / 2) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(vjp(jnp.ones_like(g))[0], slope, rtol=1e-6, atol=5e-7)


def test_nothing_but_u_and_the_bias_is_kept_of_half_precision():
    u, bias, _, _ = arguments((3, 20, 72), jnp.bfloat16)
    _, vjp = jax.vjp(gelu.bias_gelu_xla, u, bias)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(vjp)) == u.nbytes + bias.nbytes


def test_xla_has_derivatives_of_every_order_in_both_modes():
    u, bias, _, _ = arguments((2, 3, 8), jnp.float32)
    apply = functools.partial(gelu.bias_gelu, implementation="xla")
    with jax.enable_x64(True):
        args = [jnp.asarray(np.asarray(a, np.float64)) for a in (u, bias)]
        jax.test_util.check_grads(jax.jit(apply), args, order=2, modes=("fwd", "rev"))
    per_row = jax.vmap(jax.grad(lambda u: gelu.bias_gelu_xla(u, bias).sum()))(u)
    np.testing.assert_array_equal(per_row, jax.grad(lambda u: gelu.bias_gelu_xla(u, bias).sum())(u))


@pytest.mark.parametrize(
    ("implementation", "dtype", "shape"),
    [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)],
)
def test_values_and_gradients_are_those_of_plain_float32_code(implementation, dtype, shape):
    u, bias, _, dg = arguments(shape, dtype)
    apply = functools.partial(gelu.bias_gelu, implementation=implementation)
    g, vjp = jax.vjp(jax.jit(apply), u, bias)
    assert g.dtype == dtype
    du, dbias = vjp(dg)
    assert (du.dtype, dbias.dtype) == (dtype, jnp.float32)
    reference, vjp = jax.vjp(plain, u.astype(jnp.float32), bias)
    assert_close(g, reference, TOLERANCE[dtype])
    assert_close((du, dbias), vjp(dg.astype(jnp.float32)), TOLERANCE[dtype])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_extreme_inputs_stay_finite(implementation):
    u = jnp.asarray([[[-3e38, -100.0, -10.0, 0.0, 10.0, 100.0, 3e38, 1.0]]], jnp.bfloat16)
    g, vjp = jax.vjp(lambda u: gelu.bias_gelu(u, jnp.zeros(8), implementation=implementation), u)
    np.testing.assert_array_equal(g[0, 0, :2], 0)
    np.testing.assert_array_equal(g[0, 0, 3:7], u[0, 0, 3:7])
    slope = np.asarray(vjp(jnp.ones_like(u))[0][0, 0], np.float32)
    np.testing.assert_array_equal(slope[[0, 1, 3, 5, 6]], [0, 0, 0.5, 1, 1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_infinity_is_itself_above_and_0_below_and_nan_stays_nan(implementation, dtype):
    u = jnp.asarray([[[-jnp.inf, jnp.inf, jnp.nan, 1.0]]], dtype)
    g, vjp = jax.vjp(lambda u: gelu.bias_gelu(u, jnp.zeros(4), implementation=implementation), u)
    np.testing.assert_array_equal(np.asarray(g[0, 0, :3], np.float32), [0, np.inf, np.nan])
    np.testing.assert_array_equal(
        np.asarray(vjp(jnp.ones_like(u))[0][0, 0, :3], np.float32), [0, 1, np.nan]
    )
    slope = jax.grad(
        lambda u: gelu.bias_gelu_xla(u, jnp.zeros(4))[0, 0, :2].astype(jnp.float32).sum()
    )
    curvature = jax.jvp(slope, (u,), (jnp.ones_like(u),))[1]
    np.testing.assert_array_equal(np.asarray(curvature[0, 0, :2], np.float32), [0, 0])


@pytest.mark.parametrize(
    ("rows", "cols", "programs"),
    [
        (4, 16, 7),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((1, 128, 0), (8, 32, 1))),
    ],
)
def test_no_tuning_changes_the_result(rows, cols, programs):
    u, bias, _, dg = arguments((37, 72), jnp.float32)
    tuning = Tuning(rows=rows, cols=cols, programs=programs)
    g = gelu_triton.bias_gelu_forward(u, bias, tuning=tuning, interpret=True)
    assert_close(g, plain(u, bias), 2e-6)
    gradients = gelu_triton.bias_gelu_backward(dg, u, bias, tuning=tuning, interpret=True)
    assert_close(gradients, jax.vjp(gelu.bias_gelu_xla, u, bias)[1](dg), 2e-6)


@pytest.mark.parametrize("implementation", SLOW_XLA)
def test_under_a_checkpoint_policy_gelu_is_computed_again_from_its_named_input(implementation):
    u, bias, kernel, _ = arguments((2, 5, 72), jnp.float32)

    def mlp(u, bias, kernel):
        u = jax.ad_checkpoint.checkpoint_name(jnp.sin(u), "fc1")
        return gelu.bias_gelu(u, bias, implementation=implementation) @ kernel

    policy = jax.checkpoint_policies.save_only_these_names("fc1")
    loss = lambda f: lambda *a: jnp.sum(f(*a) ** 2)  # noqa: E731
    expected = jax.grad(loss(mlp), argnums=(0, 1, 2))(u, bias, kernel)
    again = jax.jit(jax.grad(loss(jax.checkpoint(mlp, policy=policy)), argnums=(0, 1, 2)))(
        u, bias, kernel
    )
    assert_close(again, expected, 1e-6)


@pytest.mark.skipif(
    jax.__version_info__ >= (0, 11), reason="from 0.11 on, lowering compiles with the GPU's plugin"
)
def test_kernels_lower_to_triton_without_a_gpu():
    u, bias, kernel, _ = arguments((3, 258, 4608), jnp.bfloat16)
    loss = lambda u, b, k: jnp.sum(  # noqa: E731
        (gelu.bias_gelu(u, b, implementation="triton") @ k).astype(jnp.float32)
    )
    lowered = (
        jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
        .trace(u, bias, kernel)
        .lower(lowering_platforms=("cuda",))
    )
    assert lowered.as_text().count("xla.gpu.triton") >= 1
