"""Pallas's Mosaic backend for GPUs where the installed jax has the one that the kernels are written
for.
"""

import contextlib
import functools
from typing import Any

import jax

plgpu: Any = None
if jax.__version_info__ >= (0, 11):  # of an older one it is not used, and takes a second to import
    with contextlib.suppress(ImportError):
        from jax.experimental.pallas import mosaic_gpu as plgpu

AVAILABLE = plgpu is not None


def on_hopper() -> bool:
    """Whether the default device is a GPU of compute capability 9, whose instructions the kernels
    use.
    """
    return str(getattr(jax.devices()[0], "compute_capability", "")).startswith("9.")


def multiprocessors() -> int:
    """Of the default device; of an H100 in a server where it is none."""
    return getattr(jax.devices()[0], "core_count", None) or 132


def keep_version_of_ptxas() -> None:
    """Pallas runs ptxas to ask for its version wherever a bool becomes a number: 1.8 of the 5 s
    that lowering takes.

    The question is none of Pallas's public interface; where a version of jax does not have it,
    nothing changes.
    """
    try:
        from jax.experimental.mosaic.gpu import fragmented_array
    except ImportError:
        return
    extension = getattr(getattr(fragmented_array, "mgpu_lib", None), "_mosaic_gpu_ext", None)
    ask = getattr(extension, "_get_ptxas_isa_version", None)
    if extension is not None and ask is not None:
        extension._get_ptxas_isa_version = functools.cache(ask)


if AVAILABLE:
    keep_version_of_ptxas()
