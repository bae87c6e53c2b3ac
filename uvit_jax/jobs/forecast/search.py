"""Search for the largest batch that fits and the fastest mesh, by estimates and a few compiles."""

import dataclasses
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from uvit_jax.compiled.roofline import Roofline, Work, roofline
from uvit_jax.errors import UserError
from uvit_jax.experiment.checks import check_batch, check_mesh
from uvit_jax.experiment.sections import TrainConfig
from uvit_jax.jobs.forecast.hardware import Hardware
from uvit_jax.jobs.forecast.program import shard_bytes
from uvit_jax.models.uvit_config import UViTConfig
from uvit_jax.models.uvit_sharding import RULES
from uvit_jax.parallel.mesh import MeshConfig, make_mesh
from uvit_jax.parallel.sharding import tree_shardings
from uvit_jax.training.state import TrainState

LOG = logging.getLogger("uvit_jax")

# Each compile of a large model takes minutes; the estimates in between cost nothing.
BATCH_COMPILES = 4
MESH_COMPILES = 2
# The search for a batch ends when the smallest that does not fit is within this share, or memory
# is this full.
_NEAR, _FULL = 1 / 16, 0.97

# measure(mesh, batch_size) compiles a train step and returns its figures, as in the report.
Measure = Callable[[MeshConfig, int], dict[str, Any]]


def check_search(hardware: Hardware) -> None:
    """Raises a UserError if the memory or the speed of the chips is not known."""
    if hardware.chip is None or hardware.capacity is None:
        raise UserError(
            f"config.preflight.search is True, but memory and speed of {hardware.name!r} are not "
            "known: expected a TPU slice in config.preflight.topology"
        )


def search(
    model: UViTConfig,
    train: TrainConfig,
    mesh: MeshConfig,
    hardware: Hardware,
    state: TrainState,
    base: dict[str, Any],
    measure: Measure,
) -> dict[str, Any]:
    """Finds the largest batch that fits on the config's mesh, and the best mesh for its batch.

    Args:
      model, train, mesh: the config's sections.
      hardware: the devices, of known speed and memory (`check_search`).
      state: shapes of the training state.
      base: the report of the config as it is, which is not compiled again.
      measure: compiles a step on another mesh or of another batch.
    """
    batch = largest_batch(base, lambda size: measure(mesh, size))
    line = memory_line(batch["tries"], base["memory"])
    estimates = estimate_meshes(model, train, hardware, state, base, line)
    best = best_mesh(estimates, base, lambda other: measure(other, train.batch_size))
    return {"batch": batch, "mesh": best}


def largest_batch(base: dict[str, Any], measure: Callable[[int], dict[str, Any]]) -> dict[str, Any]:
    """Finds the largest batch for each replica that fits; returns every try.

    Memory grows nearly linearly with the batch: each try is where the line through two others
    meets the limit.

    Args:
      base: the report of the first try.
      measure: compiles a step of another batch, given the size over all replicas.
    """
    replicas = base["batch"]["global"] // base["batch"]["per_replica"]
    tries = [_try(base)]
    while len(tries) <= BATCH_COMPILES:
        size = next_batch(tries, base["memory"])
        if size is None:
            break
        LOG.info("search: does a batch of %d for each of %d replicas fit?", size, replicas)
        tries.append(_try(measure(size * replicas)))
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
    """Returns the batch to try next; None if the answer is near enough, or no batch can fit."""
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
    # If rounding gives a batch that was tried, the answer is between two odd sizes.
    return None if guess in (low, high) or guess < 1 else guess


def memory_line(tries: list[dict[str, Any]], memory: dict[str, Any]) -> tuple[float, float]:
    """Returns bytes without a batch and per example, from the two tries nearest to the limit."""
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
    # With one try: gradients are as large as parameters, the rest grows with the batch.
    x, y = distinct[0]
    fixed = state + (memory["parts"].get("parameters") or 0)
    return (float(fixed), (y - fixed) / x) if y > fixed else (float(state), (y - state) / x)


def best_mesh(
    estimates: Sequence[dict[str, Any]],
    base: dict[str, Any],
    measure: Callable[[MeshConfig], dict[str, Any]],
) -> dict[str, Any]:
    """Compiles the meshes with the best estimates; returns the best of them and the config's own.

    Args:
      estimates: rows of `estimate_meshes`, the best first.
      base: the report of the config's own mesh.
      measure: compiles a step on another mesh.
    """
    rows = [_row(base, None)]
    for estimate in [one for one in estimates if one["mesh"] != base["mesh"]][:MESH_COMPILES]:
        LOG.info(
            "search: compiling for mesh %s",
            " x ".join(f"{axis} {n}" for axis, n in estimate["mesh"].items()),
        )
        rows.append(_row(measure(MeshConfig(**estimate["mesh"])), estimate["bound"]))
    fitting = [row for row in rows if row["fits"]]
    best = min(fitting, key=_preference, default=None)
    return {"best": best and best["mesh"], "estimated": len(estimates), "compiled": rows}


