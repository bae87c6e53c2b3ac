"""The largest batch that fits, and the mesh with the best roofline: a few compiles, chosen by
estimates.
"""

import dataclasses
import logging
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from uvit_jax.compiled.roofline import Work, roofline
from uvit_jax.errors import UserError
from uvit_jax.experiment.checks import check_batch, check_mesh
from uvit_jax.experiment.config import Experiment
from uvit_jax.jobs.forecast.program import Hardware, shard_bytes
from uvit_jax.models.uvit_sharding import RULES
from uvit_jax.parallel.mesh import AXES, MeshConfig, make_mesh
from uvit_jax.parallel.sharding import tree_shardings

LOG = logging.getLogger("uvit_jax")

# Each compile of a large model takes minutes; the estimates in between cost nothing.
BATCH_COMPILES = 4
MESH_COMPILES = 2
# The search for a batch ends when the next one up that doesn't fit is this near, or memory this
# full.
_NEAR, _FULL = 1 / 16, 0.97

# measure(experiment) compiles a train step: "memory", "roofline", "mesh", "batch" as in the report.
Measure = Callable[[Experiment], dict[str, Any]]


def check_search(hardware: Hardware) -> None:
    """Raises a UserError where there is nothing to search by."""
    if hardware.chip is None or hardware.capacity is None:
        raise UserError(
            f"config.preflight.search is True, but memory and speed of {hardware.name!r} are not "
            "known: expected a TPU slice in config.preflight.topology"
        )


def search(
    experiment: Experiment, hardware: Hardware, state: Any, base: dict[str, Any], measure: Measure
) -> dict[str, Any]:
    """The largest batch that fits on the config's mesh, and the best mesh for the config's batch.

    `state` is the training state's shapes; `base` the report of the config as it is, which is not
    compiled again.
    """
    batch = largest_batch(experiment, base, measure)
    return {"batch": batch, "mesh": best_mesh(experiment, hardware, state, base, batch, measure)}


def largest_batch(experiment: Experiment, base: dict[str, Any], measure: Measure) -> dict[str, Any]:
    """The largest batch for each replica that was compiled and fits, the smallest that doesn't, and
    every try.

    Memory grows linearly with the batch, nearly: each try is where the line through two others
    meets the limit.
    """
    replicas = base["batch"]["global"] // base["batch"]["per_replica"]
    tries = [_try(base)]
    while len(tries) <= BATCH_COMPILES:
        size = next_batch(tries, base["memory"])
        if size is None:
            break
        LOG.info("search: does a batch of %d for each of %d replicas fit?", size, replicas)
        tries.append(_try(measure(_resized(experiment, size * replicas))))
    fitting = [one["per_replica"] for one in tries if one["fits"]]
    others = [one["per_replica"] for one in tries if not one["fits"]]
    largest = max(fitting, default=None)
    return {
        "largest_per_replica": largest,
        "largest_global": largest and largest * replicas,
        "smallest_that_fails": min(others, default=None),
        "tries": tries,
    }


def next_batch(tries: list[dict[str, Any]], memory: dict[str, Any]) -> int | None:
    """The batch to try next; None where the answer is near enough, or no batch can fit."""
    capacity = memory["capacity"]
    low = max((one["per_replica"] for one in tries if one["fits"]), default=0)
    high = min((one["per_replica"] for one in tries if not one["fits"]), default=None)
    used = max((one["total"] for one in tries if one["fits"]), default=0)
    if used > _FULL * capacity or (high is not None and high - low <= max(1, low * _NEAR)):
        return None
    intercept, slope = memory_line(tries, memory)
    guess = int((capacity - intercept) / slope) if slope > 0 else 2 * max(low, 1)
    if high is not None and not low < guess < high:
        guess = (low + high) // 2
    guess = _round(max(guess, low + 1))
    # Rounded to what is asked already, the answer is between two numbers that nobody would choose.
    return None if guess in (low, high) or guess < 1 else guess


def memory_line(tries: list[dict[str, Any]], memory: dict[str, Any]) -> tuple[float, float]:
    """Bytes without a batch, and for each example: the line through the two tries nearest to the
    limit.
    """
    known = sorted(
        ((one["per_replica"], one["total"]) for one in tries if one["total"] is not None),
        key=lambda point: abs(point[1] - memory["capacity"]),
    )
    distinct = [
        point for i, point in enumerate(known) if point[0] not in [other[0] for other in known[:i]]
    ]
    state = sum(memory["parts"].get(name) or 0 for name in ("parameters", "optimizer", "EMA"))
    if len(distinct) > 1:
        (x0, y0), (x1, y1) = distinct[:2]
        slope = (y1 - y0) / (x1 - x0)
        if slope > 0:
            return y0 - slope * x0, slope
    if not distinct:
        return float(state), 0.0
    # One try: gradients beside the state, the rest grows with the batch.
    x, y = distinct[0]
    fixed = state + (memory["parts"].get("parameters") or 0)
    return (float(fixed), (y - fixed) / x) if y > fixed else (float(state), (y - state) / x)


