"""CLIP text towers as published, on the hub or by OpenCLIP: their configs and layouts."""

import pathlib
import re
from typing import Any

import numpy as np

from uvit_jax.errors import UserError
from uvit_jax.interop.clip_towers import (
    block_layout,
    from_open_clip,
    hub_tower,
    parse_config,
    read_tower,
    whole,
)
from uvit_jax.interop.layout import Entry, Layout, norm
from uvit_jax.interop.state_dict import Arrays, StateDict
from uvit_jax.models.frozen.clip_text import CLIPTextConfig

# Every text tower has one of these: the hub's in a whole CLIP or alone, OpenCLIP's.
ANCHORS = (
    "text_model.embeddings.token_embedding.weight",
    "embeddings.token_embedding.weight",
    "token_embedding.weight",
)
PROJECTION = "text_projection.weight"

# Arrays of a whole CLIP beside its text tower, and constants that old files store.
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
    """The architecture in a hub's or OpenCLIP's config, without a projection.

    Missing fields take the publisher's defaults.
    """

    def parse(saved: dict[str, Any]) -> CLIPTextConfig:
        fields = _open_clip_fields(saved) if "model_cfg" in saved else _hub_fields(saved)
        return CLIPTextConfig(**fields, dtype=dtype)

    return parse_config(path, parse)


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


def hub_names(state_dict: StateDict) -> dict[str, np.ndarray]:
    """The text tower's arrays under the hub's names, without `text_model.`.

    Arrays in OpenCLIP's layout are renamed.
    """
    state = {
        name.removeprefix("text_model."): np.asarray(array) for name, array in state_dict.items()
    }
    state = {name: array for name, array in state.items() if not _OTHERS.fullmatch(name)}
    if "positional_embedding" not in state:
        return state
    return from_open_clip(state, _RENAMED)


def text_layout(config: CLIPTextConfig) -> Layout:
    """Every array of a tower in the hub's layout."""
    d = config.width
    layout: Layout = {
        "embeddings.token_embedding.weight": Entry(
            ("token_embed", "embedding"), (config.vocab_size, d)
        ),
        "embeddings.position_embedding.weight": Entry(("pos_embed",), (config.context_length, d)),
        **block_layout(config),
        **norm("final_layer_norm", ("final_norm",), d),
    }
    if config.projection:
        shape = (config.projection, d)
        layout[PROJECTION] = Entry(("projection", "kernel"), shape, np.transpose)
    return layout


def our_arrays(state_dict: StateDict, config: CLIPTextConfig) -> Arrays:
    """The arrays in our layout, float32, by our paths; their names and shapes are checked."""
    return read_tower(state_dict, text_layout(config), config, "a CLIP text tower")
