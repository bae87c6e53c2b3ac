"""The configs, names and shapes of published CLIP text towers and of any tower's blocks, and our
arrays in them.
"""

import json
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from uvit_jax.errors import UserError
from uvit_jax.interop.file_kinds import check_content
from uvit_jax.interop.state_dict import Arrays, Path, StateDict, check_names, checked_array
from uvit_jax.models.frozen.clip_text import CLIPTextConfig
from uvit_jax.models.frozen.clip_vision import CLIPVisionConfig

Tower = CLIPTextConfig | CLIPVisionConfig
Config = TypeVar("Config", bound=Tower)

# Every text tower has one of these: the hub's in a whole CLIP or alone, OpenCLIP's.
ANCHORS = (
    "text_model.embeddings.token_embedding.weight",
    "embeddings.token_embedding.weight",
    "token_embedding.weight",
)
PROJECTION = "text_projection.weight"

# What a whole CLIP holds beside its text tower, and constants that old files store.
_OTHERS = re.compile(
    r"vision_model\..*|visual_projection\..*|visual\..*|logit_scale|logit_bias|attn_mask|embeddings\.position_ids"
)
# OpenCLIP's names and the hub's.
_RENAMED = (
    (r"token_embedding\.", "embeddings.token_embedding."),
    (r"positional_embedding$", "embeddings.position_embedding.weight"),
    (r"ln_final\.", "final_layer_norm."),
    (r"text_projection$", PROJECTION),
)


def read_config(path: pathlib.Path, dtype: str) -> CLIPTextConfig:
    """The architecture that a hub's or OpenCLIP's config says, without a projection; what it leaves
    out as they do.
    """

    def parse(saved: dict[str, Any]) -> CLIPTextConfig:
        fields = _open_clip_fields(saved) if "model_cfg" in saved else _hub_fields(saved)
        return CLIPTextConfig(**fields, dtype=dtype)

    return parse_config(path, parse)


def parse_config(path: pathlib.Path, parse: Callable[[dict[str, Any]], Config]) -> Config:
    """The config that `parse` makes of a JSON file; what it stumbles over becomes a UserError that
    names the file.
    """
    check_content(path)
    try:
        return parse(json.loads(path.read_bytes()))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(
            f"{path} is no config of a CLIP ({type(error).__name__}: {error})"
        ) from None


def _hub_fields(saved: dict[str, Any]) -> dict[str, Any]:
    saved = hub_tower(saved, "text")
    width = whole(saved, "hidden_size", 512)
    return {
        "vocab_size": whole(saved, "vocab_size", 49408),
        "context_length": whole(saved, "max_position_embeddings", 77),
        "width": width,
        "layers": whole(saved, "num_hidden_layers", 12),
        "heads": whole(saved, "num_attention_heads", 8),
        "mlp_ratio": whole(saved, "intermediate_size", 2048) / width,
        "activation": saved.get("hidden_act", "quick_gelu"),
    }


def hub_tower(saved: dict[str, Any], tower: str) -> dict[str, Any]:
    """What a hub's config says of the "text" or "vision" tower, be it of a whole CLIP or of that
    tower alone.
    """
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


def _open_clip_fields(saved: dict[str, Any]) -> dict[str, Any]:
    model, text = saved["model_cfg"], saved["model_cfg"]["text_cfg"]
    defaults = {"vocab_size": 49408, "context_length": 77, "width": 512, "layers": 12, "heads": 8}
    # Anything else (other poolings, masks, towers of other families) is another network.
    if unknown := sorted(
        set(text) - {*defaults, "mlp_ratio", "hf_tokenizer_name", "tokenizer_kwargs"}
    ):
        raise UserError(
            f"text_cfg has {unknown[0]}, expected only {', '.join(defaults)} and mlp_ratio"
        )
    return {
        **{name: whole(text, name, default) for name, default in defaults.items()},
        "mlp_ratio": text.get("mlp_ratio", 4),
        "activation": "quick_gelu" if model.get("quick_gelu", False) else "gelu",
    }


def whole(fields: dict[str, Any], name: str, default: int) -> int:
    """The whole number in a config's field, at least 1."""
    value = fields.get(name, default)
    if not isinstance(value, int) or value < 1:
        raise UserError(f"{name} is {json.dumps(value)}, expected a whole number, at least 1")
    return value


def hub_names(state_dict: StateDict) -> dict[str, np.ndarray]:
    """The text tower's arrays under the hub's names, without `text_model.`; in OpenCLIP's layout,
    they are renamed.
    """
    state = {
        name.removeprefix("text_model."): np.asarray(array) for name, array in state_dict.items()
    }
    state = {name: array for name, array in state.items() if not _OTHERS.fullmatch(name)}
    if "positional_embedding" not in state:
        return state
    return from_open_clip(state, _RENAMED)


