"""FID's Inception-v3 (TensorFlow's of 2015-12-05, arXiv:1512.00567): images to features.

It differs from torchvision's network of that name: average pools don't count the padding, the last
block pools by maximum, there are 1008 classes, and no auxiliary head. BatchNorm (eps 1e-3) is
folded into the convolutions.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from uvit_jax.errors import UserError, check_choice
from uvit_jax.models.frozen.autoencoder_layers import AnyArray
from uvit_jax.models.frozen.inception_blocks import (
    ConvReLU,
    InceptionA,
    InceptionB,
    InceptionC,
    InceptionD,
    InceptionE,
    average_pool,
    global_mean,
    halving_max_pool,
    max_pool,
)
from uvit_jax.models.frozen.resize import RESIZES
from uvit_jax.models.frozen.resize import resize as resize_images
from uvit_jax.models.uvit_config import DTYPES

SIZE = 299  # side of the input images
CLASSES = 1008
BATCH_NORM_EPS = 1e-3

# The features that `Inception` gives, and their widths.
WIDTHS = {
    "pool2048": 2048,
    "spatial2023": 2023,
    "logits1008": CLASSES,
    "preaux768": 768,
    "block192": 192,
    "block64": 64,
}
_SPATIAL_CHANNELS = 7  # of the 192 of mixed_6d.branch1x1, on 17x17 pixels

Images = (
    UInt8[Array, "b h w c"]
    | UInt8[np.ndarray, "b h w c"]
    | Float[Array, "b h w c"]
    | Float[np.ndarray, "b h w c"]
)


def preprocess(images: Images, resize: str) -> Float[Array, "b 299 299 3"]:
    """The network's input, float32, of images `[b, h, w, 3]` or, grey, `[b, h, w, 1]`.

    Args:
      images: of any size, uint8 or in [0, 1].
      resize: the library whose resizing is used, which moves FID by tenths:
        - "pytorch-fid": bilinear without antialiasing, then to [-1, 1];
        - "tf1": TensorFlow 1's bilinear (the original FID, ADM's evaluator, torch-fidelity), then
        (x - 128) / 128;
        - "clean": clean-fid's (arXiv:2104.11222), bicubic with antialiasing and clipped, then (x -
        128) / 128.

    Raises:
      UserError: for another `resize`, or another number of channels.
    """
    check_choice("resize", resize, tuple(RESIZES))
    if images.shape[3] not in (1, 3):
        raise UserError(f"images have {images.shape[3]} channels, expected 3 (RGB) or 1 (grey)")
    images = jnp.asarray(images)
    x = (
        images.astype(jnp.float32)
        if images.dtype == jnp.uint8
        else 255 * images.astype(jnp.float32)
    )
    x = resize_images(x, (SIZE, SIZE), RESIZES[resize])
    if resize == "clean":
        # The kernel overshoots beside edges. Not rounded: clean-fid resizes floats.
        x = jnp.clip(x, 0, 255)
    x = x / 127.5 - 1 if resize == "pytorch-fid" else (x - 128) / 128
    return jnp.broadcast_to(x, (*x.shape[:3], 3))


class Inception(nnx.Module):
    """Images as `preprocess` gives them to the features of `WIDTHS`.

    A module's name is the published one in lower case (`mixed_6d.branch7x7_2`).

    Args:
      dtype: dtype of the convolutions, "float32" (at full precision) or "bfloat16";
        parameters, the means over pixels and the logits are float32 either way.
    """

    def __init__(self, dtype: str = "float32", *, rngs: nnx.Rngs):
        check_choice("dtype", dtype, DTYPES)
        options: dict[str, Any] = {"dtype": jnp.dtype(dtype), "rngs": rngs}
        self.conv2d_1a_3x3 = ConvReLU(3, 32, 3, strides=2, padding="VALID", **options)
        self.conv2d_2a_3x3 = ConvReLU(32, 32, 3, padding="VALID", **options)
        self.conv2d_2b_3x3 = ConvReLU(32, 64, 3, **options)
        self.conv2d_3b_1x1 = ConvReLU(64, 80, 1, **options)
        self.conv2d_4a_3x3 = ConvReLU(80, 192, 3, padding="VALID", **options)
        self.mixed_5b = InceptionA(192, 32, **options)
        self.mixed_5c = InceptionA(256, 64, **options)
        self.mixed_5d = InceptionA(288, 64, **options)
        self.mixed_6a = InceptionB(288, **options)
        self.mixed_6b = InceptionC(768, 128, **options)
        self.mixed_6c = InceptionC(768, 160, **options)
        self.mixed_6d = InceptionC(768, 160, **options)
        self.mixed_6e = InceptionC(768, 192, **options)
        self.mixed_7a = InceptionD(768, **options)
        self.mixed_7b = InceptionE(1280, pool=average_pool, **options)
        self.mixed_7c = InceptionE(2048, pool=max_pool, **options)
        # The Inception Score leaves out the bias of the published layer.
        self.fc = nnx.Linear(
            2048, CLASSES, use_bias=False, precision=jax.lax.Precision.HIGHEST, rngs=rngs
        )

    def __call__(self, x: Float[AnyArray, "b h w c"]) -> dict[str, Float[Array, "b d"]]:
        """Every feature of `WIDTHS`, float32; under `jit`, those that aren't returned cost nothing.

        Returns:
          "pool2048": the mean over pixels of the last block (FID); "logits1008": of the classes,
          without their bias (IS); "spatial2023": 7 channels of a layer on 17x17 pixels (sFID as ADM
          takes it, arXiv:2105.05233); "preaux768", "block192", "block64": means over pixels of
          earlier layers.

        Raises:
          UserError: for images that aren't 299x299x3.
        """
        if x.shape[1:] != (SIZE, SIZE, 3):
            raise UserError(
                f"images are {'x'.join(map(str, x.shape[1:]))}, expected {SIZE}x{SIZE}x3"
            )
        x = self.conv2d_2b_3x3(self.conv2d_2a_3x3(self.conv2d_1a_3x3(jnp.asarray(x))))
        block64 = x = halving_max_pool(x)
        block192 = x = halving_max_pool(self.conv2d_4a_3x3(self.conv2d_3b_1x1(x)))
        x = self.mixed_5d(self.mixed_5c(self.mixed_5b(x)))
        x = self.mixed_6c(self.mixed_6b(self.mixed_6a(x)))
        spatial = self.mixed_6d.branch1x1(x)[..., :_SPATIAL_CHANNELS]  # TensorFlow's mixed_6/conv:0
        preaux768 = x = self.mixed_6e(self.mixed_6d(x))
        pool2048 = global_mean(self.mixed_7c(self.mixed_7b(self.mixed_7a(x))))
        return {
            "pool2048": pool2048,
            "spatial2023": spatial.reshape(len(x), -1).astype(jnp.float32),
            "logits1008": self.fc(pool2048),
            "preaux768": global_mean(preaux768),
            "block192": global_mean(block192),
            "block64": global_mean(block64),
        }
