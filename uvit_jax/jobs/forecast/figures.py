"""Figures of a run for a report, before it runs: its train step, its sampler, its cost."""

import importlib.metadata
import logging
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import NamedSharding

from uvit_jax.compiled.roofline import mfu
from uvit_jax.experiment.assembled import Assembled
from uvit_jax.experiment.job_sections import SampleConfig
from uvit_jax.experiment.sections import DiffusionConfig, TrainConfig
from uvit_jax.jobs.forecast.hardware import Hardware
from uvit_jax.jobs.forecast.program import (
    Refusal,
    compile_program,
    examine,
    memory_of,
    shard_bytes,
)
from uvit_jax.models.flops import forward_flops
from uvit_jax.models.uvit_config import UViTConfig
from uvit_jax.parallel.mesh import batch_parts
from uvit_jax.training.state import TrainState

LOG = logging.getLogger("uvit_jax")


def describe(assembled: Assembled, batch_size: int, hardware: Hardware) -> dict[str, Any]:
    """Returns the hardware, versions, model, mesh and batch that a step is compiled with."""
    model, mesh, chip = assembled.model, assembled.mesh, hardware.chip
    platform = hardware.devices[0].platform
    copied = ("embed_dim", "depth", "num_heads", "num_tokens", "dtype", "remat", "scan_blocks")
    return {
        "hardware": {
            "text": str(hardware),
            "name": hardware.name,
            "num_slices": hardware.num_slices,
            "chips": len(hardware.devices),
            "device_kind": hardware.devices[0].device_kind,
            "peak_flops": chip and chip.peak_flops,
            "hbm_bandwidth": chip and chip.hbm_bandwidth,
            "ici_bandwidth": hardware.ici_bandwidth,
            "dcn_bandwidth": chip and chip.dcn_bandwidth,
        },
        "versions": {
            "jax": _version("jax"),
            "libtpu": _version("libtpu") if platform == "tpu" else None,
        },
        "model": {
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(assembled.abstract_params)),
            "forward_flops": forward_flops(model),
            **{name: getattr(model, name) for name in copied},
        },
        "mesh": dict(mesh.shape),
        "batch": {
            "global": batch_size,
            "per_chip": batch_size / mesh.size,
            "per_replica": batch_size // batch_parts(mesh),
        },
    }


def train_step_figures(
    lowered: jax.stages.Lowered,
    state: TrainState,
    batch: Mapping[str, jax.ShapeDtypeStruct],
    assembled: Assembled,
    hardware: Hardware,
) -> dict[str, Any]:
    """Compiles a train step and returns its memory by part.

    If it fits, FLOPs, collectives, roofline and schedule are there too, else None.

    Args:
      lowered: the train step.
      state: shapes and shardings of the state, an argument of the step.
      batch: shapes and shardings of a batch, an argument of the step.
      assembled: the model and its mesh.
      hardware: the devices to compile for.
    """
    compiled, seconds = compile_program(lowered)
    LOG.info(
        "%s %.0f s", "refused after" if isinstance(compiled, Refusal) else "compiled in", seconds
    )
    arguments = {
        "parameters": shard_bytes(state.params),
        "optimizer": shard_bytes(state.opt_state),
        "EMA": shard_bytes(state.ema),
        "batch": shard_bytes(batch),
    }
    figures: dict[str, Any] = {
        "compile_seconds": seconds,
        "memory": memory_of(compiled, arguments, hardware.capacity),
        "flops": None,
        "collectives": [],
        "traffic": None,
        "roofline": None,
        "schedule": None,
    }
    if isinstance(compiled, Refusal):
        return figures
    kept = sum(bytes_ for name, bytes_ in arguments.items() if name != "batch")
    return figures | examine(
        compiled,
        hardware,
        assembled.mesh,
        model_flops=step_flops(assembled.model, batch["x"].shape[0]),
        per_chip_bytes=2 * kept + arguments["batch"],
    )


