"""Pallas's Mosaic backend for GPUs where the installed jax has the one that the kernels are written for."""

from typing import Any

import jax

plgpu: Any
try:
    from jax.experimental.pallas import mosaic_gpu as plgpu
except ImportError:
    plgpu = None

AVAILABLE = plgpu is not None and jax.__version_info__ >= (0, 11)


def on_hopper() -> bool:
    """Whether the default device is a GPU of compute capability 9, whose instructions the kernels use."""
    return str(getattr(jax.devices()[0], "compute_capability", "")).startswith("9.")


def multiprocessors() -> int:
    """Of the default device; of an H100 in a server where it is none."""
    return getattr(jax.devices()[0], "core_count", None) or 132
