import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from uvit_jax.models.embeddings import (
    LinearPatchEmbed,
    patchify,
    sincos_2d,
    timestep_embedding,
    unpatchify,
)


def test_time_is_the_cosines_then_the_sines_of_falling_frequencies():
    t = np.array([0.0, 1.0, 412.0, 999.5])
    frequencies = np.exp(-np.log(10000.0) * np.arange(32) / 32)
    expected = np.concatenate(
        [np.cos(np.outer(t, frequencies)), np.sin(np.outer(t, frequencies))], axis=1
    )
    embedding = timestep_embedding(jnp.asarray(t, jnp.float32), 64)
    assert embedding.dtype == jnp.float32
    # Angles up to 1000 have a spacing of 6e-5 in float32.
    np.testing.assert_allclose(embedding, expected, atol=1e-4, rtol=0)
    assert np.array_equal(embedding[0], [1.0] * 32 + [0.0] * 32)


def test_whole_numbers_are_times_too():
    assert np.array_equal(
        timestep_embedding(jnp.array([7, 1000]), 8), timestep_embedding(jnp.array([7.0, 1000.0]), 8)
    )


def test_an_odd_width_ends_in_a_zero():
    embedding = timestep_embedding(jnp.array([3.0]), 7)
    assert np.array_equal(embedding[:, :6], timestep_embedding(jnp.array([3.0]), 6))
    assert np.array_equal(embedding[:, 6], [0.0])


def test_patches_run_row_by_row_and_so_do_their_pixels_channel_fastest():
    x = jnp.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3).astype(jnp.float32)
    patches = patchify(x, 2)
    assert patches.shape == (2, 6, 12)
    for row in range(2):
        for column in range(3):
            patch = x[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            for i, pixel in enumerate(
                (patch[:, 0, 0], patch[:, 0, 1], patch[:, 1, 0], patch[:, 1, 1])
            ):
                assert np.array_equal(patches[:, 3 * row + column, 3 * i : 3 * i + 3], pixel)


@pytest.mark.parametrize(("height", "width", "patch_size"), [(4, 6, 2), (9, 3, 3), (2, 5, 1)])
def test_unpatchify_undoes_patchify_for_images_that_are_not_square(height, width, patch_size):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, height, width, 3)).astype(np.float32))
    grid = (height // patch_size, width // patch_size)
    assert np.array_equal(unpatchify(patchify(x, patch_size), grid, patch_size), x)


def test_the_linear_patch_embedding_is_a_strided_convolution_with_the_same_weights():
    embed = LinearPatchEmbed(
        4, 3, 16, dtype=jnp.float32, rngs=nnx.Rngs(jax.random.key(0, impl="rbg"))
    )
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 8, 12, 3)).astype(np.float32))
    kernel = embed.proj.kernel[...].reshape(4, 4, 3, 16)
    expected = jax.lax.conv_general_dilated(
        x, kernel, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    tokens = embed(x)
    assert tokens.shape == (2, 6, 16)
    np.testing.assert_allclose(
        tokens, (expected + embed.proj.bias[...]).reshape(2, 6, 16), atol=1e-5, rtol=0
    )


def test_fixed_positions_tell_the_row_in_one_half_and_the_column_in_the_other():
    table = sincos_2d((3, 5), 8).reshape(3, 5, 8)
    assert table.dtype == np.float32
    assert np.all(table[:, :1, :4] == table[:, :, :4])
    assert np.all(table[:1, :, 4:] == table[:, :, 4:])
    for place in range(3):
        angles = place * np.array([1.0, 0.01])
        expected = np.concatenate([np.sin(angles), np.cos(angles)])
        np.testing.assert_allclose(table[place, 0, :4], expected, atol=1e-6)
        np.testing.assert_allclose(table[0, place, 4:], expected, atol=1e-6)
    assert len(np.unique(table.reshape(15, 8), axis=0)) == 15
