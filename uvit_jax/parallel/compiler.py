"""What the compiler is told: how TPUs compute while they communicate, and whose products GPUs take."""

from jax.sharding import Mesh

from uvit_jax.errors import say_once
from uvit_jax.parallel.chips import find_chip

OVERLAPS = ("auto", "none", "sparsecore")

# https://openxla.org/xla/flags_guidance: "used in conjunction to activate asynchronous all-gather
# operations". Left alone, libtpu 0.0.42 was seen to do so on v5e:2x4, and on no v5p.
_ASYNC_GATHERS = {
    "xla_enable_async_all_gather": True,
    "xla_tpu_enable_async_collective_fusion": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
}
# AI-Hypercomputer/maxtext, "SC AR": the SparseCores add up gradients while the TensorCores compute
# the next. Chips that have them and whose compiler was seen to do it.
_SPARSE_CORE_SUMS = {
    "xla_tpu_enable_sparse_core_collective_offload_all_reduce": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": False,
    "xla_tpu_use_tc_device_shape_on_sc": True,
    "xla_sc_disable_megacore_partitioning": True,
}
_WITH_SPARSE_CORES = ("v5p",)
# Products by cuBLASLt, which adds the residual stream and a bias to one before it is written
# (`models/kernels/norm.py`). XLA's own products in Triton take no such sum along.
_GPU = {"xla_gpu_enable_triton_gemm": False}


def compiler_options(mesh: Mesh, overlap: str = "auto") -> dict[str, bool]:
    """Options of `jax.jit` for a train step or a sampler on this mesh; none for CPUs.

    overlap: "auto" for asynchronous gathers of parameters where fsdp splits them; "sparsecore" for
    that and gradients summed by the SparseCores of a v5p, said once where the devices are others;
    "none" for a TPU compiler's own choices, which the environment's LIBTPU_INIT_ARGS then sets
    alone. Compiled programs say that these overlap (docs/performance.md); no TPU has run them here.
    Google's own runs with SparseCore collectives set
    LIBTPU_INIT_ARGS=--2a886c8_chip_config_name=megachip_tccontrol besides, which isn't the
    compiler's to set.
    """
    device = mesh.devices.flat[0]
    chip = find_chip(device.device_kind)
    sums = overlap == "sparsecore" and chip is not None and chip.name in _WITH_SPARSE_CORES
    if overlap == "sparsecore" and not sums:
        say_once(
            f"train.overlap is 'sparsecore', but {device.device_kind} is no "
            f"{' or '.join(_WITH_SPARSE_CORES)}, whose SparseCores can sum gradients: compiled as "
            "with 'auto'"
        )
    if device.platform == "gpu":
        return dict(_GPU)
    if device.platform != "tpu" or overlap == "none":
        return {}
    options = dict(_ASYNC_GATHERS) if mesh.shape["fsdp"] > 1 else {}
    return options | _SPARSE_CORE_SUMS if sums else options
