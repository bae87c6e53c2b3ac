"""A published autoencoder as pure functions of its parameters, from any file it comes in."""

import dataclasses
from typing import Any

from flax import nnx
from flax.traverse_util import unflatten_dict
from jaxtyping import Array, Float

from uvit_jax.errors import UserError
from uvit_jax.interop.autoencoder_files import AutoencoderFiles, find_autoencoder, read_config
from uvit_jax.interop.autoencoder_kl_layout import read_kl
from uvit_jax.interop.autoencoder_tiny_layout import is_tiny, read_tiny
from uvit_jax.interop.layout import graphdef_of
from uvit_jax.interop.state_dict import Arrays, StateDict, sha256_of
from uvit_jax.interop.weights_file import read_arrays
from uvit_jax.models.frozen.autoencoder import AutoencoderConfig, AutoencoderKL
from uvit_jax.models.frozen.autoencoder_layers import AnyArray
from uvit_jax.models.frozen.tiled_decoding import decode_tiled
from uvit_jax.models.frozen.tiny_autoencoder import TinyAutoencoder, TinyAutoencoderConfig

# Stable Diffusion's: CompVis files hold none, and diffusers takes it if config.json has none.
SCALE = 0.18215
# Every autoencoder has one of these arrays: KL in both layouts, TAESD in diffusers' and its own.
_ANCHORS = ("encoder.conv_in.weight", "encoder.layers.0.weight", "encoder.0.weight")


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Autoencoder:
    """A published autoencoder, as pure functions of its parameters.

    Attributes:
      name: the name it was opened by.
      sha256: of its encoder's arrays, name by name, as float32 in our layout: the same for every
        file of the same weights, and for autoencoders that differ in the decoder alone, whose
        latents are the same.
      has_variance: True if `encode` gives moments (KL), False if latents (TAESD family).
      scale: factor of the network's latents after `shift` is subtracted; None if the data's own
        statistics normalize them (TAESD family).
      shift: subtracted from the latents (Stable Diffusion 3's, Flux's).
      latent_channels: channels of the latents, half of those of moments.
      factor: pixels of the image per pixel of the latents, along each side.
      params: float32 NumPy arrays in nested dicts, a plain tree.
      graphdef: the network: `nnx.merge(graphdef, params)` is the model.
      tile: latent pixels along a side beyond which `decode` goes tile by tile.
      overlap: the least number of latent pixels that neighbouring tiles share.
    """

    name: str
    sha256: str
    has_variance: bool
    scale: float | None
    shift: float = 0.0
    latent_channels: int
    factor: int
    params: dict[str, Any] = dataclasses.field(repr=False)
    graphdef: nnx.GraphDef = dataclasses.field(repr=False)
    tile: int = 64
    overlap: int = 16

    def encode(self, params: Any, images: Float[AnyArray, "b h w c"]) -> Float[Array, "b i j m"]:
        """Moments or latents, float32, of images in [-1, 1].

        Moments are `[b, h/f, w/f, 2 z]`, mean, then logvar; latents are `[b, h/f, w/f, z]`.

        Args:
          params: `self.params`, or the same on devices.
          images: `[b, h, w, c]`.

        Raises:
          UserError: for another number of channels than the autoencoder's, or sides that are not
            multiples of f.
        """
        return nnx.merge(self.graphdef, params).encode(images)

    def decode(self, params: Any, z: Float[AnyArray, "b i j z"]) -> Float[Array, "b h w c"]:
        """Images `[b, f i, f j, c]`, float32, about [-1, 1], not clipped, of unscaled latents.

        Latents with a side beyond `tile` are decoded tile by tile (`decode_tiled`); call it under
        `jit`.

        Args:
          params: `self.params`, or the same on devices.
          z: latents `[b, i, j, z]`.

        Raises:
          UserError: for another number of channels than the autoencoder's.
        """
        return decode_tiled(
            nnx.merge(self.graphdef, params).decode, z, tile=self.tile, overlap=self.overlap
        )


