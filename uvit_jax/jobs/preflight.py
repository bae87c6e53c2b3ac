"""The job `preflight`: whether a config fits a TPU slice (or this machine), what its run will cost,
and what bounds it, from the compiled train step alone; no TPU is needed and nothing runs.
"""

import importlib.metadata
import json
import logging
import os
import pathlib
from typing import Any

import jax

from uvit_jax.compiled.roofline import mfu
from uvit_jax.compiled.topology import parse_topology, topology_devices
from uvit_jax.errors import Failed, UserError
from uvit_jax.experiment.assembled import Assembled, assemble
from uvit_jax.experiment.config import Experiment
from uvit_jax.experiment.data_card import DataCard
from uvit_jax.experiment.step_program import (
    abstract_inputs,
    abstract_state,
    lower_train_step,
    null_context,
)
from uvit_jax.experiment.workdir import open_workdir
from uvit_jax.files import atomic_write
from uvit_jax.jobs.forecast.program import (
    Hardware,
    Refusal,
    compile_program,
    examine,
    memory_of,
    shard_bytes,
)
from uvit_jax.jobs.forecast.report import closing_line, table
from uvit_jax.jobs.forecast.search import check_search, search
from uvit_jax.models.flops import forward_flops
from uvit_jax.parallel.chips import find_chip
from uvit_jax.parallel.devices import open_devices
from uvit_jax.parallel.mesh import batch_parts

LOG = logging.getLogger("uvit_jax")
FILE = "preflight.json"


def run(experiment: Experiment, workdir: pathlib.Path) -> str:
    """Writes `preflight.json` and prints it as a table; returns one line with its gist.

    Raises:
      UserError: for a topology that doesn't exist, or a mesh that doesn't fit it or the batch.
      Failed: where the train step doesn't fit the chips' memory; the table and the file are there
        all the same.
    """
    config, hardware = experiment.preflight, open_hardware(experiment)
    if config.search:
        check_search(hardware)
    assembled = open_assembled(experiment, hardware)
    sampling = None
    if config.sampler:
        sampling = assemble(experiment, assembled.card, devices=hardware.devices, section="sample")
    open_workdir(workdir)

    report = measure(experiment, assembled, hardware)
    report["run"] = run_costs(experiment, hardware, report)
    report["sampler"] = sampler_figures(experiment, sampling, hardware) if sampling else None
    report["search"] = None
    if config.search:
        _, state = abstract_state(assembled, experiment.optimizer, experiment.train.steps)
        report["search"] = search(
            experiment,
            hardware,
            state,
            report,
            lambda changed: measure(changed, open_assembled(changed, hardware), hardware),
        )

    with atomic_write(workdir / FILE) as file:
        file.write(json.dumps(report, indent=2).encode() + b"\n")
    print(table(report), flush=True)
    line = f"{closing_line(report)}: see {workdir / FILE}"
    if report["memory"]["fits"] is False:
        raise Failed(line)
    return line


def open_hardware(experiment: Experiment) -> Hardware:
    """The devices that `config.preflight.topology` names, or this machine's own.

    Raises:
      UserError: for a topology that doesn't exist, or without the compiler for it.
    """
    config = experiment.preflight
    if config.topology:
        try:
            topology = parse_topology(config.topology)
            devices = topology_devices(topology, config.num_slices)
        except UserError as error:
            raise UserError(f"config.preflight.{error}") from None
        chip = topology.chip
        return Hardware(
            str(topology),
            devices,
            chip,
            chip.hbm,
            topology.ici_bandwidth,
            config.num_slices,
            topology,
        )
    if config.num_slices > 1:
        raise UserError(
            f"config.preflight.num_slices is {config.num_slices}, expected 1 where "
            f"config.preflight.topology is empty"
        )
    devices = open_devices(os.environ)
    found = find_chip(devices[0].device_kind)
    # What the allocator will hand out is the device's own word; a CPU's has none.
    stats = devices[0].memory_stats() if devices[0].platform == "gpu" else None
    capacity = (stats or {}).get("bytes_limit") or (found.hbm if found else None)
    bandwidth = found.link_bandwidth * max(2 * found.dimensions, 1) if found else None
    return Hardware(devices[0].device_kind, devices, found, capacity, bandwidth)


def open_assembled(experiment: Experiment, hardware: Hardware) -> Assembled:
    """Assembles the experiment's training on these devices."""
    return assemble(experiment, DataCard(experiment.data.source), devices=hardware.devices)


def measure(experiment: Experiment, assembled: Assembled, hardware: Hardware) -> dict[str, Any]:
    """What was compiled, for what, by what, and the figures of the train step."""
    return describe(experiment, assembled, hardware) | train_step_figures(
        experiment, assembled, hardware
    )


