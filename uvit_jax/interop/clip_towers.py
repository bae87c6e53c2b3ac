"""CLIP towers of text or images: what both have in published configs and layouts."""

import json
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from uvit_jax.errors import UserError
from uvit_jax.interop.file_kinds import check_content
from uvit_jax.interop.layout import Entry, Layout, linear, norm, read_layout, vector
from uvit_jax.interop.state_dict import Arrays, StateDict
from uvit_jax.models.frozen.clip_text import CLIPTextConfig
from uvit_jax.models.frozen.clip_vision import CLIPVisionConfig

Tower = CLIPTextConfig | CLIPVisionConfig
Config = TypeVar("Config", bound=Tower)


def parse_config(path: pathlib.Path, parse: Callable[[dict[str, Any]], Config]) -> Config:
    """The config that `parse` makes of a JSON file; errors name the file."""
    check_content(path)
    try:
        return parse(json.loads(path.read_bytes()))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(
            f"{path} is not a config of a CLIP ({type(error).__name__}: {error})"
        ) from None


def hub_tower(saved: dict[str, Any], tower: str) -> dict[str, Any]:
    """The fields of the "text" or "vision" tower in the config of a whole CLIP or of the tower."""
    kind, alone = saved.get("model_type"), f"clip_{tower}_model"
    if kind not in ("clip", alone):
        raise UserError(f"model_type is {json.dumps(kind)}, expected clip or {alone}")
    if kind == "clip":
        saved = {
            **(saved.get(f"{tower}_config") or {}),
            **(saved.get(f"{tower}_config_dict") or {}),
        }
    if (eps := saved.get("layer_norm_eps", 1e-5)) != 1e-5:
        raise UserError(f"layer_norm_eps is {json.dumps(eps)}, expected 1e-5")
    return saved


def whole(fields: dict[str, Any], name: str, default: int) -> int:
    """The whole number in a config's field, at least 1."""
    value = fields.get(name, default)
    if not isinstance(value, int) or value < 1:
        raise UserError(f"{name} is {json.dumps(value)}, expected a whole number, at least 1")
    return value


def from_open_clip(state: StateDict, names: Sequence[tuple[str, str]]) -> dict[str, np.ndarray]:
    """A tower's arrays in the hub's layout: q, k and v apart, a projection as PyTorch's Linear.

    Args:
      state: the arrays by OpenCLIP's names.
      names: beginnings of names, OpenCLIP's as a pattern and the hub's, outside of blocks.
    """
    renamed: dict[str, np.ndarray] = {}
    for name, array in state.items():
        if match := re.fullmatch(
            r"(transformer\.resblocks\.\d+\.attn\.)in_proj_(weight|bias)", name
        ):
            parts = (
                dict(zip("qkv", np.split(array, 3), strict=True))
                if len(array) % 3 == 0
                else {"qkv": array}
            )
            renamed |= {
                _renamed(f"{match[1]}{part}_proj.{match[2]}", names): rows
                for part, rows in parts.items()
            }
        else:
            hub = _renamed(name, names)
            renamed[hub] = array.T if hub.endswith("_projection.weight") else array
    return renamed


def _renamed(name: str, names: Sequence[tuple[str, str]]) -> str:
    """OpenCLIP's name of an array as the hub's."""
    for theirs, hub in (*names, (r"transformer\.resblocks\.", "encoder.layers.")):
        name = re.sub(f"^{theirs}", hub, name)
    for theirs, hub in (
        (".ln_", ".layer_norm"),
        (".attn.", ".self_attn."),
        (".c_fc.", ".fc1."),
        (".c_proj.", ".fc2."),
    ):
        name = name.replace(theirs, hub)
    return name


def block_layout(config: Tower) -> Layout:
    """Every array of a tower's blocks in the hub's layout; q, k and v apart, as they are there."""
    d, h, hidden = config.width, config.heads, config.hidden_dim
    layout: Layout = {}
    for i in range(config.layers):
        layer, block = f"encoder.layers.{i}", ("blocks", i)
        for part in "qkv":
            layout |= linear(f"{layer}.self_attn.{part}_proj", (*block, "attn", part), d, d)
        out = f"{layer}.self_attn.out_proj"
        kernel = (*block, "attn", "proj", "kernel")
        layout[f"{out}.weight"] = Entry(kernel, (d, d), lambda a: a.T.reshape(h, d // h, d))
        layout |= vector(f"{out}.bias", (*block, "attn", "proj", "bias"), d)
        layout |= linear(f"{layer}.mlp.fc1", (*block, "fc1"), d, hidden)
        layout |= linear(f"{layer}.mlp.fc2", (*block, "fc2"), hidden, d)
        for number in (1, 2):
            layout |= norm(f"{layer}.layer_norm{number}", (*block, f"norm{number}"), d)
    return layout


def read_tower(state_dict: StateDict, layout: Layout, config: Tower, what: str) -> Arrays:
    """The arrays of `what`, a tower, in our layout: float32, by our paths, q, k and v in one.

    Raises:
      UserError: for names or shapes of another network, integers and NaN.
    """
    fault = f"the weights are of another network than {what} of this config"
    arrays = read_layout(state_dict, layout, fault)
    d, h = config.width, config.heads
    for i in range(config.layers):
        attn = ("blocks", i, "attn")
        kernels = [arrays.pop((*attn, part, "kernel")) for part in "qkv"]
        biases = [arrays.pop((*attn, part, "bias")) for part in "qkv"]
        arrays[*attn, "qkv", "kernel"] = np.stack(kernels, 1).reshape(d, 3, h, d // h)
        arrays[*attn, "qkv", "bias"] = np.stack(biases).reshape(3, h, d // h)
    return arrays
