"""The configs, names and shapes of published CLIP text towers, the hub's and OpenCLIP's, and our arrays in them."""

import json
import pathlib
import re
from typing import Any

import numpy as np

from uvit_jax.errors import UserError
from uvit_jax.interop.state_dict import StateDict, check_names
from uvit_jax.models.clip_text import CLIPTextConfig

Path = tuple[str | int, ...]
Arrays = dict[Path, np.ndarray]

PROJECTION = "text_projection.weight"

# What a whole CLIP holds beside its text tower, and constants that old files store.
_OTHERS = re.compile(
    r"vision_model\..*|visual_projection\..*|visual\..*|logit_scale|logit_bias|attn_mask|embeddings\.position_ids"
)


def read_config(path: pathlib.Path, dtype: str) -> CLIPTextConfig:
    """The architecture that a hub's or OpenCLIP's config says, without a projection; what it leaves out as they do."""
    try:
        saved = json.loads(path.read_bytes())
        fields = _open_clip_fields(saved) if "model_cfg" in saved else _hub_fields(saved)
        return CLIPTextConfig(**fields, dtype=dtype)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(f"{path} is no config of a CLIP ({type(error).__name__}: {error})") from None


def _hub_fields(saved: dict[str, Any]) -> dict[str, Any]:
    kind = saved.get("model_type")
    if kind not in ("clip", "clip_text_model"):
        raise UserError(f"model_type is {json.dumps(kind)}, expected clip or clip_text_model")
    if kind == "clip":
        saved = {**(saved.get("text_config") or {}), **(saved.get("text_config_dict") or {})}
    if (eps := saved.get("layer_norm_eps", 1e-5)) != 1e-5:
        raise UserError(f"layer_norm_eps is {json.dumps(eps)}, expected 1e-5")
    width = _whole(saved, "hidden_size", 512)
    return {
        "vocab_size": _whole(saved, "vocab_size", 49408),
        "context_length": _whole(saved, "max_position_embeddings", 77),
        "width": width,
        "layers": _whole(saved, "num_hidden_layers", 12),
        "heads": _whole(saved, "num_attention_heads", 8),
        "mlp_ratio": _whole(saved, "intermediate_size", 2048) / width,
        "activation": saved.get("hidden_act", "quick_gelu"),
    }


def _open_clip_fields(saved: dict[str, Any]) -> dict[str, Any]:
    model, text = saved["model_cfg"], saved["model_cfg"]["text_cfg"]
    defaults = {"vocab_size": 49408, "context_length": 77, "width": 512, "layers": 12, "heads": 8}
    # Anything else (other poolings, masks, towers of other families) is another network.
    if unknown := sorted(set(text) - {*defaults, "mlp_ratio", "hf_tokenizer_name", "tokenizer_kwargs"}):
        raise UserError(f"text_cfg has {unknown[0]}, expected only {', '.join(defaults)} and mlp_ratio")
    return {
        **{name: _whole(text, name, default) for name, default in defaults.items()},
        "mlp_ratio": text.get("mlp_ratio", 4),
        "activation": "quick_gelu" if model.get("quick_gelu", False) else "gelu",
    }


def _whole(fields: dict[str, Any], name: str, default: int) -> int:
    value = fields.get(name, default)
    if not isinstance(value, int) or value < 1:
        raise UserError(f"{name} is {json.dumps(value)}, expected a whole number, at least 1")
    return value


def hub_names(state_dict: StateDict) -> dict[str, np.ndarray]:
    """The text tower's arrays under the hub's names, without `text_model.`; in OpenCLIP's layout, they are renamed."""
    state = {name.removeprefix("text_model."): np.asarray(array) for name, array in state_dict.items()}
    state = {name: array for name, array in state.items() if not _OTHERS.fullmatch(name)}
    if "positional_embedding" not in state:
        return state
    renamed: dict[str, np.ndarray] = {}
    for name, array in state.items():
        if match := re.fullmatch(r"(transformer\.resblocks\.\d+\.attn\.)in_proj_(weight|bias)", name):
            parts = dict(zip("qkv", np.split(array, 3), strict=True)) if len(array) % 3 == 0 else {"qkv": array}
            renamed |= {_renamed(f"{match[1]}{part}_proj.{match[2]}"): rows for part, rows in parts.items()}
        else:
            renamed[_renamed(name)] = array.T if name == "text_projection" else array
    return renamed