def describe(experiment: Experiment, assembled: Assembled, hardware: Hardware) -> dict[str, Any]:
    """What is compiled, for what, by what."""
    model, chip = experiment.model, hardware.chip
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
            "libtpu": _version("libtpu") if hardware.devices[0].platform == "tpu" else None,
        },
        "model": {
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(assembled.abstract_params)),
            "forward_flops": forward_flops(model),
            **{
                name: getattr(model, name)
                for name in ("embed_dim", "depth", "num_heads", "num_tokens")
            },
            **{name: getattr(model, name) for name in ("dtype", "remat", "scan_blocks")},
        },
        "mesh": dict(assembled.mesh.shape),
        "batch": {
            "global": experiment.train.batch_size,
            "per_chip": experiment.train.batch_size / assembled.mesh.size,
            "per_replica": experiment.train.batch_size // batch_parts(assembled.mesh),
        },
    }


def train_step_figures(
    experiment: Experiment, assembled: Assembled, hardware: Hardware
) -> dict[str, Any]:
    """Compiles the train step: its memory by part and, where it fits, FLOPs, collectives and
    roofline.
    """
    LOG.info("compiling the train step for %s (a large model takes minutes)...", hardware)
    optimizer, state = abstract_state(assembled, experiment.optimizer, experiment.train.steps)
    step = abstract_inputs(experiment, assembled.batch_sharding)
    lowered = lower_train_step(experiment, assembled, optimizer, state, step)
    compiled, seconds = compile_program(lowered)
    LOG.info(
        "%s %.0f s", "refused after" if isinstance(compiled, Refusal) else "compiled in", seconds
    )
    arguments = {
        "parameters": shard_bytes(state.params),
        "optimizer": shard_bytes(state.opt_state),
        "EMA": shard_bytes(state.ema),
        "batch": shard_bytes(step.batch),
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
    model_flops = 3 * forward_flops(experiment.model) * experiment.train.batch_size
    return figures | examine(
        compiled,
        hardware,
        assembled.mesh,
        model_flops=model_flops,
        per_chip_bytes=2 * kept + arguments["batch"],
    )


def run_costs(
    experiment: Experiment, hardware: Hardware, report: dict[str, Any]
) -> dict[str, Any] | None:
    """Hours and chip-hours of the whole run at `config.preflight.mfu`; None for what doesn't fit,
    or a chip whose speed isn't known.

    For a share of 0 it is the roofline's. Where the roofline allows less than the share, nothing is
    left but what the compiler says: the schedule's step or, without a schedule, the bound.
    """
    if hardware.chip is None or report["memory"]["fits"] is False:
        return None
    chips, steps = len(hardware.devices), experiment.train.steps
    model_flops = 3 * forward_flops(experiment.model) * experiment.train.batch_size
    assumed = experiment.preflight.mfu
    highest = report["roofline"] and report["roofline"]["highest_mfu"]
    if highest is None and not assumed:
        return None
    share, source = assumed, "asked"
    if highest is not None and not 0 < assumed <= highest:
        share, source = highest, "roofline"
        if assumed and (schedule := report["schedule"]):
            scheduled = mfu(model_flops, schedule["step"], chips, hardware.chip)
            share, source = min((share, source), (scheduled, "schedule"))
    seconds = model_flops / (share * chips * hardware.chip.peak_flops)
    hours = seconds * steps / 3600
    return {
        "steps": steps,
        "asked_mfu": assumed,
        "mfu": share,
        "mfu_source": source,
        "step_seconds": seconds,
        "images_per_second": experiment.train.batch_size / seconds,
        "hours": hours,
        "chip_hours": hours * chips,
    }


def sampler_figures(
    experiment: Experiment, assembled: Assembled, hardware: Hardware
) -> dict[str, Any]:
    """Compiles the sampler for `config.sample.batch_size` samples: its memory, FLOPs, collectives
    and roofline.

    Drawing samples of the network is all of it: an autoencoder's decoder comes on top.
    """
    rows, model = experiment.sample.batch_size, experiment.model
    LOG.info("compiling the sampler for %s...", hardware)
    null: Any = (
        experiment.null_label if null_context(experiment) is None else null_context(experiment)
    )
    condition = None
    if model.num_classes:
        condition = jax.ShapeDtypeStruct((rows,), "int32", sharding=assembled.batch_sharding)
    elif model.context_dim:
        shape = (rows, model.context_length, model.context_dim)
        condition = jax.ShapeDtypeStruct(shape, "float32", sharding=assembled.batch_sharding)
    guided = experiment.sample.guidance_scale != 0
    lowered = assembled.sampler(experiment.diffusion, experiment.sample, null).lower(
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
        compiled, hardware, assembled.mesh, model_flops=None, per_chip_bytes=sum(arguments.values())
    )
    figures["evaluations"] = (
        figures["flops"]["compiled"] * assembled.mesh.size / (forward_flops(model) * rows)
    )
    if figures["roofline"]:
        figures["images_per_second"] = rows / figures["roofline"]["bound"]
    return figures


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
