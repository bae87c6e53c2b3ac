"""Estimated scaling: step time and communication of a config on slices of 8 to 1024 TPUs.

    # Continues where it stopped.
    python benchmarks/scaling.py configs/imagenet512.py --out scaling --chart scaling.png
    # Only the cases with both words in their names.
    python benchmarks/scaling.py configs/imagenet512.py --out scaling --only v5p fsdp

Needs `pip install -e '.[tpu]'`, but no TPU. The job preflight compiles the train step for each
slice, in a process of its own (minutes each for a large model). Weak scaling gives every chip
`--per-chip` images, strong scaling splits the config's own batch. A step is the compiler's estimate
of its own schedule: the cycles that it writes beside each operation, and the collectives that no
computation hides, at the links' full speed (`uvit_jax/compiled/overlap.py`). Nothing is measured;
read it for where communication begins to cost, not for milliseconds. Writes `OUT/table.md`,
`OUT/scaling.json` and, for each compile, `OUT/<config>/<case>/preflight.json`.
"""

import argparse
import dataclasses
import json
import pathlib
import subprocess
import sys
from typing import Any

from uvit_jax.errors import run_script
from uvit_jax.experiment.config import load_experiment

# Slices of each generation by their chips. A v5e pod has 256: the data center's network joins four.
SLICES = {
    "v5p": {8: "2x2x2", 64: "4x4x4", 256: "4x8x8", 1024: "8x8x16"},
    "v5e": {8: "2x4", 64: "8x8", 256: "16x16", 1024: "4*16x16"},
}
MESHES = {"v5p": ("data", "data-sc", "fsdp"), "v5e": ("data", "fsdp")}
# The largest fsdp axis, which divides the width of every model; further chips are replicas.
MOST_FSDP = 64
HEADS = (
    "slice",
    "mesh",
    "batch a chip",
    "GiB a chip",
    "TFLOP a chip",
    "collectives (asynchronous)",
    "MB sent",
    "computation",
    "communication",
    "hidden",
    "exposed",
    "step",
    "efficiency",
    "MFU",
)


@dataclasses.dataclass(frozen=True)
class Case:
    """One compile: a number of chips of one kind, a mesh and a batch.

    Meshes are "data" (data parallelism), "data-sc" (the same with `train.overlap=sparsecore`) and
    "fsdp".
    """

    chip: str
    chips: int
    mesh: str
    batch: int

    @property
    def slices(self) -> tuple[int, str]:
        """Number of slices, and the name of each."""
        count, _, shape = SLICES[self.chip][self.chips].rpartition("*")
        return int(count or 1), f"{self.chip}:{shape}"

    @property
    def name(self) -> str:
        """Name of the case and its folder, unique within a config."""
        return f"{self.chip}-{self.chips}-{self.mesh}-batch{self.batch}"

    @property
    def flags(self) -> list[str]:
        """Flags of the config's fields that the case changes."""
        count, topology = self.slices
        fsdp = min(self.chips, MOST_FSDP) if self.mesh == "fsdp" else 1
        return [
            f"--config.preflight.topology={topology}",
            f"--config.preflight.num_slices={count}",
            f"--config.mesh.fsdp={fsdp}",
            f"--config.train.batch_size={self.batch}",
            *["--config.train.overlap=sparsecore"] * (self.mesh == "data-sc"),
        ]


def cases(batch: int, per_chip: int) -> list[Case]:
    """Lists the cases of weak scaling, then those that strong scaling adds, small slices first."""
    made = [
        Case(chip, chips, mesh, size(chips))
        for size in (lambda chips: per_chip * chips, lambda chips: batch)
        for chip, slices in SLICES.items()
        for mesh in MESHES[chip]
        for chips in slices
    ]
    return list(dict.fromkeys(made))


def preflight(
    config: str, case: Case, folder: pathlib.Path, extra: list[str]
) -> dict[str, Any] | None:
    """Runs the job; returns its report, which also exists for a step that does not fit."""
    file = folder / "preflight.json"
    if not file.exists():
        command = [sys.executable, "-m", "uvit_jax.main", "--job=preflight", f"--config={config}"]
        subprocess.run([*command, f"--workdir={folder}", *case.flags, *extra], check=False)
    return json.loads(file.read_text()) if file.exists() else None


