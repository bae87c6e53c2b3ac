"""Golden files, and their weights: arrays drawn by a formula from the reference's names."""

import json
import pathlib
import zlib

import numpy as np
from safetensors import safe_open

from uvit_jax.interop import official, official_layout
from uvit_jax.models.uvit import UViTConfig


def draw(key: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """The standard normal array that belongs to a name."""
    return np.random.default_rng([seed, zlib.crc32(key.encode())]).standard_normal(
        shape, dtype=np.float32
    )


def formula_weight(key: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """The golden weight of a parameter of the reference."""
    z = draw(key, shape, seed)
    if key.endswith("running_var"):
        return 1 + 0.1 * np.abs(z)
    if key.endswith("running_mean"):
        return np.float32(0.1) * z
    if ("norm" in key or ".bn." in key) and key.endswith("weight"):
        return 1 + np.float32(0.1) * z
    if key.endswith("bias") or key == "pos_embed":
        return np.float32(0.1) * z
    if key.startswith("label_emb"):
        return z
    if "embedding" in key and key.endswith("weight"):
        return np.float32(0.5) * z
    fan_in = np.prod(shape[1:]) if len(shape) > 1 else shape[0]
    gain = np.sqrt(2) if ".conv." in key else 1.0
    return (gain * z / np.sqrt(fan_in)).astype(np.float32)


def uvit_weights(config: UViTConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """The golden state dict of a U-ViT, official names and layouts."""
    return {
        key: formula_weight(key, entry.shape, seed)
        for key, entry in official_layout.uvit_layout(config).items()
    }


def read_golden(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays of a golden file and its metadata."""
    with safe_open(path, framework="numpy") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


def golden_config(metadata: dict[str, str], **ours) -> UViTConfig:
    """The architecture a golden file was computed with."""
    return official.config_from_official(json.loads(metadata["config"]), **ours)


def nhwc(x: np.ndarray) -> np.ndarray:
    """The references' NCHW images in our layout."""
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1))