def step_flops(model: UViTConfig, batch_size: int) -> int:
    """FLOPs of a train step without rematerialisation: a backward pass costs two forward ones."""
    return 3 * forward_flops(model) * batch_size


def run_costs(
    train: TrainConfig,
    model: UViTConfig,
    asked_mfu: float,
    hardware: Hardware,
    report: Mapping[str, Any],
) -> dict[str, Any] | None:
    """Returns hours and chip-hours of the whole run at the asked MFU.

    An asked MFU of 0 takes the roofline's. If the roofline is below the asked MFU, the result is at
    the compiler's estimate: the schedule's step or, without a schedule, the roofline's bound.

    Returns:
      None if the step does not fit, or the chip's speed is not known.
    """
    if hardware.chip is None or report["memory"]["fits"] is False:
        return None
    chips, flops = len(hardware.devices), step_flops(model, train.batch_size)
    highest = report["roofline"] and report["roofline"]["highest_mfu"]
    if highest is None and not asked_mfu:
        return None
    share, source = asked_mfu, "asked"
    if highest is not None and not 0 < asked_mfu <= highest:
        share, source = highest, "roofline"
        if asked_mfu and (schedule := report["schedule"]):
            scheduled = mfu(flops, schedule["step"], chips, hardware.chip)
            share, source = min((share, source), (scheduled, "schedule"))
    seconds = flops / (share * chips * hardware.chip.peak_flops)
    hours = seconds * train.steps / 3600
    return {
        "steps": train.steps,
        "asked_mfu": asked_mfu,
        "mfu": share,
        "mfu_source": source,
        "step_seconds": seconds,
        "images_per_second": train.batch_size / seconds,
        "hours": hours,
        "chip_hours": hours * chips,
    }


def sampler_figures(
    assembled: Assembled,
    diffusion: DiffusionConfig,
    sample: SampleConfig,
    null_condition: Any,
    hardware: Hardware,
) -> dict[str, Any]:
    """Compiles the sampler for a batch; returns its memory, FLOPs, collectives and roofline.

    The network's work is all of it: an autoencoder's decoder comes on top.
    """
    rows, model, mesh = sample.batch_size, assembled.model, assembled.mesh
    LOG.info("compiling the sampler for %s...", hardware)
    condition = _condition(model, rows, assembled.batch_sharding)
    guided = sample.guidance_scale != 0
    lowered = assembled.sampler(diffusion, sample, null_condition).lower(
        assembled.abstract_params, rows=rows, condition=condition, guided=guided
    )
    compiled, seconds = compile_program(lowered)
    LOG.info("compiled in %.0f s", seconds)
    arguments = {
        "parameters": shard_bytes(assembled.abstract_params),
        "conditions": 0 if condition is None else shard_bytes(condition),
    }
    figures: dict[str, Any] = {
        "batch": rows,
        "guided": guided,
        "compile_seconds": seconds,
        "memory": memory_of(compiled, arguments, hardware.capacity),
        "evaluations": None,
        "images_per_second": None,
    }
    if isinstance(compiled, Refusal):
        return figures
    figures |= examine(
        compiled, hardware, mesh, model_flops=None, per_chip_bytes=sum(arguments.values())
    )
    evaluated = figures["flops"]["compiled"] * mesh.size
    figures["evaluations"] = evaluated / (forward_flops(model) * rows)
    if figures["roofline"]:
        figures["images_per_second"] = rows / figures["roofline"]["bound"]
    return figures


def _condition(
    model: UViTConfig, rows: int, sharding: NamedSharding
) -> jax.ShapeDtypeStruct | None:
    """Returns the shape of labels or of texts' states; None for an unconditional model."""
    if model.num_classes:
        return jax.ShapeDtypeStruct((rows,), "int32", sharding=sharding)
    if model.context_dim:
        shape = (rows, model.context_length, model.context_dim)
        return jax.ShapeDtypeStruct(shape, "float32", sharding=sharding)
    return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
