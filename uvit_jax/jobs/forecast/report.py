"""Text of a preflight's report, made of its JSON alone: a table, and one closing line."""

from typing import Any

from uvit_jax.jobs.forecast.amounts import (
    byte_unit,
    in_bytes,
    in_hours,
    in_ms,
    in_seconds,
    number,
    percent,
    rows,
)

_FLOPS = (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))
# Notes on names of memory that do not explain themselves.
_MEMORY_NOTES = {
    "padding": "added by the compiler's layouts",
    "temporaries": "activations and gradients, at their peak",
    "results": "that take no argument's place",
}


def closing_line(report: dict[str, Any]) -> str:
    """Returns one sentence without a full stop: if it fits, the fastest step, the run's cost."""
    hardware, memory = report["hardware"], report["memory"]
    where = hardware["text"]
    total, capacity = memory["total"], memory["capacity"]
    if memory["fits"] is None:
        return f"compiled for {where}: {in_bytes(total)} a chip, of a memory that isn't known"
    available = in_bytes(capacity)
    # The unit is written once.
    used = "more" if total is None else in_bytes(total).removesuffix(available[-4:])
    share = f"{used} of {available} a chip on {where}"
    if not memory["fits"]:
        return f"does not fit: {share}"
    parts = [f"fits: {share}"]
    if line := report["roofline"]:
        parts.append(f"step >= {in_seconds(line['bound'])}, MFU <= {percent(line['highest_mfu'])}")
    if run := report["run"]:
        parts.append(
            f"{in_hours(run['hours'])} ({in_hours(run['chip_hours'], 'chip-')}) at "
            f"{percent(run['mfu'])} MFU"
        )
    return ", ".join(parts)


def table(report: dict[str, Any]) -> str:
    """Returns the report as aligned text."""
    sections = [
        _head(report),
        _memory("memory of a chip", report["memory"]),
        *_program(report),
        _run(report["run"]),
    ]
    if sampler := report["sampler"]:
        sections += [
            _sampler(sampler),
            _memory("memory of a chip, sampling", sampler["memory"]),
            *_program(sampler),
        ]
    if found := report["search"]:
        sections += [_batches(found["batch"]), _meshes(found["mesh"])]
    return "\n\n".join(section for section in sections if section)


def _head(report: dict[str, Any]) -> str:
    model, batch, versions = report["model"], report["batch"], report["versions"]
    how = [model["dtype"], f"remat {model['remat']}"] + ["blocks scanned"] * model["scan_blocks"]
    done = "refused after" if report["flops"] is None else "compiled in"
    tools = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    return (
        f"{report['hardware']['text']}, mesh {_mesh(report['mesh'])}, batch "
        f"{batch['global']:,} ({batch['per_replica']:,} for each replica)\n"
        f"{model['parameters'] / 1e6:.2f}M parameters, {model['num_tokens']} tokens, "
        f"{', '.join(how)}; {done} {report['compile_seconds']:.0f} s by {tools}"
    )


def _memory(title: str, memory: dict[str, Any]) -> str:
    total = memory["total"]
    unit, scale = byte_unit(total)

    def amount(size: int | None) -> str:
        return "?" if size is None else f"{size / scale:,.2f}"

    cells = [
        (name, amount(size), _MEMORY_NOTES.get(name, "")) for name, size in memory["parts"].items()
    ]
    capacity = "" if memory["capacity"] is None else f"of {amount(memory['capacity'])}"
    verdict = {True: ": fits", False: ": does not fit", None: "not known whether that fits"}[
        memory["fits"]
    ]
    cells.append(("sum", amount(total), f"{capacity}{verdict}"))
    return rows(f"{title}, {unit}", cells)


def _program(figures: dict[str, Any]) -> list[str]:
    """Returns sections on a step or a batch of samples: FLOPs, collectives, roofline, schedule."""
    flops, line = figures.get("flops"), figures.get("roofline")
    if flops is None:
        return []
    sections = [_flops(flops), _collectives(figures["collectives"])]
    if line:
        sections.append(_roofline(line))
    if schedule := figures.get("schedule"):
        mfu = line["highest_mfu"] * line["bound"] / schedule["step"] if line else None
        sections.append(_schedule(schedule, mfu))
    return sections


def _flops(flops: dict[str, Any]) -> str:
    model, compiled = flops["model"], flops["compiled"]
    unit, scale = next(((name, size) for name, size in _FLOPS if compiled >= size), ("", 1.0))

    def amount(value: float | int) -> str:
        return f"{value / scale:,.2f}"

    cells = []
    if model is not None:
        cells.append(("of the model", amount(model), "3 x forward; what MFU counts"))
    times = f"matrix products, {compiled / model:.2f} x the model's" if model else ""
    cells.append(("compiled", amount(compiled), times))
    if own := flops["compiler_loops_once"]:
        once = (
            "all operations, loop bodies once; matrix products so counted "
            f"{amount(flops['compiled_loops_once'])}"
        )
        cells.append(("compiler's own", amount(own), once))
    if unknown := flops["unknown_loops"]:
        note = "run a number of times that the program doesn't tell, counted once"
        cells.append(("loops", str(len(unknown)), note))
    return rows(f"FLOPs of a chip{', ' * bool(unit)}{unit}", cells)


