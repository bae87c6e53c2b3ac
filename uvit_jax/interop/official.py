"""The published U-ViT checkpoints (github.com/baofff/U-ViT): read into a UViT, written from one."""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import unflatten_dict

from uvit_jax.errors import UserError, check_choice
from uvit_jax.interop.layout import graphdef_of, read_layout
from uvit_jax.interop.official_config import config_from_official
from uvit_jax.interop.official_fields import differences
from uvit_jax.interop.official_layout import uvit_layout
from uvit_jax.interop.state_dict import KeyPath, StateDict
from uvit_jax.interop.weights_file import read_arrays
from uvit_jax.models.uvit import UViT, UViTConfig

__all__ = ["config_from_official", "dump", "load", "params", "read_weights"]

_ANCHORS = ("pos_embed",)  # every official U-ViT has it


def params(state_dict: StateDict, config: UViTConfig) -> dict[Any, Any]:
    """The parameters of our network: names (and positions in lists) to float32 NumPy arrays.

    Args:
      state_dict: official names to arrays in the official layout (NumPy, or anything `np.asarray`
        takes).
      config: the architecture; must be one the official code can express.

    Raises:
      UserError: for weights of another architecture (the sentence names the config's fields in
        which they differ), an array missing, one too many, of another shape, of integers or with
        NaN (the sentence names it), or for a config with an ablation that has no official layout.
    """
    layout = uvit_layout(config)
    fault = "the weights are of another architecture than the config"
    try:
        return unflatten_dict(read_layout(state_dict, layout, fault))
    except UserError as error:
        raise UserError(f"{error}{differences(state_dict, config)}") from None


def load(state_dict: StateDict, config: UViTConfig) -> UViT:
    """A UViT that computes what the official network does; arguments and errors as `params`."""
    arrays = jax.tree.map(jnp.asarray, params(state_dict, config))
    return nnx.merge(graphdef_of(lambda rngs: UViT(config, rngs=rngs)), arrays)


def dump(model: UViT) -> dict[str, np.ndarray]:
    """The model's weights, float32, by official names in the official layout.

    `dump(load(x))` equals x, bit for bit.

    Raises:
      UserError: for a model with an ablation that has no official layout.
    """
    leaves = jax.tree_util.tree_leaves_with_path(nnx.state(model, nnx.Param))
    ours = {_plain_path(path): np.asarray(leaf) for path, leaf in leaves}
    layout = uvit_layout(model.config)
    return {name: entry.to_published(ours[entry.path]) for name, entry in layout.items()}


def read_weights(path: str | os.PathLike[str], *, weights: str = "ema") -> dict[str, np.ndarray]:
    """The arrays of a U-ViT's file by their official names; nothing in it is executed.

    The file is one of torch.save (either format) or of safetensors, whatever its suffix. What
    training and wrappers put around the names is left out: `{model, ema, opt}` and other
    dictionaries, `module.`, `_orig_mod.`, Lightning's `state_dict` and `nnet.`, however nested. A
    file without a U-ViT's `pos_embed` gives all of its arrays.

    weights: "ema" or "params", the averaged or the trained ones, for a file that holds both.

    Raises:
      UserError: for a file that is missing, of another kind (which is named), damaged, that asks
        for more than tensors, or that holds several networks.
    """
    check_choice("weights", weights, ("ema", "params"))
    return read_arrays(path, _ANCHORS, weights=weights)


def _plain_path(path: tuple) -> KeyPath:
    """A pytree path as the names and list positions in it, without the leaf's own `.value`."""
    names = (getattr(key, "key", getattr(key, "idx", getattr(key, "name", None))) for key in path)
    return tuple(name for name in names if name is not None and name != "value")
