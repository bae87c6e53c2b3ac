import functools
import inspect
import itertools

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from uvit_jax.models.kernels import norm, norm_triton
from uvit_jax.models.kernels.tiles import Tuning

IMPLEMENTATIONS = ("xla", "interpret")
SLOW_XLA = [pytest.param("xla", marks=pytest.mark.slow), "interpret"]
DTYPES = ("float32", "bfloat16")
QUICK = (("xla", "bfloat16", 72), ("interpret", "bfloat16", 1152), ("interpret", "float32", 72))
SLOW = [
    case for case in itertools.product(IMPLEMENTATIONS, DTYPES, (1152, 72, 64)) if case not in QUICK
]
PARTS = ((True, False), (False, True), (False, False))
# bfloat16 keeps 8 bits: half a spacing is 2^-9 = 2e-3 of the number. Sums over rows that are kept
# in bfloat16 lie outside of this.
TOLERANCE = {"float32": 1e-5, "bfloat16": 4e-3}


def arguments(shape, dtype, *, has_y=True, has_bias=True):
    keys = jax.random.split(jax.random.key(0), 5)
    d = shape[-1]
    x, y = (1.5 * jax.random.normal(k, shape) + 0.3 for k in keys[:2])
    bias, scale, shift = (jax.random.normal(k, (d,)) for k in keys[2:])
    return (
        x.astype(dtype),
        y.astype(dtype) if has_y else None,
        bias if has_bias else None,
        1 + 0.2 * scale,
        shift,
    )


def plain(x, y, bias, scale, shift, dtype):
    """What the docstring says, in float32 but for the rounding of r, which gradients pass."""
    r = x + (0 if y is None else y) + (0 if bias is None else bias)
    r = r + jax.lax.stop_gradient(r.astype(dtype).astype(jnp.float32) - r)
    normed = (r - r.mean(-1, keepdims=True)) / jnp.sqrt(r.var(-1, keepdims=True) + 1e-5)
    return r, normed * scale + shift


def scalar(outputs):
    """A number whose gradients with respect to both outputs are unlike each other, and exact in
    bfloat16.
    """
    total = 0.0
    for k, out in enumerate(outputs):
        weights = (jnp.arange(out.size).reshape(out.shape) * (k + 3)) % 17 - 7
        total = total + jnp.sum(out.astype(jnp.float32) * weights)
    return total


def assert_close(out, ref, tolerance):
    assert jax.tree.structure(out) == jax.tree.structure(ref)
    for o, r in zip(jax.tree.leaves(out), jax.tree.leaves(ref), strict=True):
        o, r = np.asarray(o, np.float64), np.asarray(r, np.float64)
        assert np.linalg.norm(o - r) <= tolerance * np.linalg.norm(r)


def wide(arrays):
    return jax.tree.map(lambda a: a.astype(jnp.float32), arrays)


@pytest.mark.parametrize(
    ("implementation", "dtype", "width"),
    [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)],
)
def test_values_and_gradients_are_those_of_plain_float32_code(implementation, dtype, width):
    args = arguments((3, 258 if width == 72 else 7, width), dtype)
    apply = functools.partial(norm.add_norm, implementation=implementation)
    out = jax.jit(apply)(*args)
    assert [o.dtype for o in out] == [dtype, dtype]
    assert_close(out, plain(*wide(args), dtype), TOLERANCE[dtype])
    grads = jax.jit(jax.grad(lambda *a: scalar(apply(*a)), argnums=range(5)))(*args)
    assert [g.dtype for g in grads] == [a.dtype for a in args]
    assert_close(
        grads,
        jax.grad(lambda *a: scalar(plain(*a, dtype)), argnums=range(5))(*wide(args)),
        TOLERANCE[dtype],
    )