def _collectives(found: list[dict[str, Any]]) -> str:
    cells = [
        (
            f"{row['kind']} ({row['network'].upper()})",
            f"{row['count']:,}",
            f"{row['bytes'] / 1e6:,.1f} MB, {row['wire_bytes'] / 1e6:,.1f} MB sent",
        )
        for row in found
    ]
    return rows("collectives of a chip", cells or [("none", "", "")])


def _roofline(line: dict[str, Any]) -> str:
    notes = {
        "compute": "matrix products",
        "hbm": "arguments and results once",
        "ici": "between chips",
        "dcn": "between slices",
    }
    cells = [
        (name, "?" if line[name] is None else in_ms(line[name]), note)
        for name, note in notes.items()
        if line[name] is None or line[name] > 0 or name in ("compute", "hbm")
    ]
    limit = f"by {line['limit']}: MFU <= {line['highest_mfu']:.1%}"
    cells.append(("bound", in_ms(line["bound"]), limit))
    cells.append(("no overlap", in_ms(line["no_overlap"]), "one after the other"))
    return rows("roofline, ms (no call is faster; a bound, no prediction)", cells)


def _schedule(schedule: dict[str, Any], mfu: float | None) -> str:
    notes = {
        "compute": "by the compiler's own cycles for each operation",
        "communication": "at the networks' full speed",
        "hidden": f"of that beside computation: {schedule['asynchronous']:,} collectives are "
        "asynchronous",
        "exposed": "the rest, in which the chip waits",
        "step": "computation and what is exposed" + (f": MFU {mfu:.1%}" if mfu else ""),
    }
    cells = [(name, in_ms(schedule[name]), note) for name, note in notes.items()]
    return rows("schedule, ms (an estimate, not measured)", cells)


def _run(run: dict[str, Any] | None) -> str:
    if run is None:
        return ""
    why = {
        "asked": "",
        "roofline": "by the roofline's bound",
        "schedule": "by the schedule's step",
    }[run["mfu_source"]]
    if why and run["asked_mfu"]:
        why += f": {run['asked_mfu']:.0%} can't be reached"
    less = f" ({why})" if why else ""
    return (
        f"run of {run['steps']:,} steps at {run['mfu']:.1%} MFU{less}: "
        f"{in_seconds(run['step_seconds'])} a step, {number(run['images_per_second'])} images/s, "
        f"{in_hours(run['hours'])}, {in_hours(run['chip_hours'], 'chip-')}"
    )


def _sampler(sampler: dict[str, Any]) -> str:
    rate = sampler["images_per_second"]
    guided = "guided, " if sampler["guided"] else ""
    text = f"sampling {sampler['batch']:,} at a time, {guided}network only"
    if sampler["evaluations"]:
        text += f": {sampler['evaluations']:.0f} forward passes each"
    return text + (f", at most {number(rate)} images/s" if rate else "")


def _batches(found: dict[str, Any]) -> str:
    unit, scale = byte_unit(*(one["total"] for one in found["tries"]))
    cells = [
        (f"{one['per_replica']:,}", _scaled(one["total"], scale), _verdict(one))
        for one in sorted(found["tries"], key=lambda one: one["per_replica"])
    ]
    largest = found["largest_per_replica"]
    answer = "none fits" if largest is None else f"{largest:,} ({found['largest_global']:,} in all)"
    return rows(f"largest batch for each replica: {answer}; tried, {unit}", cells)


def _meshes(found: dict[str, Any]) -> str:
    def speed(row: dict[str, Any]) -> str:
        if row["bound"] is None:
            return _verdict(row)
        bound, no_overlap = in_seconds(row["bound"]), in_seconds(row["no_overlap"])
        return f"bound {bound}, no overlap {no_overlap}, {_verdict(row)}"

    unit, scale = byte_unit(*(row["total"] for row in found["compiled"]))
    cells = [
        (_mesh(row["mesh"]), _scaled(row["total"], scale), speed(row)) for row in found["compiled"]
    ]
    answer = "none fits" if found["best"] is None else _mesh(found["best"])
    title = f"best mesh for this batch: {answer}; of {found['estimated']} estimated, compiled"
    return rows(f"{title}, {unit}", cells)


def _scaled(size: int | None, scale: int) -> str:
    return "?" if size is None else f"{size / scale:.2f}"


def _verdict(row: dict[str, Any]) -> str:
    return "fits" if row["fits"] else "does not fit"


def _mesh(mesh: dict[str, int]) -> str:
    return " x ".join(f"{axis} {size}" for axis, size in mesh.items())
