"""Pallas's backends that the installed jax has, and jit for their kernels."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import jax

# Pallas's Triton backend, None where jax has none: it is deprecated since 0.12, and the kernels
# are to move to `pallas.mosaic_gpu` when it goes.
triton: Any
try:
    from jax.experimental.pallas import triton
except ImportError:
    triton = None

# Pallas's Mosaic backend for GPUs, None before jax 0.11: the kernels are written for later ones.
mosaic_gpu: Any = None
if jax.__version_info__ >= (0, 11):
    with contextlib.suppress(ImportError):
        from jax.experimental.pallas import mosaic_gpu


def kernel_jit(*static: str) -> Callable[[Callable[..., Any]], Any]:
    """jit for kernels: traced and lowered once per shape, not once per layer.

    Tracing a kernel costs hundreds of Python calls: for 29 layers 10 s of start-up, and a minute
    with Hopper's attention.

    Args:
      static: names of arguments that are not arrays.
    """
    return functools.partial(jax.jit, static_argnames=static)


def on_hopper() -> bool:
    """True if the default device is a GPU of compute capability 9, which Hopper's kernels need."""
    return str(getattr(jax.devices()[0], "compute_capability", "")).startswith("9.")


def multiprocessors() -> int:
    """Multiprocessors of the default device; 132, an H100's, where it does not say."""
    return getattr(jax.devices()[0], "core_count", None) or 132


def keep_version_of_ptxas() -> None:
    """Caches the version of ptxas that Pallas asks for; does nothing where jax has no such query.

    Pallas runs ptxas to ask for its version wherever a bool becomes a number, 120 times in Hopper's
    attention: 1.8 of the 5 s that lowering took (docs/laboratory.md).
    """
    # Private names of jax: Pallas has no public way to give the version. To be removed with the
    # first jax that caches the query itself.
    try:
        from jax.experimental.mosaic.gpu import fragmented_array
    except ImportError:
        return
    extension = getattr(getattr(fragmented_array, "mgpu_lib", None), "_mosaic_gpu_ext", None)
    ask = getattr(extension, "_get_ptxas_isa_version", None)
    if extension is not None and ask is not None:
        extension._get_ptxas_isa_version = functools.cache(ask)


if mosaic_gpu is not None:
    keep_version_of_ptxas()