@pytest.mark.parametrize("implementation", SLOW_XLA)
@pytest.mark.parametrize(("has_y", "has_bias"), PARTS)
def test_what_is_added_may_be_missing(implementation, has_y, has_bias):
    args = arguments((2, 5, 72), jnp.float32, has_y=has_y, has_bias=has_bias)
    apply = functools.partial(norm.add_norm, implementation=implementation)
    assert_close(apply(*args), plain(*args, jnp.float32), 1e-5)
    there = [i for i, a in enumerate(args) if a is not None]
    grads = jax.grad(lambda *a: scalar(apply(*a)), argnums=there)(*args)
    assert_close(
        grads, jax.grad(lambda *a: scalar(plain(*a, jnp.float32)), argnums=there)(*args), 1e-5
    )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_stream_that_goes_two_ways_has_the_sum_of_their_gradients(implementation):
    args = arguments((2, 5, 72), jnp.float32)

    def forked(*args):
        return norm.add_norm(*args, implementation=implementation, ways=2)

    def apart(*args):
        r, h = plain(*args, jnp.float32)
        return r, r, h

    assert_close(list(forked(*args)), list(apart(*args)), 1e-5)
    grads = jax.grad(lambda *a: scalar(forked(*a)), argnums=range(5))(*args)
    assert_close(grads, jax.grad(lambda *a: scalar(apart(*a)), argnums=range(5))(*args), 1e-5)


def test_r_is_rounded_once_and_the_norm_is_of_the_rounded_r():
    args = arguments((3, 7, 72), jnp.bfloat16)
    x, y, bias, scale, shift = wide(args)
    for implementation in IMPLEMENTATIONS:
        r, h = norm.add_norm(*args, implementation=implementation)
        if implementation == "xla":
            np.testing.assert_array_equal(r, (x + (y + bias)).astype(jnp.bfloat16))
        again = norm.add_norm(r, None, None, scale, shift, implementation=implementation)
        np.testing.assert_array_equal(again[0], r)
        np.testing.assert_array_equal(again[1], h)


def test_the_variance_of_a_large_mean_is_not_lost():
    x = 1000 + jax.random.normal(jax.random.key(0), (1, 4, 1152))
    for implementation in IMPLEMENTATIONS:
        _, h = norm.add_norm(
            x, None, None, jnp.ones(1152), jnp.zeros(1152), implementation=implementation
        )
        np.testing.assert_allclose(h.std(-1), 1, atol=1e-3)


