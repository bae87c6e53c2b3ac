import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvit_jax.errors import UserError
from uvit_jax.models.latents import Normalization, sample_moments


def test_sampled_latents_have_the_moments_shifted_and_scaled():
    mean, logvar = np.array([1.0, -2.0], np.float32), np.log(np.array([4.0, 0.25], np.float32))
    moments = np.broadcast_to(np.concatenate([mean, logvar]), (4, 64, 64, 4))
    normalization = Normalization(shift=(0.5, 0.0), scale=(0.5, 3.0))
    z = np.asarray(sample_moments(moments, jax.random.key(0), normalization)).reshape(-1, 2)
    np.testing.assert_allclose(z.mean(0), [0.25, -6.0], atol=0.05)
    np.testing.assert_allclose(z.std(0), [1.0, 1.5], rtol=0.02)


@pytest.mark.parametrize(("logvar", "clipped"), [(-80.0, -30.0), (35.0, 20.0)])
def test_the_logvar_of_moments_is_clipped(logvar, clipped):
    moments = np.array([0.0, logvar], np.float32).reshape(1, 1, 1, 2)
    key = jax.random.key(3)
    expected = np.exp(clipped / 2) * jax.random.normal(key, (1, 1, 1, 1))
    np.testing.assert_allclose(
        sample_moments(moments, key, Normalization.constant(1.0, 1)), expected, rtol=1e-5
    )


def test_moments_in_half_precision_are_sampled_in_float32():
    moments = np.array([1.0, 2.0, -30.0, -30.0], np.float16).reshape(1, 1, 1, 4)
    z = sample_moments(moments, jax.random.key(0), Normalization((0.0, 0.0), (0.5, 3.0)))
    assert z.dtype == jnp.float32
    np.testing.assert_allclose(z[0, 0, 0], [0.5, 6.0], atol=1e-5)


def test_statistics_bring_latents_to_zero_mean_and_unit_variance_and_back():
    spread = np.array([2.0, 0.1, 5.0], np.float32)
    z = np.random.default_rng(0).standard_normal(
        (2, 3, 4, 5, 3), dtype=np.float32
    ) * spread + np.float32(7)
    normalization = Normalization.from_statistics(
        z.mean((0, 1, 2, 3)).tolist(), z.std((0, 1, 2, 3)).tolist()
    )
    x = normalization.normalize(z)
    np.testing.assert_allclose(np.asarray(x).mean((0, 1, 2, 3)), 0, atol=1e-4)
    np.testing.assert_allclose(np.asarray(x).std((0, 1, 2, 3)), 1, atol=1e-4)
    np.testing.assert_allclose(normalization.denormalize(x), z, atol=1e-5)


def test_a_constant_normalization_is_the_papers_factor():
    assert Normalization.constant(0.18215, 2) == Normalization((0.0, 0.0), (0.18215, 0.18215))
    z = jnp.array([1.0, -2.0]).reshape(1, 1, 2)
    np.testing.assert_allclose(
        Normalization.constant(0.5, 2, shift=1.0).normalize(z)[0, 0], [0.0, -1.5]
    )


def test_half_precision_latents_are_normalized_in_float32():
    z = jnp.full((1, 1, 1, 1), 1.0, jnp.bfloat16)
    x = jax.jit(Normalization.constant(0.18215, 1).normalize)(z)
    assert x.dtype == jnp.float32
    np.testing.assert_allclose(x[0, 0, 0, 0], 0.18215, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Normalization((0.0,), (1.0, 1.0)), "1 shifts and 2 scales"),
        (lambda: Normalization((), ()), "0 shifts and 0 scales"),
        (
            lambda: Normalization.constant(-1.0, 2),
            r"scale of channel 0 is -1\.0, expected a positive number$",
        ),
        (lambda: Normalization.constant(1.0, 2, shift=float("nan")), "shift of channel 0 is nan"),
        (
            lambda: Normalization.from_statistics([0.0, 0.0], [1.0, -0.5]),
            r"of channel 1 is -0\.5, expected a",
        ),
    ],
)
def test_numbers_that_normalize_nothing_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_latents_of_another_autoencoder_are_refused():
    normalization = Normalization.constant(1.0, 16)
    for call in (normalization.normalize, normalization.denormalize):
        with pytest.raises(UserError, match="latents have 4 channels, expected 16"):
            call(np.zeros((1, 2, 2, 4), np.float32))
    with pytest.raises(
        UserError, match="moments have 8 channels, expected 32: mean and logvar of 16"
    ):
        sample_moments(np.zeros((1, 2, 2, 8), np.float32), jax.random.key(0), normalization)
