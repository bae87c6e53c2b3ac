"""Compiler options: overlap of communication with computation on TPUs, cuBLASLt on GPUs."""

from jax.sharding import Mesh

from uvit_jax.errors import say_once
from uvit_jax.parallel.chips import find_chip

OVERLAPS = ("auto", "none", "sparsecore")

# https://openxla.org/xla/flags_guidance: "used in conjunction to activate asynchronous all-gather
# operations". Without them libtpu 0.0.42 gathered asynchronously on v5e:2x4, and on no v5p.
_ASYNC_GATHERS = {
    "xla_enable_async_all_gather": True,
    "xla_tpu_enable_async_collective_fusion": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
}
# AI-Hypercomputer/maxtext, "SC AR": the SparseCores all-reduce gradients while the TensorCores
# compute the next ones.
_SPARSE_CORE_SUMS = {
    "xla_tpu_enable_sparse_core_collective_offload_all_reduce": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": False,
    "xla_tpu_use_tc_device_shape_on_sc": True,
    "xla_sc_disable_megacore_partitioning": True,
}
# Chips with SparseCores whose compiled programs were seen to use them for that.
_WITH_SPARSE_CORES = ("v5p",)
# cuBLASLt adds the residual stream and a bias to a product before it writes the result
# (`models/kernels/norm.py`). XLA's Triton products write first and add in another kernel.
_GPU = {"xla_gpu_enable_triton_gemm": False}


def compiler_options(mesh: Mesh, overlap: str = "auto", *, prefix: str = "") -> dict[str, bool]:
    """Returns options of `jax.jit` for a train step or a sampler on this mesh; none for CPUs.

    Compiled programs show that these overlap (docs/laboratory.md); no TPU has run them here.
    Google's own runs with SparseCore collectives also set
    LIBTPU_INIT_ARGS=--2a886c8_chip_config_name=megachip_tccontrol, which no option of the compiler
    can set.

    Args:
      overlap: "auto" for asynchronous all-gathers of parameters that fsdp splits. "sparsecore" for
        that and gradients all-reduced by the SparseCores of a v5p; on other devices a warning is
        logged once. "none" leaves a TPU's compiler to its defaults and to LIBTPU_INIT_ARGS.
      prefix: goes before the name of `overlap` in the warning, as "config.train.".
    """
    device = mesh.devices.flat[0]
    chip = find_chip(device.device_kind)
    sums = overlap == "sparsecore" and chip is not None and chip.name in _WITH_SPARSE_CORES
    if overlap == "sparsecore" and not sums:
        say_once(
            f"{prefix}overlap is 'sparsecore', but {device.device_kind} is not a "
            f"{' or '.join(_WITH_SPARSE_CORES)}, whose SparseCores can sum gradients: compiled as "
            "with 'auto'"
        )
    if device.platform == "gpu":
        return dict(_GPU)
    if device.platform != "tpu" or overlap == "none":
        return {}
    options = dict(_ASYNC_GATHERS) if mesh.shape["fsdp"] > 1 else {}
    return options | _SPARSE_CORE_SUMS if sums else options