def open_autoencoder(name: str, *, dtype: str = "float32") -> Autoencoder:
    """The published autoencoder of this name.

    Args:
      name: a path, or a name on the Hugging Face hub (see `find_model`), of one of
        - a CompVis file (`autoencoder_kl.pth`, `.ckpt`, or the same as `.safetensors`), or a whole
          Stable Diffusion's, of which its `first_stage_model.` is taken; or a folder with one such
          file;
        - a diffusers folder of an AutoencoderKL or AutoencoderTiny:
          `diffusion_pytorch_model.safetensors` or `.bin` and `config.json` (also that file of
          weights), or a pipeline's folder, with those in its `vae`; a variant (`.fp16.`,
          `.non_ema.`) where it is the only one;
        - a folder of the TAESD family: `*_encoder.pth` and `*_decoder.pth`, or `.safetensors` (also
          one of the two, where a folder has several).
      dtype: dtype the model computes in; parameters and results are float32.

    Raises:
      UserError: for a name that leads to none of these, weights of another network, or a
        config.json that says something else than the weights beside it.
    """
    files = find_autoencoder(name)
    # Before the weights, which may be large: a class that we don't have is refused at once.
    published = read_config(files.config) if files.config else None
    state_dict = _read(files)
    read = read_tiny if is_tiny(state_dict) else read_kl
    try:
        config, arrays = read(state_dict, dtype=dtype)
    except UserError as error:
        raise UserError(f"{files.weights[0]}: {error}") from None
    if published is not None:
        published.check(config)
    has_variance = isinstance(config, AutoencoderConfig)
    scale, shift = (published.scale, published.shift) if published else (None, 0.0)
    return Autoencoder(
        name=name,
        sha256=_sha256_of_encoder(arrays),
        has_variance=has_variance,
        scale=(scale or SCALE) if has_variance else None,
        shift=shift if has_variance else 0.0,
        latent_channels=config.z_channels,
        factor=config.factor,
        params=unflatten_dict(arrays),
        graphdef=_graphdef(config),
    )


def load_autoencoder(state_dict: StateDict, *, dtype: str = "float32") -> AutoencoderKL:
    """The KL autoencoder with these weights.

    Its architecture is read from their names and shapes.

    Args:
      state_dict: names to arrays (anything `np.asarray` takes) in the layout of CompVis
        (`autoencoder_kl.pth`) or diffusers (`diffusion_pytorch_model.safetensors`, with to_q or
        with query), `[out, in, kh, kw]`. Arrays under `loss.`, the discriminator of a training
        checkpoint, are left out, and its two counters of a moving average.
      dtype: dtype the model computes in.

    Raises:
      UserError: for weights of another network, an array missing, one too many, or one of another
        shape.
    """
    config, arrays = read_kl(state_dict, dtype=dtype)
    return nnx.merge(_graphdef(config), unflatten_dict(arrays))


def load_tiny_autoencoder(
    encoder_state: StateDict, decoder_state: StateDict, *, dtype: str = "float32"
) -> TinyAutoencoder:
    """The autoencoder of the TAESD family with these weights.

    Its architecture is read from their names and shapes.

    Args:
      encoder_state: the arrays of a `*_encoder.pth`, by name ("0.weight", "1.conv.0.weight", ...).
      decoder_state: the arrays of the `*_decoder.pth` beside it.
      dtype: dtype the model computes in.

    Raises:
      UserError: for weights of another network, an array missing, one too many, or one of another
        shape; the names in the sentence have `encoder.` or `decoder.` in front.
    """
    config, arrays = read_tiny(_in_one(encoder_state, decoder_state), dtype=dtype)
    return nnx.merge(_graphdef(config), unflatten_dict(arrays))


def _read(files: AutoencoderFiles) -> StateDict:
    if len(files.weights) == 1:
        return read_arrays(files.weights[0], _ANCHORS)
    return _in_one(*(read_arrays(path) for path in files.weights))


def _in_one(encoder_state: StateDict, decoder_state: StateDict) -> StateDict:
    """The arrays of both halves, `encoder.` or `decoder.` in front of their names."""
    states = {"encoder": encoder_state, "decoder": decoder_state}
    return {
        f"{part}.{name}": array for part, state in states.items() for name, array in state.items()
    }


def _graphdef(config: AutoencoderConfig | TinyAutoencoderConfig) -> nnx.GraphDef:
    if isinstance(config, AutoencoderConfig):
        return graphdef_of(lambda rngs: AutoencoderKL(config, rngs=rngs))
    return graphdef_of(lambda rngs: TinyAutoencoder(config, rngs=rngs))


def _sha256_of_encoder(arrays: Arrays) -> str:
    """The hash of the arrays that latents depend on."""
    return sha256_of(
        {path: array for path, array in arrays.items() if path[0] in ("encoder", "quant_conv")}
    )