def from_open_clip(state: StateDict, names: Sequence[tuple[str, str]]) -> dict[str, np.ndarray]:
    """A tower's arrays in the hub's layout: q, k and v apart, a projection as PyTorch's Linear has
    it.

    Args:
      state: the arrays by OpenCLIP's names.
      names: how names begin at OpenCLIP, as a pattern, and at the hub, but for those in blocks.
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


def hub_shapes(config: CLIPTextConfig) -> dict[str, tuple[int, ...]]:
    """Every array of a tower in the hub's layout."""
    d = config.width
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.token_embedding.weight": (config.vocab_size, d),
        "embeddings.position_embedding.weight": (config.context_length, d),
        **block_shapes(config),
        "final_layer_norm.weight": (d,),
        "final_layer_norm.bias": (d,),
    }
    if config.projection:
        shapes[PROJECTION] = (config.projection, d)
    return shapes


def block_shapes(config: Tower) -> dict[str, tuple[int, ...]]:
    """Every array of a tower's blocks in the hub's layout."""
    d, hidden = config.width, config.hidden_dim
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(config.layers):
        layer = f"encoder.layers.{i}"
        for name, d_in, d_out in (
            *((f"self_attn.{part}_proj", d, d) for part in ("q", "k", "v", "out")),
            ("mlp.fc1", d, hidden),
            ("mlp.fc2", hidden, d),
        ):
            shapes |= {f"{layer}.{name}.weight": (d_out, d_in), f"{layer}.{name}.bias": (d_out,)}
        for norm in ("layer_norm1", "layer_norm2"):
            shapes |= {f"{layer}.{norm}.weight": (d,), f"{layer}.{norm}.bias": (d,)}
    return shapes


def our_arrays(state_dict: StateDict, config: CLIPTextConfig) -> Arrays:
    """The arrays in our layout, float32, by our paths; their names and shapes are checked."""
    state = checked(state_dict, hub_shapes(config), "a CLIP text tower")
    arrays: Arrays = {
        ("token_embed", "embedding"): state["embeddings.token_embedding.weight"],
        ("pos_embed",): state["embeddings.position_embedding.weight"],
        **norm_arrays(state, "final_layer_norm", ("final_norm",)),
        **block_arrays(state, config),
    }
    if config.projection:
        arrays[("projection", "kernel")] = np.ascontiguousarray(state[PROJECTION].T)
    return arrays


def checked(
    state_dict: StateDict, shapes: Mapping[str, tuple[int, ...]], what: str
) -> dict[str, np.ndarray]:
    """The arrays as float32, once their names and shapes are those of `what`, a tower."""
    check_names(
        state_dict, shapes, f"the weights are of another network than {what} of this config"
    )
    return {name: checked_array(name, state_dict[name], shape) for name, shape in shapes.items()}


def norm_arrays(state: StateDict, name: str, path: Path) -> Arrays:
    """The hub's LayerNorm of this name as ours at this path."""
    return {(*path, "scale"): state[f"{name}.weight"], (*path, "bias"): state[f"{name}.bias"]}


def block_arrays(state: StateDict, config: Tower) -> Arrays:
    """The hub's blocks as ours."""
    d, h = config.width, config.heads

    def linear(name: str) -> dict[str, np.ndarray]:
        return {
            "kernel": np.ascontiguousarray(state[f"{name}.weight"].T),
            "bias": state[f"{name}.bias"],
        }

    arrays: Arrays = {}
    for i in range(config.layers):
        layer = f"encoder.layers.{i}"
        q, k, v = (linear(f"{layer}.self_attn.{part}_proj") for part in "qkv")
        out = linear(f"{layer}.self_attn.out_proj")
        dense: dict[Path, dict[str, np.ndarray]] = {
            ("attn", "qkv"): {
                "kernel": np.stack([q["kernel"], k["kernel"], v["kernel"]], 1).reshape(
                    d, 3, h, d // h
                ),
                "bias": np.stack([q["bias"], k["bias"], v["bias"]]).reshape(3, h, d // h),
            },
            ("attn", "proj"): {**out, "kernel": out["kernel"].reshape(h, d // h, d)},
            ("fc1",): linear(f"{layer}.mlp.fc1"),
            ("fc2",): linear(f"{layer}.mlp.fc2"),
        }
        arrays |= {
            ("blocks", i, *path, leaf): array
            for path, leaves in dense.items()
            for leaf, array in leaves.items()
        }
        for norm in ("norm1", "norm2"):
            arrays |= norm_arrays(state, f"{layer}.layer_{norm}", ("blocks", i, norm))
    return arrays
