"""The image tower of CLIP (arXiv:2103.00020): 8-bit images to embeddings comparable with texts'."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Num

from uvit_jax.errors import UserError, check_choice
from uvit_jax.models.attention import Attention
from uvit_jax.models.embeddings import patchify
from uvit_jax.models.frozen.clip_layers import ACTIVATIONS, activate, layer_norm
from uvit_jax.models.frozen.resize import resize_matrix
from uvit_jax.models.uvit_config import DTYPES

Images = Num[Array, "b h w c"] | Num[np.ndarray, "b h w c"]
PerChannel = tuple[float, float, float]

CHANNELS = 3
# Statistics of OpenAI's training pixels, in [0, 1].
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class CLIPVisionConfig:
    """The architecture of a CLIP image tower and its preprocessing; defaults are OpenAI's ViT-L/14.

    Attributes:
      image_size: height and width of the images that the network sees.
      patch_size: height and width of a patch.
      width: width of every state.
      layers: number of blocks.
      heads: attention heads; head_dim = width / heads.
      mlp_ratio: hidden width of the MLP over `width`.
      activation: of the MLP, "quick_gelu" (OpenAI's) or "gelu" (OpenCLIP's), see `activate`.
      projection: width of the embedding that texts and images share.
      mean: subtracted from pixels in [0, 1], by channel (red, green, blue).
      std: divisor of the pixels after that.
      dtype: dtype of the matrix products; parameters, LayerNorm, softmax, the residual
        stream and the preparation of images are float32 either way.
    """

    image_size: int = 224
    patch_size: int = 14
    width: int = 1024
    layers: int = 24
    heads: int = 16
    mlp_ratio: int | float = 4
    activation: str = "quick_gelu"
    projection: int = 768
    mean: PerChannel = MEAN
    std: PerChannel = STD
    dtype: str = "float32"

    def __post_init__(self):
        check_choice("dtype", self.dtype, DTYPES)
        check_choice("activation", self.activation, ACTIVATIONS)
        for field in (
            "image_size",
            "patch_size",
            "width",
            "layers",
            "heads",
            "hidden_dim",
            "projection",
        ):
            if getattr(self, field) < 1:
                raise UserError(f"{field} is {getattr(self, field)}, expected at least 1")
        if self.width % self.heads:
            raise UserError(f"width is {self.width}, expected a multiple of heads = {self.heads}")
        if self.image_size % self.patch_size:
            raise UserError(
                f"image_size is {self.image_size}, expected a multiple of patch_size = "
                f"{self.patch_size}"
            )
        if min(self.std) <= 0:
            raise UserError(f"std is {self.std}, expected positive numbers")

    @property
    def hidden_dim(self) -> int:
        """Hidden width of the MLP."""
        return round(self.width * self.mlp_ratio)

    @property
    def tokens(self) -> int:
        """The class token and those of patches."""
        return 1 + (self.image_size // self.patch_size) ** 2


class CLIPVision(nnx.Module):
    """A pre-LN ViT, a LayerNorm before its blocks, another on the last class token; projected."""

    def __init__(self, config: CLIPVisionConfig, rngs: nnx.Rngs):
        self.config = config
        d, dtype = config.width, jnp.dtype(config.dtype)
        # These three standard deviations are CLIP's own; published weights replace all of them.
        scale = d**-0.5
        self.patch_embed = nnx.Linear(
            CHANNELS * config.patch_size**2, d, use_bias=False, dtype=dtype, rngs=rngs
        )
        self.class_embed = nnx.Param(scale * rngs.params.normal((d,)))
        self.pos_embed = nnx.Param(scale * rngs.params.normal((config.tokens, d)))
        self.pre_norm = layer_norm(d, rngs=rngs)
        self.blocks = nnx.List(ImageBlock(config, rngs=rngs) for _ in range(config.layers))
        self.post_norm = layer_norm(d, rngs=rngs)
        kernel_init = nnx.initializers.normal(scale)
        self.projection = nnx.Linear(
            d, config.projection, use_bias=False, kernel_init=kernel_init, dtype=dtype, rngs=rngs
        )

    def __call__(self, pixels: Float[Array, "b s s c"]) -> Float[Array, "b p"]:
        """The embeddings, float32, not normalized, of images that `preprocess` has prepared."""
        patches = self.patch_embed(patchify(pixels, self.config.patch_size)).astype(jnp.float32)
        class_token = jnp.broadcast_to(self.class_embed[...], (len(patches), 1, self.config.width))
        x = self.pre_norm(jnp.concatenate([class_token, patches], axis=1) + self.pos_embed)
        for block in self.blocks:
            x = block(x)
        return self.projection(self.post_norm(x[:, 0])).astype(jnp.float32)

    def embed(self, images: Images) -> Float[Array, "b p"]:
        """The embeddings, float32, not normalized, of RGB images in uint8 of any height and width.

        Raises:
          UserError: as `preprocess` does.
        """
        return self(preprocess(images, self.config))


class ImageBlock(nnx.Module):
    """x += attention(LN(x)); x += MLP(LN(x)), on a residual stream in float32."""

    def __init__(self, config: CLIPVisionConfig, *, rngs: nnx.Rngs):
        d, hidden, dtype = config.width, config.hidden_dim, jnp.dtype(config.dtype)
        self.norm1 = layer_norm(d, rngs=rngs)
        self.attn = Attention(d, config.heads, qkv_bias=True, dtype=dtype, rngs=rngs)
        self.norm2 = layer_norm(d, rngs=rngs)
        self.fc1 = nnx.Linear(d, hidden, dtype=dtype, rngs=rngs)
        self.fc2 = nnx.Linear(hidden, d, dtype=dtype, rngs=rngs)
        self.activation = config.activation

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(activate(self.fc1(self.norm2(x)), self.activation))


def preprocess(images: Images, config: CLIPVisionConfig) -> Float[Array, "b s s c"]:
    """The network's input, float32 `[b, image_size, image_size, 3]`, of RGB images in uint8.

    Equals OpenAI's transform and transformers' CLIPImageProcessor: the shorter side of
    `[b, h, w, 3]` is resized to `image_size` by Pillow's bicubic filter, the middle is cropped (if
    it is between pixels, up or left of it, as transformers does), and pixels in [0, 1] are
    normalized. Resizing gives exactly Pillow's levels, along the width first. Pillow 13 starts with
    the height if an image is more than twice as high as wide; earlier ones don't.

    Raises:
      UserError: for images that are not uint8, not of three channels, or without pixels.
    """
    if images.dtype != np.uint8:
        raise UserError(f"the images are {images.dtype}, expected uint8")
    _, height, width, channels = images.shape
    if channels != CHANNELS or height < 1 or width < 1:
        raise UserError(
            f"the images have shape {tuple(images.shape)}, expected [b, h, w, {CHANNELS}]"
        )
    x = jnp.asarray(images).astype(jnp.float32)
    size, short = config.image_size, min(height, width)
    x = _resize_and_crop("now,bhwc->nbhoc", x, width, size * width // short, size)
    x = _resize_and_crop("noh,bhwc->nbowc", x, height, size * height // short, size)
    return (x / 255 - jnp.asarray(config.mean)) / jnp.asarray(config.std)


def _resize_and_crop(
    product: str, x: Float[Array, "b h w c"], before: int, after: int, size: int
) -> Float[Array, "b i j c"]:
    """Levels 0 to 255 resized along one side from `before` to `after` pixels; the middle `size`.

    Computed as Pillow does, on integers: weights are multiples of 2^-22, sums are rounded half up.
    """
    start = (after - size) // 2
    weights = resize_matrix(before, after, "bicubic_antialias")[start : start + size]
    weights = np.copysign(np.floor(np.abs(weights) * 2**22 + 0.5), weights)
    # In two parts of 11 bits, whose products with levels, and their sums, are exact in float32.
    high = np.rint(weights / 2**11)
    halves = jnp.asarray(np.stack([high, weights - high * 2**11]), jnp.float32)
    sums = jnp.einsum(product, halves, x, precision=jax.lax.Precision.HIGHEST).astype(jnp.int32)
    levels = (sums[0] * 2**11 + sums[1] + 2**21) >> 22
    return jnp.clip(levels, 0, 255).astype(jnp.float32)
