import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvit_jax.diffusion.losses import denoising_loss
from uvit_jax.diffusion.predictions import PREDICTIONS, convert
from uvit_jax.diffusion.schedules import RectifiedFlow, VPLinear
from uvit_jax.errors import UserError


def batch():
    keys = jax.random.split(jax.random.key(0))
    x0, noise = (jax.random.normal(key, (5, 4, 4, 3)) for key in keys)
    return x0, jnp.asarray([0.01, 0.2, 0.5, 0.8, 0.99]), noise


def test_noise_loss_is_the_official_simple_loss(golden, stable_diffusion):
    x0, _, noise = batch()
    n = np.asarray([1, 17, 412, 999, 1000])
    predict = lambda x, time: jnp.sin(x + time[:, None, None, None])  # noqa: E731
    found = denoising_loss(predict, x0, jnp.asarray(n / 1000, jnp.float32), noise, stable_diffusion)
    wide = lambda values: np.sqrt(values[n])[:, None, None, None]  # noqa: E731
    x_n = wide(golden["sd.cum_alphas"]) * x0 + wide(golden["sd.cum_betas"]) * noise
    expected = np.square(noise - np.sin(x_n + n[:, None, None, None])).reshape(5, -1).mean(-1)
    # sin(n) of n = 1000 t in single precision is what limits the agreement.
    np.testing.assert_allclose(found, expected, rtol=3e-4)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_perfect_network_has_no_loss(prediction):
    x0, t, noise = batch()
    schedule = VPLinear()
    alpha, sigma = (value[:, None, None, None] for value in (schedule.alpha(t), schedule.sigma(t)))
    right = {"noise": noise, "x0": x0, "v": alpha * noise - sigma * x0, "flow": noise - x0}[
        prediction
    ]
    found = denoising_loss(lambda x, time: right, x0, t, noise, schedule, prediction=prediction)
    np.testing.assert_allclose(found, 0.0, atol=1e-10)


@pytest.mark.parametrize("schedule", [VPLinear(), RectifiedFlow()], ids=["vp", "flow"])
def test_min_snr_weighs_every_prediction_alike(schedule, x64):
    x0, t, noise = (value.astype(jnp.float64) for value in batch())
    guess = lambda x, time: jnp.cos(x)  # noqa: E731

    def loss(prediction):
        out = lambda x, time: convert(  # noqa: E731
            guess(x, time), x, t, schedule, source="noise", target=prediction
        )
        options = {"prediction": prediction, "weighting": "min_snr", "min_snr_gamma": 5.0}
        return denoising_loss(out, x0, t, noise, schedule, **options)

    plain = denoising_loss(guess, x0, t, noise, schedule)
    snr = schedule.snr(t)
    np.testing.assert_allclose(loss("noise"), plain * jnp.minimum(snr, 5.0) / snr, rtol=1e-9)
    for prediction in PREDICTIONS:
        np.testing.assert_allclose(loss(prediction), loss("noise"), rtol=1e-9, err_msg=prediction)


def test_the_loss_is_float32_per_example_and_the_network_is_given_its_own_time():
    x0, t, noise = batch()
    seen = []

    def predict(x, time):
        seen.append((x.dtype, time))
        return jnp.zeros_like(x, jnp.bfloat16)

    found = denoising_loss(predict, x0.astype(jnp.bfloat16), t, noise, VPLinear())
    assert (found.shape, found.dtype) == ((5,), jnp.float32)
    assert seen[0][0] == jnp.float32
    np.testing.assert_allclose(seen[0][1], 999 * t)


def test_unknown_names_list_the_known_ones():
    x0, t, noise = batch()
    with pytest.raises(UserError, match="weighting is 'snr', expected one of none, min_snr"):
        denoising_loss(lambda x, time: x, x0, t, noise, VPLinear(), weighting="snr")
    with pytest.raises(UserError, match="prediction is 'eps', expected one of noise, x0, v, flow"):
        denoising_loss(lambda x, time: x, x0, t, noise, VPLinear(), prediction="eps")
