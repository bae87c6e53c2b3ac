import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from uvit_jax.errors import UserError
from uvit_jax.models.frozen.autoencoder import AutoencoderConfig, AutoencoderKL
from uvit_jax.models.frozen.tiled_decoding import decode_tiled
from uvit_jax.models.frozen.tiny_autoencoder import TinyAutoencoder, TinyAutoencoderConfig
from uvit_jax.models.init_keys import InitKeys


@pytest.mark.parametrize("shape", [(1, 20, 33, 2), (2, 7, 40, 2), (1, 17, 17, 2)])
def test_tiles_of_a_local_decoder_make_the_image_it_makes_of_the_whole(shape):
    def decode(z):
        return jnp.repeat(jnp.repeat(jnp.concatenate([z, z[..., :1] ** 2], -1), 4, 1), 4, 2)

    z = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    tiled = jax.jit(lambda z: decode_tiled(decode, z, tile=16, overlap=5))(z)
    np.testing.assert_allclose(tiled, decode(z), atol=1e-5)


def test_overlapping_tiles_are_blended_linearly():
    # Each tile becomes a flat image of its own mean: 0 for the left one, 8 for the right one, which
    # starts 8 later.
    def decode(z):
        return jnp.broadcast_to(
            z.mean((1, 2), keepdims=True), (1, 2 * z.shape[1], 2 * z.shape[2], 1)
        )

    z = np.broadcast_to(np.arange(24, dtype=np.float32) - 7.5, (1, 4, 24))[..., None]
    row = decode_tiled(decode, z, tile=16, overlap=8)[0, 3, :, 0]
    blend = 8 * (np.arange(16) + 0.5) / 16
    np.testing.assert_allclose(
        row, np.concatenate([np.zeros(16), blend, np.full(16, 8.0)]), atol=1e-5
    )


def test_one_tile_is_the_plain_decoding():
    z = np.random.default_rng(0).standard_normal((1, 6, 8, 4), dtype=np.float32)
    assert np.array_equal(decode_tiled(lambda z: z / z.std(), z, tile=8, overlap=2), z / jnp.std(z))


@pytest.mark.parametrize("channels", [None, 8], ids=["kl", "tiny"])
def test_tiles_of_an_autoencoder_make_an_image_of_the_whole_size(channels):
    def shape_of_image(z):
        if channels is None:
            config = AutoencoderConfig(channels=32, multipliers=(1, 1, 1, 1), num_res_blocks=1)
            return decode_tiled(AutoencoderKL(config, InitKeys(0)).decode, z, tile=5, overlap=2)
        model = TinyAutoencoder(TinyAutoencoderConfig(channels=channels), InitKeys(0))
        return decode_tiled(model.decode, z, tile=5, overlap=2)

    assert jax.eval_shape(shape_of_image, np.zeros((1, 6, 8, 4), np.float32)).shape == (
        1,
        48,
        64,
        3,
    )


@pytest.mark.parametrize("overlap", [0, 8, 9])
def test_an_overlap_that_leaves_nothing_of_a_tile_is_refused(overlap):
    with pytest.raises(UserError, match=f"overlap is {overlap}, expected 1 to 7"):
        decode_tiled(lambda z: z, np.zeros((1, 9, 9, 1), np.float32), tile=8, overlap=overlap)


@pytest.fixture(scope="module")
def small():
    config = AutoencoderConfig(channels=32, multipliers=(1, 1), num_res_blocks=1)
    # Shapes alone: what is refused is refused before anything is computed.
    return nnx.eval_shape(lambda: AutoencoderKL(config, InitKeys(0)))


@pytest.mark.parametrize("shape", [(1, 9, 8, 3), (1, 8, 9, 3), (1, 8, 8, 4)])
def test_images_of_another_shape_are_refused(small, shape):
    with pytest.raises(UserError, match="expected 3 channels and sides that are multiples of 2"):
        small.encode(np.zeros(shape, np.float32))


def test_latents_of_another_autoencoder_are_refused(small):
    with pytest.raises(UserError, match=r"latents are 4x4x32, expected 4 channels$"):
        small.decode(np.zeros((1, 4, 4, 32), np.float32))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channels": 48}, "channels is 48, expected a multiple of 32"),
        ({"multipliers": ()}, r"multipliers is \(\)"),
        ({"z_channels": 0}, "z_channels is 0, expected at least 1"),
        ({"dtype": "float64"}, "dtype is 'float64', expected one of"),
        ({"dtype": "fp8"}, "dtype is 'fp8', expected one of 'float32', 'bfloat16'"),
    ],
)
def test_a_config_that_means_no_network_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        AutoencoderConfig(**fields)


def test_a_tiny_autoencoder_computes_in_no_8_bits():
    with pytest.raises(UserError, match="dtype is 'fp8', expected one of 'float32', 'bfloat16'"):
        TinyAutoencoderConfig(dtype="fp8")