def _renamed(name: str) -> str:
    """OpenCLIP's name of an array as the hub's."""
    for theirs, hub in (
        (r"token_embedding\.", "embeddings.token_embedding."),
        (r"positional_embedding$", "embeddings.position_embedding.weight"),
        (r"ln_final\.", "final_layer_norm."),
        (r"text_projection$", PROJECTION),
        (r"transformer\.resblocks\.", "encoder.layers."),
    ):
        name = re.sub(f"^{theirs}", hub, name)
    for theirs, hub in ((".ln_", ".layer_norm"), (".attn.", ".self_attn."), (".c_fc.", ".fc1."), (".c_proj.", ".fc2.")):
        name = name.replace(theirs, hub)
    return name


def hub_shapes(config: CLIPTextConfig) -> dict[str, tuple[int, ...]]:
    """Every array of a tower in the hub's layout."""
    d, hidden = config.width, config.hidden_dim
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.token_embedding.weight": (config.vocab_size, d),
        "embeddings.position_embedding.weight": (config.context_length, d),
    }
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
    shapes |= {"final_layer_norm.weight": (d,), "final_layer_norm.bias": (d,)}
    if config.projection:
        shapes[PROJECTION] = (config.projection, d)
    return shapes


def our_arrays(state_dict: StateDict, config: CLIPTextConfig) -> Arrays:
    """The arrays in our layout, float32, by our paths; their names and shapes are checked."""
    shapes = hub_shapes(config)
    check_names(state_dict, shapes, "the weights are of another network than a CLIP text tower of this config")
    for name, shape in shapes.items():
        if np.shape(state_dict[name]) != shape:
            raise UserError(f"{name} has shape {np.shape(state_dict[name])}, expected {shape}")

    def read(name: str) -> np.ndarray:
        return np.asarray(state_dict[name], np.float32)

    def linear(name: str) -> dict[str, np.ndarray]:
        return {"kernel": np.ascontiguousarray(read(f"{name}.weight").T), "bias": read(f"{name}.bias")}

    def norm(name: str) -> dict[str, np.ndarray]:
        return {"scale": read(f"{name}.weight"), "bias": read(f"{name}.bias")}

    d, h = config.width, config.heads
    arrays: Arrays = {
        ("token_embed", "embedding"): read("embeddings.token_embedding.weight"),
        ("pos_embed",): read("embeddings.position_embedding.weight"),
    }
    parts: dict[Path, dict[str, np.ndarray]] = {("final_norm",): norm("final_layer_norm")}
    for i in range(config.layers):
        layer = f"encoder.layers.{i}"
        q, k, v = (linear(f"{layer}.self_attn.{part}_proj") for part in "qkv")
        out = linear(f"{layer}.self_attn.out_proj")
        parts |= {
            ("blocks", i, "norm1"): norm(f"{layer}.layer_norm1"),
            ("blocks", i, "attn", "qkv"): {
                "kernel": np.stack([q["kernel"], k["kernel"], v["kernel"]], 1).reshape(d, 3, h, d // h),
                "bias": np.stack([q["bias"], k["bias"], v["bias"]]).reshape(3, h, d // h),
            },
            ("blocks", i, "attn", "proj"): {**out, "kernel": out["kernel"].reshape(h, d // h, d)},
            ("blocks", i, "norm2"): norm(f"{layer}.layer_norm2"),
            ("blocks", i, "fc1"): linear(f"{layer}.mlp.fc1"),
            ("blocks", i, "fc2"): linear(f"{layer}.mlp.fc2"),
        }
    if config.projection:
        parts[("projection",)] = {"kernel": np.ascontiguousarray(read(PROJECTION).T)}
    return arrays | {(*path, leaf): array for path, leaves in parts.items() for leaf, array in leaves.items()}