def estimate_meshes(
    model: UViTConfig,
    train: TrainConfig,
    hardware: Hardware,
    state: TrainState,
    base: dict[str, Any],
    line: tuple[float, float],
) -> list[dict[str, Any]]:
    """Estimates the bound in seconds of every mesh that may fit, the best first (`_preference`).

    The meshes are those that divide devices, heads and batch. Counted for each chip: the
    arithmetic; the state read and written once; for data parallelism an all-reduce of the
    gradients; for fsdp two all-gathers of the parameters and a reduce-scatter of the gradients in
    the compute dtype, and the all-reduce of what is left; for tensor parallelism four all-reduces
    of the tokens per block. Only sums of gradients go between slices, since to gather parameters
    over the data center's network is never faster.
    """
    assert hardware.capacity is not None  # check_search checked it
    found = []
    for sizes in possible_meshes(model, train, len(hardware.devices)):
        if sizes[0] % hardware.num_slices:
            continue
        mesh = MeshConfig(*sizes)
        kept = _state_bytes(state, make_mesh(mesh, hardware.devices))
        # The estimate of activations is rough: only meshes that are far too large are left out.
        if _needed(mesh, train.batch_size, kept, base, line) <= 1.1 * hardware.capacity:
            least = _bound(mesh, model, train.batch_size, kept, hardware, base)
            row = {"bound": least.bound, "no_overlap": least.no_overlap}
            found.append({"mesh": dataclasses.asdict(mesh), **row})
    return sorted(found, key=_preference)


def _state_bytes(state: TrainState, mesh: Mesh) -> int:
    """Counts bytes of the state on one chip of this mesh."""
    placed = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        tree_shardings(state, mesh, RULES),
    )
    return shard_bytes(placed)


def _needed(
    mesh: MeshConfig, batch_size: int, kept: int, base: dict[str, Any], line: tuple[float, float]
) -> float:
    """Estimates bytes of memory that a chip needs: the state, gradients and activations."""
    whole = base["memory"]["parts"]
    static = sum(whole[name] or 0 for name in ("parameters", "optimizer", "EMA"))
    intercept, slope = line
    examples = batch_size // (mesh.data * mesh.fsdp)
    fixed = max(intercept - static, 0.0)
    return kept + slope * examples / mesh.tensor + fixed / (mesh.fsdp * mesh.tensor)


def _bound(
    mesh: MeshConfig,
    model: UViTConfig,
    batch_size: int,
    kept: int,
    hardware: Hardware,
    base: dict[str, Any],
) -> Roofline:
    """Estimates the roofline of a step on this mesh; kept: bytes of the state on one chip."""
    chip, slices = hardware.chip, hardware.num_slices
    assert chip is not None  # check_search checked it
    data, fsdp, tensor = mesh.data, mesh.fsdp, mesh.tensor
    itemsize = jnp.dtype(model.compute_dtype).itemsize
    chips = len(hardware.devices)
    compute = 3 * base["model"]["forward_flops"] * batch_size / (chips * chip.peak_flops)
    weights = base["model"]["parameters"] * itemsize / tensor
    sent = 2 * (data - 1) / data * weights / fsdp
    sent += 3 * (fsdp - 1) / fsdp * weights
    tokens = batch_size // (data * fsdp) * model.num_tokens * model.embed_dim * itemsize
    sent += 4 * model.depth * 2 * (tensor - 1) / tensor * tokens
    across = 2 * (1 - 1 / slices) * weights / (fsdp * data / slices)
    work = Work(compute * chip.peak_flops, 2 * kept, sent, across)
    return roofline(work, chip, hardware.ici_bandwidth)


def _preference(row: dict[str, Any]) -> tuple[int, ...]:
    """Sort key of meshes: the bound, then tensor, then the time without overlap, then fsdp.

    Bounds within 5 % count as equal, times without overlap within 20 %.
    """
    bound = math.floor(20 * math.log(row["bound"]))
    total = math.floor(5 * math.log(row["no_overlap"]))
    return bound, row["mesh"]["tensor"], total, row["mesh"]["fsdp"]


def possible_meshes(
    model: UViTConfig, train: TrainConfig, devices: int
) -> list[tuple[int, int, int]]:
    """Lists (data, fsdp, tensor) of this many devices that divide batch, heads and channels."""
    divisors = [n for n in range(1, devices + 1) if devices % n == 0]
    found = []
    for tensor in divisors:
        for fsdp in (n for n in divisors if (devices // tensor) % n == 0):
            sizes = devices // (fsdp * tensor), fsdp, tensor
            try:
                check_batch("train", train.batch_size, sizes, train.microbatches)
                check_mesh(model, sizes)
            except UserError:
                continue
            found.append(sizes)
    return found


def _round(size: int) -> int:
    """Rounds down to a multiple of 8, a TPU's rows, from 16 on."""
    return size if size < 16 else size // 8 * 8


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
