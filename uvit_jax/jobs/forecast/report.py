"""The figures of a preflight as text: a table for people and one closing line, from the JSON alone."""

from collections.abc import Sequence
from typing import Any

GiB, MiB = 2**30, 2**20
_FLOPS = (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))
# What isn't plain from its name.
_NOTES = {
    "padding": "added by the compiler's layouts",
    "temporaries": "activations and gradients, at their peak",
    "results": "that take no argument's place",
}


def closing_line(report: dict[str, Any]) -> str:
    """One sentence, without a full stop: whether it fits, how fast a step can be, what the run
    costs.
    """
    hardware, memory = report["hardware"], report["memory"]
    where = hardware["text"]
    total, capacity = memory["total"], memory["capacity"]
    if memory["fits"] is None:
        return f"compiled for {where}: {_bytes(total)} a chip, of a memory that isn't known"
    there = _bytes(capacity)
    used = (
        "more" if total is None else _bytes(total).removesuffix(there[-4:])
    )  # one unit is told once
    share = f"{used} of {there} a chip on {where}"
    if not memory["fits"]:
        return f"does not fit: {share}"
    parts = [f"fits: {share}"]
    if line := report["roofline"]:
        parts.append(f"step >= {_seconds(line['bound'])}, MFU <= {_share(line['highest_mfu'])}")
    if run := report["run"]:
        parts.append(
            f"{_time(run['hours'])} ({_time(run['chip_hours'], 'chip-')}) at {_share(run['mfu'])} "
            f"MFU"
        )
    return ", ".join(parts)


def table(report: dict[str, Any]) -> str:
    """The report as aligned text."""
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
    return "\n".join(
        (
            f"{report['hardware']['text']}, mesh {_mesh(report['mesh'])}, batch "
            f"{batch['global']:,} ({batch['per_replica']:,} for each replica)",
            f"{model['parameters'] / 1e6:.2f}M parameters, {model['num_tokens']} tokens, "
            f"{', '.join(how)}; {done} {report['compile_seconds']:.0f} s by {tools}",
        )
    )


def _memory(title: str, memory: dict[str, Any]) -> str:
    total = memory["total"]
    unit, scale = _unit(total)

    def amount(size: int | None) -> str:
        return "?" if size is None else f"{size / scale:,.2f}"

    rows = [(name, amount(size), _NOTES.get(name, "")) for name, size in memory["parts"].items()]
    capacity = "" if memory["capacity"] is None else f"of {amount(memory['capacity'])}"
    verdict = {True: ": fits", False: ": does not fit", None: "not known whether that fits"}[
        memory["fits"]
    ]
    rows.append(("sum", amount(total), f"{capacity}{verdict}"))
    return _rows(f"{title}, {unit}", rows)


def _program(figures: dict[str, Any]) -> list[str]:
    """FLOPs, collectives and roofline of a step or of a batch of samples."""
    flops, line = figures.get("flops"), figures.get("roofline")
    if flops is None:
        return []
    model, compiled = flops["model"], flops["compiled"]
    unit, scale = next(((name, size) for name, size in _FLOPS if compiled >= size), ("", 1.0))

    def amount(value: float | int) -> str:
        return f"{value / scale:,.2f}"

    rows = (
        [] if model is None else [("of the model", amount(model), "3 x forward; what MFU counts")]
    )
    rows.append(
        (
            "compiled",
            amount(compiled),
            f"matrix products, {compiled / model:.2f} x the model's" if model else "",
        )
    )
    if own := flops["compiler_loops_once"]:
        once = (
            f"all operations, loop bodies once; matrix products so counted "
            f"{amount(flops['compiled_loops_once'])}"
        )
        rows.append(("compiler's own", amount(own), once))
    if unknown := flops["unknown_loops"]:
        rows.append(
            (
                "loops",
                str(len(unknown)),
                "run a number of times that the program doesn't tell, counted once",
            )
        )
    sections = [_rows(f"FLOPs of a chip{', ' * bool(unit)}{unit}", rows)]
    sections.append(
        _rows(
            "collectives of a chip",
            [
                (
                    f"{row['kind']} ({row['network'].upper()})",
                    f"{row['count']:,}",
                    f"{row['bytes'] / 1e6:,.1f} MB, {row['wire_bytes'] / 1e6:,.1f} MB sent",
                )
                for row in figures["collectives"]
            ]
            or [("none", "", "")],
        )
    )
    if line:
        notes = {
            "hbm": "arguments and results once",
            "ici": "between chips",
            "dcn": "between slices",
        }
        rows = [
            (
                name,
                "?" if line[name] is None else _number(1e3 * line[name]),
                notes.get(name, "matrix products"),
            )
            for name in ("compute", "hbm", "ici", "dcn")
            if line[name] is None or line[name] > 0 or name in ("compute", "hbm")
        ]
        rows.append(
            (
                "bound",
                _number(1e3 * line["bound"]),
                f"by {line['limit']}: MFU <= {line['highest_mfu']:.1%}",
            )
        )
        rows.append(("no overlap", _number(1e3 * line["no_overlap"]), "one after the other"))
        sections.append(_rows("roofline, ms (no call is faster; a bound, no prediction)", rows))
    if schedule := figures.get("schedule"):
        sections.append(
            _schedule(
                schedule, line["highest_mfu"] * line["bound"] / schedule["step"] if line else None
            )
        )
    return sections


