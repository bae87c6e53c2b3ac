import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from uvit_jax.errors import UserError
from uvit_jax.models.frozen.clip_vision import CLIPVision, CLIPVisionConfig, preprocess
from uvit_jax.models.init_keys import InitKeys

SMALL = CLIPVisionConfig(
    image_size=24, patch_size=8, width=32, layers=2, heads=4, mlp_ratio=2, projection=8
)
SIZES = [
    (24, 24),
    (32, 32),
    (17, 17),
    (40, 24),
    (24, 41),
    (61, 37),
    (9, 50),
    (200, 133),
    (1, 3),
    (129, 130),
]


def images(b, h, w, seed=0):
    """Noise, which has every sharp edge there is."""
    return np.random.default_rng(seed).integers(0, 256, (b, h, w, 3), dtype=np.uint8)


def shapes(config):
    return nnx.split(nnx.eval_shape(lambda: CLIPVision(config, InitKeys(0))))


def levels(pixels, config):
    """Prepared images back as the levels 0 to 255 that they were."""
    return (np.asarray(pixels, np.float64) * config.std + config.mean) * 255


def prepared_by_pillow(image, size):
    h, w, _ = image.shape
    after = (int(size * w / min(h, w)), int(size * h / min(h, w)))
    resized = np.asarray(Image.fromarray(image).resize(after, Image.Resampling.BICUBIC))
    top, left = (resized.shape[0] - size) // 2, (resized.shape[1] - size) // 2
    return resized[top : top + size, left : left + size]


@pytest.fixture(scope="module")
def params():
    """Weights by which an embedding depends on every pixel."""
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda a: 0.3 * rng.standard_normal(a.shape, np.float32), nnx.to_pure_dict(shapes(SMALL)[1])
    )


@pytest.fixture(scope="module")
def embed(params):
    graphdef, _ = shapes(SMALL)
    call = jax.jit(lambda x: nnx.merge(graphdef, params).embed(x))
    return lambda x: np.asarray(call(x))


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_images_are_prepared_as_by_pillow(height, width):
    x = images(4, height, width)
    pixels = jax.jit(preprocess, static_argnums=1)(x, SMALL)
    assert pixels.dtype == jnp.float32
    expected = np.stack([prepared_by_pillow(image, 24) for image in x])
    np.testing.assert_allclose(levels(pixels, SMALL), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(256, 256), (64, 64), (480, 640)])
def test_images_of_common_sizes_are_prepared_as_by_pillow(height, width):
    config = CLIPVisionConfig()
    x = images(2, height, width)
    x[1] = np.asarray(
        Image.fromarray(x[1, :5, :5]).resize((width, height), Image.Resampling.BICUBIC)
    )  # a smooth one
    pixels = jax.jit(preprocess, static_argnums=1)(x, config)
    expected = np.stack([prepared_by_pillow(image, 224) for image in x])
    np.testing.assert_allclose(levels(pixels, config), expected, atol=1e-3, rtol=0)


def test_pixels_are_normalized_by_channel():
    config = dataclasses.replace(SMALL, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0))
    x = np.broadcast_to(np.array([255, 0, 51], np.uint8), (1, 30, 50, 3))
    np.testing.assert_allclose(
        preprocess(x, config), np.broadcast_to([1, -1, 0.1], (1, 24, 24, 3)), atol=1e-6
    )


def test_an_embedding_depends_on_each_patch_of_its_image_and_where_it_is(embed):
    x = images(11, 24, 24)
    x[1:] = x[0]
    x[10] = np.roll(x[0], 8, axis=1)
    for i, (row, column) in enumerate(np.ndindex(3, 3), start=1):
        patch = x[i, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        patch[...] = 255 - patch
    embeddings = embed(x)
    distances = np.abs(embeddings[:, None] - embeddings).max(axis=-1)
    assert distances[~np.eye(11, dtype=bool)].min() > 1e-3
    np.testing.assert_allclose(embed(x[::-1]), embeddings[::-1], atol=1e-6, rtol=1e-6)


def test_bfloat16_is_close_to_float32_and_comes_out_as_float32(params, embed):
    graphdef, _ = shapes(dataclasses.replace(SMALL, dtype="bfloat16"))
    x = images(4, 30, 24)
    embeddings, expected = jax.jit(nnx.merge(graphdef, params).embed)(x), embed(x)
    assert embeddings.dtype == jnp.float32
    error = np.sqrt(np.mean((embeddings - expected) ** 2) / np.mean(expected**2))
    assert 1e-4 < error < 0.03


def test_parameters_are_float32_whatever_is_computed_in():
    _, state = shapes(dataclasses.replace(SMALL, dtype="bfloat16"))
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype(jnp.float32)}


def test_the_default_is_vit_l_14():
    _, state = shapes(CLIPVisionConfig())
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == 303_966_208


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((1, 24, 24, 3), np.float32), "the images are float32, expected uint8$"),
        (
            np.zeros((1, 24, 24, 1), np.uint8),
            r"the images have shape \(1, 24, 24, 1\), expected \[b, h, w, 3\]$",
        ),
        (np.zeros((1, 3, 24, 24), np.uint8), r"the images have shape \(1, 3, 24, 24\), expected"),
        (np.zeros((1, 0, 24, 3), np.uint8), r"the images have shape \(1, 0, 24, 3\), expected"),
    ],
)
def test_arrays_that_are_not_images_are_refused(x, message):
    with pytest.raises(UserError, match=message):
        preprocess(x, SMALL)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"activation": "relu"}, "activation is 'relu', expected one of"),
        ({"dtype": "float16"}, "dtype is 'float16', expected one of"),
        ({"dtype": "fp8"}, "dtype is 'fp8', expected one of 'float32', 'bfloat16'"),
        ({"heads": 7}, "width is 1024, expected a multiple of heads = 7"),
        ({"patch_size": 15}, "image_size is 224, expected a multiple of patch_size = 15"),
        ({"layers": 0}, "layers is 0, expected at least 1"),
        ({"projection": 0}, "projection is 0, expected at least 1"),
        ({"std": (0.5, 0.0, 0.5)}, r"std is \(0.5, 0.0, 0.5\), expected positive numbers"),
    ],
)
def test_a_config_that_means_no_tower_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        CLIPVisionConfig(**fields)