def kept_bytes(function, *args):
    """Of the arrays that the backward pass keeps."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(jax.vjp(function, *args)[1]))


def test_nothing_but_r_and_two_numbers_a_row_is_kept_of_half_precision():
    args = arguments((3, 20, 72), jnp.bfloat16)
    apply = functools.partial(norm.add_norm, implementation="xla")
    assert kept_bytes(apply, *args) <= 2 * 60 * 72 + 2 * 4 * 60 + 4 * 72 + 64


@pytest.mark.parametrize("ways", [1, 2])
def test_xla_has_derivatives_of_every_order_in_both_modes(ways):
    apply = functools.partial(norm.add_norm, implementation="xla", ways=ways)
    with jax.enable_x64(True):
        args = [np.asarray(a, np.float64) for a in arguments((2, 3, 8), jnp.float32)]
        args = jax.tree.map(jnp.asarray, args)
        jax.test_util.check_grads(jax.jit(apply), args, order=2, modes=("fwd", "rev"))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_rows_of_one_number_or_with_infinity_change_no_other_row(implementation):
    x, y, _, scale, shift = arguments((1, 6, 72), jnp.float32)
    odd = x.at[0, 1].set(7.0).at[0, 2, 5].set(jnp.inf).at[0, 3].multiply(1e15)
    apply = functools.partial(norm.add_norm, implementation=implementation)
    (_, h), vjp = jax.vjp(lambda x: apply(x, None, None, scale, shift), odd)
    expected, expected_vjp = jax.vjp(lambda x: plain(x, None, None, scale, shift, jnp.float32), x)
    # The mean may be off by float32's rounding of 7, 5e-7, which 1 / sqrt(eps) multiplies by 316.
    np.testing.assert_allclose(h[0, 1], shift, rtol=0, atol=1.6e-4)
    assert jnp.isfinite(h[0, 3]).all()
    np.testing.assert_allclose(
        h[0, 3], (x[0, 3] - x[0, 3].mean()) / x[0, 3].std() * scale + shift, atol=1e-4
    )
    assert jnp.isnan(h[0, 2]).all()
    others = [0, 4, 5]
    (dx,), (expected_dx,) = vjp((y, y)), expected_vjp((y, y))
    assert_close(
        (h[0, others], dx[0, others]), (expected[1][0, others], expected_dx[0, others]), 1e-5
    )
    assert jnp.isfinite(dx[0, [1, 3]]).all()


@pytest.mark.parametrize("row_pieces", [pytest.param("pad", marks=pytest.mark.slow), "split"])
@pytest.mark.parametrize(
    ("n", "rows", "programs"),
    [
        (37, 4, 3),
        (24, 2, 3),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((37, 1, 0), (37, 8, 2))),
    ],
)
def test_no_tuning_changes_the_result(row_pieces, n, rows, programs):
    x, y, bias, scale, shift = arguments((n, 72), jnp.float32)
    tuning = Tuning(rows=rows, programs=programs, row_pieces=row_pieces)
    r = x + y + bias
    expected = norm.norm_xla(r, scale, shift)
    assert_close(
        norm_triton.norm_forward(r, scale, shift, tuning=tuning, interpret=True), expected, 1e-5
    )
    _, mean, rstd = expected
    gradients = norm_triton.norm_backward(
        y, None, x, r, mean, rstd, scale, with_bias=True, tuning=tuning, interpret=True
    )
    apply = functools.partial(norm.add_norm, implementation="xla")
    gradient = jax.vjp(lambda r, *a: apply(r, None, *a), r[None], 0 * bias, scale, shift)[1]
    dx, dbias, dscale, dshift = gradient((y[None], x[None]))
    assert_close(gradients, (dx[0], jnp.stack([dscale, dshift, dbias])), 1e-5)
    for cols in (16, 64):
        tuning = Tuning(rows=rows, cols=cols, programs=programs)
        np.testing.assert_allclose(
            norm_triton.row_sums(x, tuning=tuning, interpret=True), x.sum(0), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("has_bias", [True, False])
def test_residual_add_is_the_sum_and_its_gradients(implementation, has_bias):
    x, y, bias, _, _ = arguments((3, 19, 72), jnp.bfloat16, has_bias=has_bias)
    r = norm.residual_add(x, y, bias, implementation=implementation)
    expected = x.astype(jnp.float32) + (y.astype(jnp.float32) + (bias if has_bias else 0))
    if implementation == "xla":
        np.testing.assert_array_equal(r, expected.astype(jnp.bfloat16))
    assert_close(r, expected, TOLERANCE["bfloat16"])
    argnums = (0, 1, 2) if has_bias else (0, 1)
    grads = jax.grad(
        lambda x, y, b: scalar([norm.residual_add(x, y, b, implementation=implementation)]),
        argnums=argnums,
    )(x, y, bias)
    dr = jax.grad(lambda r: scalar([r]))(expected)
    assert_close(grads, (dr, dr, dr.sum((0, 1)))[: len(argnums)], 1e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_policy_that_keeps_r_computes_no_product_again(implementation):
    x, y, bias, scale, shift = arguments((2, 5, 72), jnp.float32)

    def loss(y, kernel):
        return scalar(
            norm.add_norm(x, y @ kernel, bias, scale, shift, implementation=implementation)
        )

    kept = jax.checkpoint(loss, policy=jax.checkpoint_policies.save_only_these_names("residual"))
    program = str(jax.make_jaxpr(jax.grad(kept, argnums=(0, 1)))(y, jnp.eye(72)))
    assert program.count("dot_general[") == 3  # the product and its two gradients


def stack(x, scales, how):
    """Four layers of the same shape; each adds half of its own normed stream."""

    def layer(x, scale):
        r, h = norm.add_norm(x, 0.5 * x, scale - 1, scale, scale, implementation=how)
        return r + 0.5 * h, None

    return layer, x, scales


@pytest.mark.parametrize("policy", [pytest.param("everything", marks=pytest.mark.slow), "names"])
@pytest.mark.parametrize("implementation", SLOW_XLA)
def test_gradients_pass_scan_and_checkpoint(implementation, policy):
    x, _, _, scale, _ = arguments((2, 5, 72), jnp.float32)
    scales = scale * jnp.linspace(0.5, 1.5, 4)[:, None]
    names = jax.checkpoint_policies.save_only_these_names("residual", "norm_statistics")

    def loss(x, scales, wrap, how):
        layer, _, _ = stack(x, scales, how)
        if wrap is None:
            for scale in scales:
                x, _ = layer(x, scale)
        else:
            x, _ = jax.lax.scan(wrap(layer), x, scales)
        return scalar([x])

    wraps = (
        [lambda f: f, jax.checkpoint]
        if policy == "everything"
        else [functools.partial(jax.checkpoint, policy=names)]
    )
    expected = jax.jit(functools.partial(jax.grad(loss, argnums=(0, 1)), wrap=None, how="xla"))(
        x, scales
    )
    for wrap in wraps:
        grads = jax.jit(
            functools.partial(jax.grad(loss, argnums=(0, 1)), wrap=wrap, how=implementation)
        )(x, scales)
        assert_close(grads, expected, 1e-5)


@pytest.mark.parametrize("implementation", SLOW_XLA)
def test_gradients_pass_shard_map(implementation):
    x, y, bias, scale, shift = arguments((2, 5, 72), jnp.float32)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    rows = P("data")
    specs = {"in_specs": (rows, rows, P(), P(), P()), "out_specs": (rows, rows)}
    # Pallas's outputs don't say over which axes they vary.
    check = (
        {"check_vma": False} if "check_vma" in inspect.signature(jax.shard_map).parameters else {}
    )
    apply = functools.partial(norm.add_norm, implementation=implementation)
    sharded = jax.shard_map(apply, mesh=mesh, **specs, **check)
    grads = jax.jit(jax.grad(lambda *a: scalar(sharded(*a)), argnums=range(5)))(
        x, y, bias, scale, shift
    )
    plain_grads = jax.grad(lambda *a: scalar(plain(*a, jnp.float32)), argnums=range(5))(
        x, y, bias, scale, shift
    )
    assert_close(grads, plain_grads, 1e-5)


@pytest.mark.skipif(
    jax.__version_info__ >= (0, 11), reason="from 0.11 on, lowering compiles with the GPU's plugin"
)
def test_kernels_lower_to_triton_without_a_gpu():
    args = arguments((3, 258, 1152), jnp.bfloat16)
    loss = lambda *a: scalar(norm.add_norm(*a, implementation="triton"))  # noqa: E731
    lowered = (
        jax.jit(jax.grad(loss, argnums=range(5))).trace(*args).lower(lowering_platforms=("cuda",))
    )
    assert lowered.as_text().count("xla.gpu.triton") == 2


@pytest.mark.parametrize(
    ("dtype", "d", "platform", "expected"),
    [
        ("bfloat16", 1152, "gpu", "triton"),
        ("bfloat16", 1, "gpu", "triton"),
        ("float32", 1152, "gpu", "xla"),
        ("bfloat16", 8193, "gpu", "xla"),
        ("bfloat16", 1152, "tpu", "xla"),
        ("bfloat16", 1152, "cpu", "xla"),
    ],
)
def test_triton_is_for_bfloat16_on_a_gpu(dtype, d, platform, expected):
    assert norm.resolve(dtype, d, platform) == expected
