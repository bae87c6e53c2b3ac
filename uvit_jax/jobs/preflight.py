"""The job `preflight`: compiles a run's train step for a TPU slice or this machine, runs nothing.

It tells if the run fits, what it will cost and what bounds it. No TPU is needed.
"""

import dataclasses
import json
import logging
import pathlib
from typing import Any

from uvit_jax.errors import Failed
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
from uvit_jax.jobs.forecast.figures import (
    describe,
    run_costs,
    sampler_figures,
    train_step_figures,
)
from uvit_jax.jobs.forecast.hardware import Hardware, open_hardware
from uvit_jax.jobs.forecast.report import closing_line, table
from uvit_jax.jobs.forecast.search import check_search, search
from uvit_jax.parallel.mesh import MeshConfig

LOG = logging.getLogger("uvit_jax")
FILE = "preflight.json"


def run(experiment: Experiment, workdir: pathlib.Path) -> str:
    """Writes `preflight.json` and prints it as a table; returns its closing line.

    Raises:
      UserError: for a topology that does not exist, or a mesh that does not fit it or the batch.
      Failed: if the train step does not fit the chips' memory; the table and the file are written
        all the same.
    """
    config, model, train = experiment.preflight, experiment.model, experiment.train
    hardware = open_hardware(config)
    if config.search:
        check_search(hardware)
    assembled = open_assembled(experiment, hardware)
    sampling = None
    if config.sampler:
        sampling = assemble(experiment, assembled.card, devices=hardware.devices, section="sample")
    open_workdir(workdir)

    report = measure(experiment, assembled, hardware)
    report["run"] = run_costs(train, model, config.mfu, hardware, report)
    report["sampler"] = None
    if sampling:
        diffusion = experiment.diffusion
        texts = null_context(model, diffusion.p_uncond, experiment.prepare.dtype)
        null = experiment.null_label if texts is None else texts
        report["sampler"] = sampler_figures(sampling, diffusion, experiment.sample, null, hardware)
    report["search"] = None
    if config.search:

        def measure_changed(mesh: MeshConfig, batch_size: int) -> dict[str, Any]:
            resized = dataclasses.replace(train, batch_size=batch_size)
            changed = dataclasses.replace(experiment, mesh=mesh, train=resized)
            return measure(changed, open_assembled(changed, hardware), hardware)

        _, state = abstract_state(assembled, experiment.optimizer, train.steps)
        report["search"] = search(
            model, train, experiment.mesh, hardware, state, report, measure_changed
        )

    with atomic_write(workdir / FILE) as file:
        file.write(json.dumps(report, indent=2).encode() + b"\n")
    print(table(report), flush=True)
    line = f"{closing_line(report)}: see {workdir / FILE}"
    if report["memory"]["fits"] is False:
        raise Failed(line)
    return line


def open_assembled(experiment: Experiment, hardware: Hardware) -> Assembled:
    """Assembles the experiment's training on these devices; its data set need not exist."""
    return assemble(experiment, DataCard(experiment.data.source), devices=hardware.devices)


def measure(experiment: Experiment, assembled: Assembled, hardware: Hardware) -> dict[str, Any]:
    """Compiles the train step; returns its figures, and what was compiled, for what, by what."""
    LOG.info("compiling the train step for %s (a large model takes minutes)...", hardware)
    optimizer, state = abstract_state(assembled, experiment.optimizer, experiment.train.steps)
    inputs = abstract_inputs(experiment, assembled.batch_sharding)
    lowered = lower_train_step(experiment, assembled, optimizer, state, inputs)
    return describe(assembled, experiment.train.batch_size, hardware) | train_step_figures(
        lowered, state, inputs.batch, assembled, hardware
    )