def _schedule(schedule: dict[str, Any], mfu: float | None) -> str:
    """What the chip does one after another, and what at once."""
    notes = {
        "compute": "by the compiler's own cycles for each operation",
        "communication": "at the networks' full speed",
        "hidden": f"of that beside computation: {schedule['asynchronous']:,} collectives are "
        f"asynchronous",
        "exposed": "the rest, in which the chip waits",
        "step": "computation and what is exposed" + (f": MFU {mfu:.1%}" if mfu else ""),
    }
    rows = [(name, _number(1e3 * schedule[name]), note) for name, note in notes.items()]
    return _rows("schedule, ms (an estimate, not measured)", rows)


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
        f"{_seconds(run['step_seconds'])} a step, {_number(run['images_per_second'])} images/s, "
        f"{_time(run['hours'])}, {_time(run['chip_hours'], 'chip-')}"
    )


def _sampler(sampler: dict[str, Any]) -> str:
    rate = sampler["images_per_second"]
    text = (
        f"sampling {sampler['batch']:,} at a time, "
        f"{'guided, ' if sampler['guided'] else ''}network only"
    )
    if sampler["evaluations"]:
        text += f": {sampler['evaluations']:.0f} forward passes each"
    return text + (f", at most {_number(rate)} images/s" if rate else "")


def _batches(found: dict[str, Any]) -> str:
    unit, scale = _unit(*(one["total"] for one in found["tries"]))
    rows = [
        (
            f"{one['per_replica']:,}",
            "?" if one["total"] is None else f"{one['total'] / scale:.2f}",
            _verdict(one),
        )
        for one in sorted(found["tries"], key=lambda one: one["per_replica"])
    ]
    largest = found["largest_per_replica"]
    answer = "none fits" if largest is None else f"{largest:,} ({found['largest_global']:,} in all)"
    return _rows(f"largest batch for each replica: {answer}; tried, {unit}", rows)


def _meshes(found: dict[str, Any]) -> str:
    def speed(row: dict[str, Any]) -> str:
        if row["bound"] is None:
            return _verdict(row)
        return (
            f"bound {_seconds(row['bound'])}, no overlap {_seconds(row['no_overlap'])}, "
            f"{_verdict(row)}"
        )

    unit, scale = _unit(*(row["total"] for row in found["compiled"]))
    rows = [
        (
            _mesh(row["mesh"]),
            "?" if row["total"] is None else f"{row['total'] / scale:.2f}",
            speed(row),
        )
        for row in found["compiled"]
    ]
    answer = "none fits" if found["best"] is None else _mesh(found["best"])
    return _rows(
        f"best mesh for this batch: {answer}; of {found['estimated']} estimated, compiled, {unit}",
        rows,
    )


def _rows(title: str, rows: Sequence[tuple[str, str, str]]) -> str:
    first, second = (max(len(row[i]) for row in rows) for i in (0, 1))
    lines = (f"  {name:<{first}}  {value:>{second}}  {note}".rstrip() for name, value, note in rows)
    return "\n".join((title, *lines))


def _verdict(row: dict[str, Any]) -> str:
    return "fits" if row["fits"] else "does not fit"


def _mesh(mesh: dict[str, int]) -> str:
    return " x ".join(f"{axis} {size}" for axis, size in mesh.items())


def _unit(*sizes: int | None) -> tuple[str, int]:
    """In what sizes are told, and its bytes: GiB, or MiB where all of them are small."""
    known = [size for size in sizes if size is not None]
    return ("MiB", MiB) if known and max(known) < GiB else ("GiB", GiB)


def _bytes(size: int | None) -> str:
    if size is None:
        return "an unknown number of GiB"
    unit, scale = _unit(size)
    return f"{size / scale:.2f} {unit}"


def _time(hours: float, of: str = "") -> str:
    """ "5.64 hours", or minutes or seconds where it is less than a tenth of an hour or than a
    minute.
    """
    if hours >= 0.1:
        return f"{_number(hours)} {of}hours"
    return (
        f"{_number(60 * hours)} {of}minutes"
        if 60 * hours >= 1
        else f"{_number(3600 * hours)} {of}seconds"
    )


def _number(value: float | int) -> str:
    """Three digits, or as many as a whole number has."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _share(share: float) -> str:
    return f"{share:.0%}" if share >= 0.095 else f"{share:.1%}"


def _seconds(seconds: float | int) -> str:
    return f"{_number(1e3 * seconds)} ms" if seconds < 1 else f"{_number(seconds)} s"
