import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from uvit_jax.errors import UserError
from uvit_jax.models.frozen.inception import WIDTHS, Inception, preprocess
from uvit_jax.models.frozen.inception_blocks import average_pool, halving_max_pool, max_pool
from uvit_jax.models.frozen.resize import RESIZES
from uvit_jax.models.init_keys import InitKeys


@pytest.fixture(scope="module")
def shapes():
    """The network without its arrays."""
    return nnx.eval_shape(lambda: Inception(rngs=InitKeys(0)))


def random_images(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_pixels_of_an_image_of_the_right_size_are_only_scaled():
    images = random_images(2, 299, 299, 3)
    pixels = images.astype(np.float64)
    np.testing.assert_allclose(
        preprocess(images, "pytorch-fid"), 2 * (pixels / 255) - 1, atol=5e-7, rtol=0
    )
    for resize in ("tf1", "clean"):
        np.testing.assert_array_equal(preprocess(images, resize), (pixels - 128) / 128)


def test_clean_resizing_is_pillow_on_floats_clipped_and_not_rounded():
    # Edges, beside which the kernel overshoots.
    images = np.where(random_images(1, 64, 48, 3) < 128, 0, 255).astype(np.uint8)
    planes = [Image.fromarray(images[0, :, :, c].astype(np.float32), mode="F") for c in range(3)]
    resized = np.stack(
        [np.asarray(p.resize((299, 299), Image.Resampling.BICUBIC)) for p in planes], axis=-1
    )
    assert resized.min() < -10
    assert resized.max() > 265
    expected = (np.clip(resized, 0, 255) - 128) / 128
    np.testing.assert_allclose(preprocess(images, "clean")[0], expected, atol=1e-5, rtol=0)


def test_the_ways_to_resize_differ_where_they_should():
    images = random_images(1, 900, 700, 3)
    small = {resize: np.asarray(preprocess(images, resize)) for resize in RESIZES}
    assert {resize: x.shape for resize, x in small.items()} == dict.fromkeys(
        RESIZES, (1, 299, 299, 3)
    )
    # Without antialiasing noise stays as loud as it is; with it, it is averaged.
    assert small["clean"].std() < 0.6 * small["pytorch-fid"].std()
    assert np.abs(small["tf1"] - small["pytorch-fid"]).max() > 0.3


@pytest.mark.parametrize("resize", RESIZES)
def test_floats_and_grey_images_are_what_their_pixels_are(resize):
    images = random_images(2, 28, 20, 1)
    expected = np.asarray(preprocess(np.repeat(images, 3, axis=3), resize))
    assert expected.dtype == np.float32
    np.testing.assert_allclose(preprocess(images, resize), expected, atol=1e-6, rtol=0)
    floats = images.astype(np.float32) / np.float32(255)
    np.testing.assert_allclose(preprocess(floats, resize), expected, atol=1e-6, rtol=0)
    np.testing.assert_allclose(
        jax.jit(lambda x: preprocess(x, resize))(jnp.asarray(images)), expected, atol=1e-6, rtol=0
    )


def test_another_way_to_resize_and_other_channels_are_refused():
    with pytest.raises(
        UserError, match="resize is 'pil', expected one of 'pytorch-fid', 'tf1', 'clean'"
    ):
        preprocess(random_images(1, 8, 8, 3), "pil")
    with pytest.raises(
        UserError, match=r"images have 4 channels, expected 3 \(RGB\) or 1 \(grey\)"
    ):
        preprocess(random_images(1, 8, 8, 4), "clean")


def test_average_pools_do_not_count_the_padding():
    np.testing.assert_allclose(
        average_pool(jnp.ones((1, 4, 5, 2))), np.ones((1, 4, 5, 2)), atol=1e-6
    )
    x = jnp.arange(12.0).reshape(1, 3, 4, 1)
    pooled = average_pool(x)[0, :, :, 0]
    np.testing.assert_allclose(pooled[0, 0], np.mean([0, 1, 4, 5]))
    np.testing.assert_allclose(pooled[1, 1], np.mean(x[0, :, :3]))


def test_maximum_pools_keep_or_halve_the_size():
    x = jnp.arange(25.0).reshape(1, 5, 5, 1) - 30  # less than the zeros of a padding that counted
    below = np.minimum(
        np.arange(5) + 1, 4
    )  # the largest pixel around is the one below on the right
    np.testing.assert_array_equal(max_pool(x)[0, :, :, 0], x[0, below[:, None], below, 0])
    np.testing.assert_array_equal(halving_max_pool(x)[0, :, :, 0], [[-18, -16], [-8, -6]])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_features_have_their_widths_and_are_float32(dtype):
    def features(x):
        return Inception(dtype, rngs=InitKeys(0))(x)

    out = jax.eval_shape(features, jnp.zeros((2, 299, 299, 3)))
    assert {name: feature.shape for name, feature in out.items()} == {
        name: (2, w) for name, w in WIDTHS.items()
    }
    assert {feature.dtype for feature in out.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize(("name", "convolutions"), [("block64", 3), ("block192", 5)])
def test_what_is_not_asked_for_is_not_computed(name, convolutions, shapes):
    graphdef, params = nnx.split(shapes)

    def feature(params, x):
        return nnx.merge(graphdef, params)(x)[name]

    images = jax.ShapeDtypeStruct((1, 299, 299, 3), np.float32)
    program = jax.jit(feature).lower(params, images).compile().as_text()
    assert len(re.findall(r" convolution\(|custom-call.*conv", program)) == convolutions


def test_float32_is_asked_for_at_full_precision(shapes):
    graphdef, params = nnx.split(shapes)

    def features(params, images):
        return nnx.merge(graphdef, params)(preprocess(images, "clean"))

    with jax.default_matmul_precision("default"):
        jaxpr = str(
            jax.make_jaxpr(features)(params, jax.ShapeDtypeStruct((1, 32, 32, 3), np.uint8))
        )
    precisions = re.findall(r"precision=(.*)", jaxpr)
    # 94 convolutions (the compiler sees that one of them is there twice), the classes and the
    # resizing.
    assert len(precisions) == 95 + 1 + 2
    assert all("HIGHEST, Precision.HIGHEST" in precision for precision in precisions)


def test_images_of_another_size_are_refused(shapes):
    with pytest.raises(UserError, match=r"images are 256x256x3, expected 299x299x3$"):
        shapes(np.zeros((1, 256, 256, 3), np.float32))


@pytest.mark.parametrize("dtype", ["float16", "fp8"])
def test_another_dtype_is_refused(dtype):
    with pytest.raises(
        UserError, match=f"dtype is '{dtype}', expected one of 'float32', 'bfloat16'"
    ):
        Inception(dtype, rngs=InitKeys(0))
