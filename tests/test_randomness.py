"""Streams of random numbers: none shares its numbers with another, at no seed."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import norm

from uvit_jax.data.example_order import shuffled
from uvit_jax.diffusion.sampler import Sampler
from uvit_jax.diffusion.sampler_config import SamplerConfig
from uvit_jax.diffusion.schedules import VPLinear
from uvit_jax.randomness import Stream, seed_sequence, stream_key
from uvit_jax.training.step import Objective, draw


def test_every_stream_has_keys_of_its_own():
    assert len(Stream) == len(Stream.__members__)  # two of one value would be one stream
    keys = {
        tuple(jax.random.key_data(stream_key(seed, stream)).tolist())
        for stream in Stream
        for seed in range(5)
    }
    assert len(keys) == 5 * len(Stream)
    words = {
        int(seed_sequence(seed, s, 0).generate_state(1)[0]) for s in Stream for seed in range(5)
    }
    assert len(words) == 5 * len(Stream)


def test_a_training_step_and_a_sample_of_the_same_number_draw_other_noise():
    """The key of step i's times was that of sample i's initial noise."""
    shape, images = (4, 4, 1), jnp.zeros((1, 4, 4, 1))
    sampler = Sampler(
        lambda params, x, t, c: x, VPLinear(), shape, config=SamplerConfig(solver="ddim", steps=1)
    )
    x_T = np.asarray(sampler(None, seed=0, indices=np.arange(3))).reshape(3, 16)
    for i in range(3):
        key = jax.random.fold_in(stream_key(0, Stream.STEP), i)
        _, noise, _ = draw(Objective(VPLinear()), images, None, key)
        times, _, _ = draw(Objective(VPLinear()), jnp.zeros((16, 4, 4, 1)), None, key)
        for drawn in (np.ravel(noise), norm.ppf(1 - np.asarray(times, np.float64))):
            assert abs(np.corrcoef(x_T[i], drawn)[0, 1]) < 0.9


def test_no_seed_has_the_epochs_of_another():
    size = 50
    epochs = {
        tuple(shuffled(np.arange(epoch * size, (epoch + 1) * size), size, seed).tolist())
        for seed in range(4)
        for epoch in range(4)
    }
    assert len(epochs) == 16
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
