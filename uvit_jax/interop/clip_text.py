"""A published CLIP text tower as pure functions of its parameters."""

import dataclasses
import zlib
from typing import Any

import numpy as np
from flax import nnx
from flax.traverse_util import unflatten_dict
from jaxtyping import Array, Float

from uvit_jax.errors import UserError
from uvit_jax.interop.clip_files import HUB_FOLDERS, OPEN_CLIP_FOLDERS, find_tower
from uvit_jax.interop.clip_text_layouts import (
    ANCHORS,
    PROJECTION,
    hub_names,
    our_arrays,
    read_config,
    text_layout,
)
from uvit_jax.interop.layout import graphdef_of
from uvit_jax.interop.state_dict import StateDict, sha256_of
from uvit_jax.interop.tokenizer import Tokenizer
from uvit_jax.interop.weights_file import read_arrays
from uvit_jax.models.frozen.clip_text import CLIPText, CLIPTextConfig, TokenIds

RANDOM = "random:"

# A tower's config and weights in a published folder, the preferred first.
_FOLDERS = (
    *HUB_FOLDERS,
    *(tuple(f"text_encoder/{file}" for file in files) for files in HUB_FOLDERS),
    *OPEN_CLIP_FOLDERS,
)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class TextEncoder:
    """A CLIP text tower, as pure functions of its parameters.

    Attributes:
      name: the name it was opened by; "random:" and a seed for random weights.
      sha256: of all that its states depend on: heads, activation, and the arrays but for the
        projection, name by name, as float32 in our layout: the same for every file of the same
        weights.
      config: the architecture.
      params: float32 NumPy arrays in nested dicts, a plain tree.
      graphdef: the network: `nnx.merge(graphdef, params)` is the model.
    """

    name: str
    sha256: str
    config: CLIPTextConfig
    params: dict[str, Any] = dataclasses.field(repr=False)
    graphdef: nnx.GraphDef = dataclasses.field(repr=False)

    def encode(self, params: Any, token_ids: TokenIds) -> Float[Array, "b l d"]:
        """Last hidden states, after the final LayerNorm, float32; call it under `jit`.

        An id outside the vocabulary gives NaN for the rest of its text.

        Raises:
          UserError: for more tokens to a text than `config.context_length`.
        """
        return nnx.merge(self.graphdef, params)(token_ids)

    def embed(self, params: Any, token_ids: TokenIds) -> Float[Array, "b p"]:
        """The texts' embeddings in the space of images, float32, not normalized.

        Call it under `jit`.

        Raises:
          UserError: for weights without the projection, as a diffusion model's own are, and as
            `encode` does.
        """
        return nnx.merge(self.graphdef, params).embed(token_ids)

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Raises a UserError unless the tower has a row for each id, and room for each text."""
        for what, theirs, ours in (
            ("tokens", tokenizer.vocab_size, self.config.vocab_size),
            ("tokens to a text", tokenizer.context_length, self.config.context_length),
        ):
            if theirs > ours:
                raise UserError(
                    f"the tokenizer {tokenizer.name} has {theirs} {what}, expected at most the "
                    f"{ours} of the text encoder {self.name}"
                )


def open_text_encoder(name: str, *, dtype: str = "float32") -> TextEncoder:
    """The published text tower of this name.

    Args:
      name: a path, or a name on the Hugging Face hub (see `find_model`), of one of
        - a folder of a CLIP or of its text tower alone: `model.safetensors` or `pytorch_model.bin`,
          and `config.json` ("openai/clip-vit-large-patch14"; also that file of weights);
        - a diffusion pipeline's folder, with those in its `text_encoder`;
        - a folder of OpenCLIP's: `open_clip_model.safetensors` or `open_clip_pytorch_model.bin`,
          and `open_clip_config.json` (also that file of weights);
        or "random:SEED": ViT-L/14 with random weights (`random_text_encoder`), for trials without
        any file.
      dtype: dtype the tower computes in; parameters and results are float32.

    Raises:
      UserError: for a name that leads to none of these, or weights of another network than
        config.json says.
    """
    if name.startswith(RANDOM):
        seed = name.removeprefix(RANDOM)
        if not (seed.isascii() and seed.isdigit()):
            raise UserError(
                f"the text encoder is {name!r}, expected {RANDOM} and a seed, 0 or more"
            )
        return random_text_encoder(int(seed), CLIPTextConfig(dtype=dtype))
    config_path, weights_path = find_tower(name, _FOLDERS, "text", "(here or in text_encoder)")
    config = read_config(config_path, dtype)
    state_dict = hub_names(read_arrays(weights_path, ANCHORS))
    if PROJECTION in state_dict and state_dict[PROJECTION].ndim == 2:
        config = dataclasses.replace(config, projection=len(state_dict[PROJECTION]))
    try:
        return _text_encoder(name, config, state_dict)
    except UserError as error:
        raise UserError(f"{weights_path}: {error} (by {config_path.name} beside it)") from None


def random_text_encoder(seed: int, config: CLIPTextConfig | None = None) -> TextEncoder:
    """A tower with random weights, named "random:<seed>", whose states have no meaning.

    Linear layers are N(0, 1/fan_in), embeddings N(0, 1), biases 0; drawn by name, so that a seed
    gives the same numbers everywhere. The default config is ViT-L/14's.
    """
    config = config or CLIPTextConfig()

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if len(shape) == 1:
            return np.full(shape, float(name.endswith("weight")), np.float32)
        z = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(
            shape, np.float32
        )
        return z if name.startswith("embeddings.") else z * np.float32(shape[1] ** -0.5)

    return _text_encoder(
        f"{RANDOM}{seed}",
        config,
        {name: draw(name, entry.shape) for name, entry in text_layout(config).items()},
    )


def _text_encoder(name: str, config: CLIPTextConfig, state_dict: StateDict) -> TextEncoder:
    arrays = our_arrays(state_dict, config)
    of_states = {path: array for path, array in arrays.items() if path[0] != "projection"}
    return TextEncoder(
        name=name,
        sha256=sha256_of(of_states, f"heads {config.heads}, activation {config.activation}\n"),
        config=config,
        params=unflatten_dict(arrays),
        graphdef=graphdef_of(lambda rngs: CLIPText(config, rngs=rngs)),
    )
