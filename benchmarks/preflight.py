"""The job `preflight` for every paper config on slices of TPU v4, v5e, v5p and v6e.

    # Everything; continues where it stopped.
    python benchmarks/preflight.py --out preflight
    # Only those with both words in their names.
    python benchmarks/preflight.py --out preflight --only cifar10 v6e

Needs `pip install -e '.[tpu]'`, but no TPU. Each config is compiled as it is, in a process of its
own (minutes for a large model), with a mesh of pure data parallelism. Hours are those of the
config's own steps and batch at 40 % MFU, or by the schedule if the roofline is lower. Writes
`OUT/table.md` and, for each, a `preflight.json` in `OUT/<config>/<slice>/`.
"""

import argparse
import json
import pathlib
import subprocess
import sys
from typing import Any

# Chips that the batch divides over and that the model keeps busy: 16 for a batch of 128 or 256, 64
# for one of 1024.
SMALL = ("v4:2x2x4", "v5e:4x4", "v5p:2x2x4", "v6e:4x4")
LARGE = ("v4:4x4x4", "v5e:8x8", "v5p:4x4x4", "v6e:8x8")
PAPER = {
    "configs/cifar10.py": SMALL,
    "configs/celeba64.py": SMALL,
    "configs/imagenet64.py:mid": LARGE,
    "configs/imagenet64.py:large": LARGE,
    "configs/imagenet256.py:large": LARGE,
    "configs/imagenet256.py:huge": LARGE,
    "configs/imagenet512.py:large": LARGE,
    "configs/imagenet512.py:huge": (*LARGE, "v5e:16x16", "v4:8x8x8"),
    "configs/mscoco256.py:small": SMALL,
    "configs/mscoco256.py:deep": SMALL,
}
HEADS = (
    "config",
    "slice",
    "chips",
    "batch a chip",
    "GiB a chip",
    "of",
    "step at least",
    "by",
    "MFU at most",
    "hours",
    "chip-hours",
    "compile",
)


def folder_of(out: pathlib.Path, config: str, topology: str) -> pathlib.Path:
    """Folder of the figures of one config on one slice."""
    name = pathlib.Path(config).name.replace(".py", "").replace(":", "-")
    return out / name / topology.replace(":", "-")


def preflight(config: str, topology: str, folder: pathlib.Path, extra: list[str]) -> bool:
    """Runs the job; True if it left figures, which a config that does not fit does too."""
    command = [
        sys.executable,
        "-m",
        "uvit_jax.main",
        "--job=preflight",
        f"--config={config}",
        f"--workdir={folder}",
    ]
    done = subprocess.run(
        [*command, f"--config.preflight.topology={topology}", *extra], check=False
    )
    return done.returncode in (0, 1) and (folder / "preflight.json").exists()


def row(config: str, report: dict[str, Any]) -> tuple[str, ...]:
    """Returns the cells of one line of the table."""
    memory, line, run = report["memory"], report["roofline"], report["run"]
    used = "?" if memory["total"] is None else f"{memory['total'] / 2**30:.2f}"
    return (
        pathlib.Path(config).name,
        report["hardware"]["name"],
        f"{report['hardware']['chips']}",
        f"{report['batch']['per_chip']:g}",
        used if memory["fits"] else f"{used}, too much",
        f"{memory['capacity'] / 2**30:.2f}",
        f"{1e3 * line['bound']:.1f} ms" if line else "-",
        line["limit"] if line else "-",
        f"{line['highest_mfu']:.0%}" if line else "-",
        f"{run['hours']:,.1f} at {run['mfu']:.0%}" if run and memory["fits"] else "-",
        f"{run['chip_hours']:,.0f}" if run and memory["fits"] else "-",
        f"{report['compile_seconds']:.0f} s",
    )


def markdown(rows: list[tuple[str, ...]]) -> str:
    """Formats a Markdown table, columns aligned."""
    lines = [HEADS, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADS))]
    rule = tuple("-" * width for width in widths)
    cells = (
        " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in (HEADS, rule, *rows)
    )
    return "".join(f"| {line} |\n" for line in cells)


def main() -> None:
    """Runs the missing configs, and writes the table after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("preflight"))
    parser.add_argument(
        "--only", nargs="*", default=[], help="words that config and slice together must hold"
    )
    parser.add_argument(
        "fields", nargs="*", help="fields of the config, as --config.mesh.fsdp=8 behind a --"
    )
    options = parser.parse_args()
    pairs = [(config, topology) for config, topologies in PAPER.items() for topology in topologies]
    rows = []
    for config, topology in pairs:
        folder = folder_of(options.out, config, topology)
        wanted = all(word in f"{config} {topology}" for word in options.only)
        file = folder / "preflight.json"
        if not file.exists() and wanted and not preflight(config, topology, folder, options.fields):
            print(f"no figures for {config} on {topology}", file=sys.stderr)
        if file.exists():
            rows.append(row(config, json.loads(file.read_text())))
            options.out.mkdir(parents=True, exist_ok=True)
            (options.out / "table.md").write_text(markdown(rows))
    print(markdown(rows))


if __name__ == "__main__":
    main()