def figures(case: Case, report: dict[str, Any]) -> dict[str, Any]:
    """Returns a row for the table and the chart: seconds, bytes and FLOPs of a chip per step."""
    memory, schedule = report["memory"], report["schedule"]
    found: dict[str, Any] = dataclasses.asdict(case) | {
        "per_chip": case.batch / case.chips,
        "memory": memory["total"],
    }
    if schedule is None:
        return found
    traffic = report["collectives"]
    model = report["flops"]["model"]
    return found | {
        "flops": report["flops"]["compiled"],
        "collectives": traffic,
        "sent": sum(row["wire_bytes"] for row in traffic),
        **schedule,
        "rate": case.batch / schedule["step"] / case.chips,
        "mfu": model / schedule["step"] / report["hardware"]["peak_flops"],
    }


def with_efficiency(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adds images per second and chip, relative to the smallest slice of the same kind that fits.

    The same kind is the same chip, mesh and way of scaling. None for a row that does not fit, or
    without another of its kind.
    """
    done = []
    for row in rows:
        alike = [
            r
            for r in rows
            if "step" in r and all(r[key] == row[key] for key in ("chip", "mesh", "scaling"))
        ]
        known = "step" in row and len(alike) > 1
        base = min(alike, key=lambda r: r["chips"], default=row)
        done.append(row | {"efficiency": row["rate"] / base["rate"] if known else None})
    return sorted(
        done,
        key=lambda row: (
            row["scaling"] == "strong",
            list(SLICES).index(row["chip"]),
            row["mesh"],
            row["chips"],
        ),
    )


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """Formats one line of the table."""
    case = Case(*(row[field.name] for field in dataclasses.fields(Case)))
    count, topology = case.slices
    memory = "?" if row["memory"] is None else f"{row['memory'] / 2**30:.1f}"
    head = (f"{count} x {topology}" if count > 1 else topology, row["mesh"], f"{row['per_chip']:g}")
    if "step" not in row:
        return (*head, f"{memory}, too much", *["-"] * (len(HEADS) - 4))
    number = sum(kind["count"] for kind in row["collectives"])
    kinds = ", ".join(sorted({kind["kind"] for kind in row["collectives"]}))
    return (
        *head,
        memory,
        f"{row['flops'] / 1e12:.2f}",
        f"{number:,} ({row['asynchronous']:,}): {kinds}",
        f"{row['sent'] / 1e6:,.0f}",
        *(
            f"{1e3 * row[key]:.1f} ms"
            for key in ("compute", "communication", "hidden", "exposed", "step")
        ),
        "-" if row["efficiency"] is None else f"{row['efficiency']:.0%}",
        f"{row['mfu']:.0%}",
    )


def markdown(rows: list[dict[str, Any]]) -> str:
    """Formats a Markdown table for each way of scaling."""
    text = []
    for scaling in ("weak", "strong"):
        lines = [cells(row) for row in rows if row["scaling"] == scaling]
        rule = ("---",) * len(HEADS)
        text.append(
            f"{scaling} scaling\n\n"
            + "".join(f"| {' | '.join(line)} |\n" for line in (HEADS, rule, *lines))
        )
    return "\n".join(text)


def chart(rows: list[dict[str, Any]], title: str, path: str) -> None:
    """Draws the cost of an image on each slice and mesh, and its efficiency; weak above strong."""
    from matplotlib.figure import Figure  # imported late: only for a chart
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    rows = [row for row in rows if "step" in row]
    series = list(dict.fromkeys((row["chip"], row["mesh"]) for row in rows))
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.1)
    figure = Figure(figsize=(2.8 * len(series) + 4, 7.2), dpi=110, layout=layout)
    grid = figure.subplots(
        2, len(series) + 1, squeeze=False, width_ratios=[1.0] * len(series) + [1.3]
    )
    tallest = {
        chip: max(_cost(r, r["step"]) for r in rows if r["chip"] == chip) for chip, _ in series
    }
    for line, scaling in zip(grid, ("weak", "strong"), strict=True):
        for axes, (chip, mesh) in zip(line, series, strict=False):
            alike = [
                r for r in rows if (r["chip"], r["mesh"], r["scaling"]) == (chip, mesh, scaling)
            ]
            _bars(axes, alike)
            axes.set_title(f"{chip}, {mesh}", fontsize=11)
            axes.set_ylim(0, 1.2 * tallest[chip])
            points = [(r["chips"], 100 * r["efficiency"]) for r in alike if r["efficiency"]]
            line[-1].plot(
                *zip(*points, strict=True) if points else ([], []), "o-", label=f"{chip}, {mesh}"
            )
        line[0].set_ylabel(f"{scaling} scaling\nchip-milliseconds an image")
        line[-1].set(xscale="log", xlim=(7, 1170), title="efficiency, %")
        line[-1].set_ylim(0, max(108, 1.05 * line[-1].get_ylim()[1]))
        line[-1].set_xticks([8, 64, 256, 1024], ["8", "64", "256", "1024"])
        line[-1].minorticks_off()
        line[-1].legend(fontsize=8, frameon=False, loc="lower left")
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
        axes.set_axisbelow(True)
    for axes in grid[-1]:
        axes.set_xlabel("chips")
    handles, labels = next(axes.get_legend_handles_labels() for axes in grid.flat if axes.patches)
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(title)
    figure.savefig(path)


def _cost(row: dict[str, Any], seconds: float) -> float:
    """Chip-milliseconds per image, which perfect scaling keeps the same for any number of chips."""
    return 1e3 * seconds * row["chips"] / row["batch"]


def _bars(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Draws a bar per slice: computation alone, then both at once, then communication alone."""
    parts = {
        "computes": ("#4878a8", [r["compute"] - r["hidden"] for r in rows]),
        "computes and communicates": ("#8fc1b5", [r["hidden"] for r in rows]),
        "waits for communication": ("#d9694a", [r["exposed"] for r in rows]),
    }
    sizes = list(SLICES["v5p"])
    places, bottom = [sizes.index(row["chips"]) for row in rows], [0.0] * len(rows)
    for label, (colour, seconds) in parts.items():
        heights = [_cost(row, part) for row, part in zip(rows, seconds, strict=True)]
        axes.bar(places, heights, bottom=bottom, color=colour, label=label, width=0.72)
        bottom = [b + height for b, height in zip(bottom, heights, strict=True)]
    axes.set_xticks(range(len(sizes)), [f"{size}" for size in sizes])
    axes.set_xlim(-0.6, len(sizes) - 0.4)
    for place, top, row in zip(places, bottom, rows, strict=True):
        note = f"{1e3 * row['step']:.0f} ms\n{row['exposed'] / row['step']:.0%} waits"
        axes.annotate(
            note, (place, top), (0, 3), textcoords="offset points", ha="center", fontsize=7.5
        )


def main() -> None:
    """Compiles the missing cases; writes the table after each, and the chart at the end."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="configs/imagenet512.py, or with a variant after a colon")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("scaling"))
    parser.add_argument("--per-chip", type=int, default=16, help="images a chip of weak scaling")
    parser.add_argument(
        "--only", nargs="*", default=[], help="words that a case's name must hold, as v5p-64 data"
    )
    parser.add_argument("--chart", help="the PNG to draw")
    parser.add_argument(
        "fields",
        nargs="*",
        help="fields of the config, as --config.model.scan_blocks=True after a --",
    )
    options = parser.parse_intermixed_args()
    batch = load_experiment(options.config).train.batch_size
    # Compiles with other fields have a folder of their own.
    parts = [
        pathlib.Path(options.config).name,
        *(field.removeprefix("--config.") for field in options.fields),
    ]
    folder = options.out / "-".join(parts).replace(".py", "").replace(":", "-").replace("/", "-")
    rows: list[dict[str, Any]] = []
    for case in cases(batch, options.per_chip):
        wanted = all(word in case.name for word in options.only)
        if not wanted and not (folder / case.name / "preflight.json").exists():
            continue
        report = preflight(options.config, case, folder / case.name, options.fields)
        if report is None:
            print(f"no figures for {case.name}", file=sys.stderr)
            continue
        ways = {"weak": case.batch == options.per_chip * case.chips, "strong": case.batch == batch}
        rows += [figures(case, report) | {"scaling": way} for way, holds in ways.items() if holds]
        made = with_efficiency(rows)
        (options.out / "table.md").write_text(markdown(made))
        (options.out / "scaling.json").write_text(json.dumps(made, indent=2) + "\n")
    if not rows:
        sys.exit("nothing was compiled: no case has these words in its name")
    print(markdown(made))
    if options.chart:
        chart(made, f"{options.config}: a step by its compiled schedule", options.chart)


if __name__ == "__main__":
    run_script(main)
