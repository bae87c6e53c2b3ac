import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvit_jax.training import ema

RATES = [0.9, 0.998, 0.9999, 0.99999]


def after(steps, average, params, rate):
    """The average after `steps` steps, as one compiled loop; step i has parameters params(i)."""
    body = lambda i, e: ema.update(e, params(i), rate)  # noqa: E731
    return jax.jit(lambda e: jax.lax.fori_loop(0, steps, body, e))(average)


@pytest.mark.parametrize("rate", RATES)
def test_the_average_of_parameters_that_stay_is_these_bit_for_bit(rate):
    params = {"w": jax.random.normal(jax.random.key(0), (1000,))}
    found = after(20_000, params, lambda i: params, rate)
    assert np.asarray(found["w"]).tobytes() == np.asarray(params["w"]).tobytes()


@pytest.mark.parametrize("rate", [0.9999, 0.99999])
def test_an_average_of_noise_around_a_value_does_not_shrink(rate):
    # Rates that near 1 shrink by 1.7e-4 and 1.4e-3 where both factors are rounded.
    steps, value, noise = 100_000, 1.5, 0.03

    def params(i):
        return {
            "w": value + noise * jax.random.normal(jax.random.fold_in(jax.random.key(1), i), (64,))
        }

    found = np.asarray(after(steps, {"w": jnp.full(64, value)}, params, rate)["w"], np.float64)
    deviation = noise * np.sqrt((1 - rate) / (1 + rate) / 64)
    assert abs(found.mean() - value) < 4 * deviation


@pytest.mark.parametrize("rate", RATES)
def test_a_step_is_the_official_one_to_the_last_digits(rate):
    e, p = np.random.default_rng(0).standard_normal((2, 1000)).astype(np.float32)
    official = rate * e.astype(np.float64) + (1 - rate) * p.astype(np.float64)
    np.testing.assert_allclose(
        ema.update({"w": jnp.asarray(e)}, {"w": jnp.asarray(p)}, rate)["w"], official, 0, 4e-7
    )
