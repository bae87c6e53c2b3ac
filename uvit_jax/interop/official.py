"""The layout of the published U-ViT checkpoints (github.com/baofff/U-ViT): read into a UViT,
written from one.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from uvit_jax.errors import UserError, check_choice
from uvit_jax.interop.official_fields import differences
from uvit_jax.interop.state_dict import StateDict, check_names, checked_array
from uvit_jax.interop.weights_file import read_arrays
from uvit_jax.models.uvit import UViT, UViTConfig

_ANCHORS = ("pos_embed",)  # what every official U-ViT has

# Keys of the official network's configuration that we read; the rest of what it may hold changes no
# number.
_CONFIG_FIELDS = {
    "img_size": "image_size",
    "patch_size": "patch_size",
    "in_chans": "in_channels",
    "embed_dim": "embed_dim",
    "num_heads": "num_heads",
    "mlp_ratio": "mlp_ratio",
    "qkv_bias": "qkv_bias",
    "mlp_time_embed": "time_mlp",
    "clip_dim": "context_dim",
    "num_clip_token": "context_length",
}
_CONFIG_OTHERS = {
    "depth",
    "num_classes",
    "conv",
    "skip",
    "use_checkpoint",
    "name",
    "num_params",
    "kind",
}
# The official defaults where they are not ours.
_CONFIG_DEFAULTS = {
    "img_size": 224,
    "patch_size": 16,
    "in_chans": 3,
    "embed_dim": 768,
    "num_heads": 12,
    "depth": 12,
}


def config_from_official(official: Mapping[str, Any], **ours: Any) -> UViTConfig:
    """The UViTConfig of an official network configuration (`config.nnet`, a dict of UViT's keyword
    arguments).

    Args:
      official: `img_size, patch_size, in_chans, embed_dim, depth` (even: ours is one more),
        `num_heads, mlp_ratio, qkv_bias, mlp_time_embed, num_classes` (-1: none), `conv, skip,
        use_checkpoint, clip_dim, num_clip_token`. What is left out takes the official default.
      **ours: fields of UViTConfig that the official code has not (dtype, scan_blocks, attention,
        ...) or to override.

    Raises:
      UserError: for a key that is none of these, or an odd official depth.
    """
    unknown = sorted(set(official) - set(_CONFIG_FIELDS) - _CONFIG_OTHERS)
    if unknown:
        raise UserError(
            f"official config has {', '.join(unknown)}, expected only {_known_config_keys()}"
        )
    values = {**_CONFIG_DEFAULTS, **official}
    if values["depth"] % 2:
        raise UserError(
            f"official depth is {values['depth']}, expected an even number (its middle block is "
            f"not counted)"
        )
    if "clip_dim" in values:
        values.setdefault("num_clip_token", 77)
    fields = {
        ours_name: values[name] for name, ours_name in _CONFIG_FIELDS.items() if name in values
    }
    fields |= {
        "depth": values["depth"] + 1,
        "num_classes": max(values.get("num_classes", -1), 0),
        "conv": "after" if values.get("conv", True) else "none",
        "skip": "concat" if values.get("skip", True) else "none",
        "remat": "full" if values.get("use_checkpoint", False) else "none",
    }
    return UViTConfig(**fields | ours)


def _known_config_keys() -> str:
    return ", ".join(sorted(set(_CONFIG_FIELDS) | _CONFIG_OTHERS))


@dataclasses.dataclass(frozen=True)
class _Entry:
    """One array in both layouts: its path in our state, its official shape, and the two maps
    between them.
    """

    path: tuple[str | int, ...]
    shape: tuple[int, ...]
    to_ours: Callable[[np.ndarray], np.ndarray]
    to_official: Callable[[np.ndarray], np.ndarray]


def params(state_dict: StateDict, config: UViTConfig) -> dict[Any, Any]:
    """The parameters of our network with these weights: names (and positions in lists) to float32
    NumPy arrays.

    Args:
      state_dict: official names to arrays in the official layout (NumPy, or anything `np.asarray`
        takes).
      config: the architecture; must be one the official code can express.

    Raises:
      UserError: for weights of another architecture (the sentence names the config's fields in
        which they differ), an array missing, one too many, of another shape, of integers or with
        NaN (the sentence names it), or for a config with an ablation that has no official layout.
    """
    layout = _layout(config)
    try:
        check_names(state_dict, layout, "the weights are of another architecture than the config")
        arrays = {
            name: checked_array(name, state_dict[name], entry.shape)
            for name, entry in layout.items()
        }
    except UserError as error:
        raise UserError(f"{error}{differences(state_dict, config)}") from None
    tree: dict[Any, Any] = {}
    for name, entry in layout.items():
        *parents, leaf = entry.path
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[leaf] = entry.to_ours(arrays[name])
    return tree


def load(state_dict: StateDict, config: UViTConfig) -> UViT:
    """The UViT that computes what the official network with these weights does; arguments and
    errors as `params`.
    """
    arrays = jax.tree.map(jnp.asarray, params(state_dict, config))
    # Only shapes are made here: no random weights are drawn to be thrown away.
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: UViT(config, rngs=nnx.Rngs(0))))
    return nnx.merge(graphdef, arrays)


def dump(model: UViT) -> dict[str, np.ndarray]:
    """The model's weights under the official names, in the official layout, float32; `dump(load(x))
    == x`, bit for bit.

    Raises:
      UserError: for a model with an ablation that has no official layout.
    """
    leaves = jax.tree_util.tree_leaves_with_path(nnx.state(model, nnx.Param))
    flat = {_plain_path(path): np.asarray(leaf) for path, leaf in leaves}
    return {
        name: entry.to_official(flat[entry.path]) for name, entry in _layout(model.config).items()
    }


def read_weights(path: str | os.PathLike[str], *, weights: str = "ema") -> dict[str, np.ndarray]:
    """The arrays of a U-ViT's file by their official names; nothing in it is executed.

    The file is one of torch.save (either format) or of safetensors, whatever its name ends in. What
    training and wrappers put around the names is left out: `{model, ema, opt}` and other
    dictionaries, `module.`, `_orig_mod.`, Lightning's `state_dict` and `nnet.`, in any nesting. Of
    a file without a U-ViT's `pos_embed` all arrays are given.

    weights: "ema" or "params", the averaged or the trained ones, for a file that holds both.

    Raises:
      UserError: for a file that is missing, of another kind (which is named), damaged, that asks
        for more than tensors, or that holds several networks.
    """
    check_choice("weights", weights, ("ema", "params"))
    return read_arrays(path, _ANCHORS, weights=weights)


def _plain_path(path: tuple) -> tuple[str | int, ...]:
    """A pytree path as the names and list positions in it, without the leaf's own `.value`."""
    names = (getattr(key, "key", getattr(key, "idx", getattr(key, "name", None))) for key in path)
    return tuple(name for name in names if name is not None and name != "value")


def _layout(config: UViTConfig) -> dict[str, _Entry]:
    """Every array of the official network, in the order of its state dict."""
    for field, known in (
        ("skip", ("concat", "none")),
        ("time", ("token",)),
        ("conv", ("after", "none")),
        ("patch_embed", ("linear",)),
        ("pos_embed", ("learned",)),
    ):
        if getattr(config, field) not in known:
            raise UserError(
                f"{field} is {getattr(config, field)!r}, which the official checkpoints don't "
                f"have: expected {' or '.join(map(repr, known))}"
            )
    d, p, c = config.embed_dim, config.patch_size, config.in_channels
    patch = p * p * c
    layout = {
        "pos_embed": _Entry(
            ("pos_embed",), (1, config.num_tokens, d), lambda a: a[0], lambda a: a[None]
        )
    }
    layout["patch_embed.proj.weight"] = _Entry(
        ("patch_embed", "proj", "kernel"),
        (d, c, p, p),
        lambda a: a.transpose(2, 3, 1, 0).reshape(patch, d),
        lambda a: a.reshape(p, p, c, d).transpose(3, 2, 0, 1),
    )
    layout["patch_embed.proj.bias"] = _vector(("patch_embed", "proj", "bias"), d)
    if config.time_mlp:
        layout |= _linear("time_embed.0", ("time_mlp", "fc1"), d, 4 * d)
        layout |= _linear("time_embed.2", ("time_mlp", "fc2"), 4 * d, d)
    if config.num_classes:
        layout["label_emb.weight"] = _Entry(
            ("label_embed", "embedding"), (config.num_classes, d), lambda a: a, lambda a: a
        )
    if config.context_dim:
        layout |= _linear("context_embed", ("context_embed",), config.context_dim, d)
    for i in range(config.depth // 2):
        layout |= _block(f"in_blocks.{i}", ("in_blocks", i), config, takes_skip=False)
    layout |= _block("mid_block", ("mid_block",), config, takes_skip=False)
    for i in range(config.depth // 2):
        layout |= _block(
            f"out_blocks.{i}", ("out_blocks", i), config, takes_skip=config.skip == "concat"
        )
    layout |= _norm("norm", ("norm",), d)
    layout |= _linear("decoder_pred", ("head",), d, patch)
    if config.conv == "after":
        layout["final_layer.weight"] = _Entry(
            ("conv_after", "kernel"),
            (c, c, 3, 3),
            lambda a: a.transpose(2, 3, 1, 0),
            lambda a: a.transpose(3, 2, 0, 1),
        )
        layout["final_layer.bias"] = _vector(("conv_after", "bias"), c)
    return layout


def _block(
    name: str, path: tuple[str | int, ...], config: UViTConfig, *, takes_skip: bool
) -> dict[str, _Entry]:
    d, h = config.embed_dim, config.num_heads
    k, hidden = d // h, int(d * config.mlp_ratio)
    layout = _norm(f"{name}.norm1", (*path, "norm1"), d)
    layout[f"{name}.attn.qkv.weight"] = _Entry(
        (*path, "attn", "qkv", "kernel"),
        (3 * d, d),
        lambda a: a.T.reshape(d, 3, h, k),
        lambda a: a.reshape(d, 3 * d).T,
    )
    if config.qkv_bias:
        layout[f"{name}.attn.qkv.bias"] = _Entry(
            (*path, "attn", "qkv", "bias"),
            (3 * d,),
            lambda a: a.reshape(3, h, k),
            lambda a: a.reshape(3 * d),
        )
    layout[f"{name}.attn.proj.weight"] = _Entry(
        (*path, "attn", "proj", "kernel"),
        (d, d),
        lambda a: a.T.reshape(h, k, d),
        lambda a: a.reshape(d, d).T,
    )
    layout[f"{name}.attn.proj.bias"] = _vector((*path, "attn", "proj", "bias"), d)
    layout |= _norm(f"{name}.norm2", (*path, "norm2"), d)
    layout |= _linear(f"{name}.mlp.fc1", (*path, "mlp", "fc1"), d, hidden)
    layout |= _linear(f"{name}.mlp.fc2", (*path, "mlp", "fc2"), hidden, d)
    if takes_skip:
        layout[f"{name}.skip_linear.weight"] = _Entry(
            (*path, "skip", "kernel"),
            (d, 2 * d),
            lambda a: a.T.reshape(2, d, d),
            lambda a: a.reshape(2 * d, d).T,
        )
        layout[f"{name}.skip_linear.bias"] = _vector((*path, "skip", "bias"), d)
    return layout


def _linear(name: str, path: tuple[str | int, ...], d_in: int, d_out: int) -> dict[str, _Entry]:
    return {
        f"{name}.weight": _Entry((*path, "kernel"), (d_out, d_in), np.transpose, np.transpose),
        f"{name}.bias": _vector((*path, "bias"), d_out),
    }


def _norm(name: str, path: tuple[str | int, ...], d: int) -> dict[str, _Entry]:
    path = (*path, "norm")
    return {
        f"{name}.weight": _vector((*path, "scale"), d),
        f"{name}.bias": _vector((*path, "bias"), d),
    }


def _vector(path: tuple[str | int, ...], size: int) -> _Entry:
    return _Entry(path, (size,), lambda a: a, lambda a: a)