def best_mesh(
    experiment: Experiment,
    hardware: Hardware,
    state: Any,
    base: dict[str, Any],
    batch: dict[str, Any],
    measure: Measure,
) -> dict[str, Any]:
    """The mesh of the best compiled step: the config's own, and those with the best estimates, are
    compiled.
    """
    line = memory_line(batch["tries"], base["memory"])
    estimates = estimate_meshes(experiment, hardware, state, base, line)
    rows = [_row(base, None)]
    for estimate in [one for one in estimates if one["mesh"] != base["mesh"]][:MESH_COMPILES]:
        LOG.info(
            "search: compiling for mesh %s",
            " x ".join(f"{axis} {n}" for axis, n in estimate["mesh"].items()),
        )
        config = dataclasses.replace(experiment, mesh=MeshConfig(**estimate["mesh"]))
        rows.append(_row(measure(config), estimate["bound"]))
    fitting = [row for row in rows if row["fits"]]
    best = min(fitting, key=_preference, default=None)
    return {"best": best and best["mesh"], "estimated": len(estimates), "compiled": rows}


def estimate_meshes(
    experiment: Experiment,
    hardware: Hardware,
    state: Any,
    base: dict[str, Any],
    line: tuple[float, float],
) -> list[dict[str, Any]]:
    """Every mesh that divides devices, heads and batch and may fit, with an estimate of its bound
    in seconds, the best first (`_preference` says what that is).

    Counted for each chip: the arithmetic; the state read and written once; of data parallelism an
    all-reduce of the gradients; of fsdp two gathers of the parameters and a reduce-scatter of the
    gradients in the compute dtype, and the all-reduce on what is left; of tensor parallelism four
    all-reduces of the tokens a block. Between slices go sums of gradients alone: gathering
    parameters over the data center's network is never the better way.
    """
    chip, model = hardware.chip, experiment.model
    assert chip is not None
    assert hardware.capacity is not None  # check_search has said so
    total, size = experiment.train.batch_size, jnp.dtype(model.compute_dtype).itemsize
    whole = base["memory"]["parts"]
    static = sum(whole[name] or 0 for name in ("parameters", "optimizer", "EMA"))
    intercept, slope = line
    compute = 3 * base["model"]["forward_flops"] * total / (len(hardware.devices) * chip.peak_flops)
    found = []
    for data, fsdp, tensor in possible_meshes(experiment, len(hardware.devices)):
        if data % hardware.num_slices:
            continue
        mesh = make_mesh(MeshConfig(data, fsdp, tensor), hardware.devices)
        placed = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            state,
            tree_shardings(state, mesh, RULES),
        )
        kept, weights = shard_bytes(placed), base["model"]["parameters"] * size / tensor
        examples = total // (data * fsdp)
        sent = 2 * (data - 1) / data * weights / fsdp
        sent += 3 * (fsdp - 1) / fsdp * weights
        tokens = examples * model.num_tokens * model.embed_dim * size
        sent += 4 * model.depth * 2 * (tensor - 1) / tensor * tokens
        needed = kept + slope * examples / tensor + max(intercept - static, 0.0) / (fsdp * tensor)
        # The estimate of what is not the state is rough: only what is far off is left out.
        if needed <= 1.1 * hardware.capacity:
            across = (
                2 * (1 - 1 / hardware.num_slices) * weights / (fsdp * data / hardware.num_slices)
            )
            least = roofline(
                Work(compute * chip.peak_flops, 2 * kept, sent, across),
                chip,
                hardware.ici_bandwidth,
            )
            sizes = dict(zip(AXES, (data, fsdp, tensor), strict=True))
            found.append({"mesh": sizes, "bound": least.bound, "no_overlap": least.no_overlap})
    return sorted(found, key=_preference)


def _preference(row: dict[str, Any]) -> tuple[int, ...]:
    """Sorts meshes: by the bound, then by the parts of a layer; of those that need about the same
    time without overlap, the one with the fewest parts of the parameters. Bounds count as the same
    within a twentieth, sums within a fifth.
    """
    bound, total = (
        math.floor(20 * math.log(row["bound"])),
        math.floor(5 * math.log(row["no_overlap"])),
    )
    return bound, row["mesh"]["tensor"], total, row["mesh"]["fsdp"]


def possible_meshes(experiment: Experiment, devices: int) -> list[tuple[int, int, int]]:
    """(data, fsdp, tensor) that multiply to the devices and divide what they split: batch, heads
    and channels.
    """
    divisors = [n for n in range(1, devices + 1) if devices % n == 0]
    found = []
    for tensor in divisors:
        for fsdp in (n for n in divisors if (devices // tensor) % n == 0):
            sizes = devices // (fsdp * tensor), fsdp, tensor
            try:
                train = experiment.train
                check_batch("train", train.batch_size, sizes, train.microbatches)
                check_mesh(experiment.model, sizes)
            except UserError:
                continue
            found.append(sizes)
    return found


def _round(size: int) -> int:
    """A number that fills a TPU's rows of eight, where that is near."""
    return size if size < 16 else size // 8 * 8


def _resized(experiment: Experiment, batch_size: int) -> Experiment:
    return dataclasses.replace(
        experiment, train=dataclasses.replace(experiment.train, batch_size=batch_size)
    )


def _try(figures: dict[str, Any]) -> dict[str, Any]:
    memory = figures["memory"]
    return {
        "per_replica": figures["batch"]["per_replica"],
        "fits": memory["fits"],
        "total": memory["total"],
    }


def _row(figures: dict[str, Any], estimated: float | None) -> dict[str, Any]:
    line = figures["roofline"] or {}
    return {
        "mesh": figures["mesh"],
        "fits": figures["memory"]["fits"],
        "total": figures["memory"]["total"],
        "bound": line.get("bound"),
        "no_overlap": line.get("no_overlap"),
        "highest_mfu": line.get("highest_mfu"),
        "estimated_bound": estimated,
    }
