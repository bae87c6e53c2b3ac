"""A published CLIP image tower as pure functions of its parameters."""

import dataclasses
from typing import Any

from flax import nnx
from flax.traverse_util import unflatten_dict
from jaxtyping import Array, Float

from uvit_jax.errors import UserError
from uvit_jax.interop.clip_files import HUB_FOLDERS, OPEN_CLIP_FOLDERS, find_tower
from uvit_jax.interop.clip_vision_layouts import (
    ANCHORS,
    PREPROCESSOR,
    VISUAL_PROJECTION,
    hub_vision_names,
    our_vision_arrays,
    read_vision_config,
)
from uvit_jax.interop.layout import graphdef_of
from uvit_jax.interop.state_dict import StateDict, sha256_of
from uvit_jax.interop.weights_file import read_arrays
from uvit_jax.models.frozen.clip_vision import CLIPVision, CLIPVisionConfig, Images


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class ImageEncoder:
    """A CLIP image tower, as pure functions of its parameters.

    Attributes:
      name: the name it was opened by.
      sha256: of all that its embeddings depend on: heads, activation, mean and std of
        pixels, and the arrays, name by name, as float32 in our layout: the same for every file of
        the same weights.
      config: the architecture and the preprocessing of images.
      params: float32 NumPy arrays in nested dicts, a plain tree.
      graphdef: the network: `nnx.merge(graphdef, params)` is the model.
    """

    name: str
    sha256: str
    config: CLIPVisionConfig
    params: dict[str, Any] = dataclasses.field(repr=False)
    graphdef: nnx.GraphDef = dataclasses.field(repr=False)

    def embed(self, params: Any, images: Images) -> Float[Array, "b p"]:
        """Embeddings of RGB images, uint8 `[b, h, w, 3]`: float32, not normalized.

        Call it under `jit`.

        The images may have any size, the same for all; `preprocess` resizes, crops and normalizes
        them.

        Raises:
          UserError: for images that are not uint8, not of three channels, or without pixels.
        """
        return nnx.merge(self.graphdef, params).embed(images)


def open_image_encoder(name: str, *, dtype: str = "float32") -> ImageEncoder:
    """The published image tower of this name.

    Args:
      name: a path, or a name on the Hugging Face hub (see `find_model`), of one of
        - a folder of a CLIP or of its image tower with the projection: `model.safetensors` or
          `pytorch_model.bin`, `config.json`, and, where pixels are normalized in another way than
          OpenAI's, `preprocessor_config.json` ("openai/clip-vit-large-patch14"; also that file of
          weights);
        - a folder of OpenCLIP's: `open_clip_model.safetensors` or `open_clip_pytorch_model.bin`,
          and `open_clip_config.json` (also that file of weights).
      dtype: dtype the tower computes in; parameters and results are float32.

    Raises:
      UserError: for a name that leads to none of these, weights of another network than the config
        says or without an image tower, or images that are prepared in another way than by a bicubic
        filter and a crop.
    """
    folders = (*HUB_FOLDERS, *OPEN_CLIP_FOLDERS)
    config_path, weights_path = find_tower(name, folders, "image", beside=(PREPROCESSOR,))
    config = read_vision_config(config_path, dtype)
    try:
        state_dict = hub_vision_names(read_arrays(weights_path, ANCHORS))
        if VISUAL_PROJECTION in state_dict and state_dict[VISUAL_PROJECTION].ndim == 2:
            config = dataclasses.replace(config, projection=len(state_dict[VISUAL_PROJECTION]))
        return _image_encoder(name, config, state_dict)
    except UserError as error:
        raise UserError(f"{weights_path}: {error} (by {config_path.name} beside it)") from None


def _image_encoder(name: str, config: CLIPVisionConfig, state_dict: StateDict) -> ImageEncoder:
    arrays = our_vision_arrays(state_dict, config)
    head = (
        f"heads {config.heads}, activation {config.activation}, mean {config.mean}, std "
        f"{config.std}\n"
    )
    return ImageEncoder(
        name=name,
        sha256=sha256_of(arrays, head),
        config=config,
        params=unflatten_dict(arrays),
        graphdef=graphdef_of(lambda rngs: CLIPVision(config, rngs=rngs)),
    )
