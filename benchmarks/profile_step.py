"""Time of a train step by kind of kernel, from a trace of the compiled step on this device.

    python benchmarks/profile_step.py configs/imagenet256.py:huge --batch-size 96 --out profile
    python benchmarks/profile_step.py CONFIG --batch-size 96 --set model.remat=none

--out keeps the optimized HLO (step.txt) and the table (kernels.json) in a folder.
"""

import argparse
import collections
import json
import pathlib
import re
import tempfile
import time
from typing import Any

import jax
from train_step import compile_step

from uvit_jax.errors import run_script
from uvit_jax.experiment.config import parse_settings

STEPS = 3
# Kinds of kernels by what their names hold, the first that fits.
KINDS = (
    ("matrix products", r"gemm|cutlass|nvjet|xmma|cublas|dot"),
    ("attention", r"fmha|flash|attention|cudnn"),
    ("GELU", r"gelu"),
    ("norms and sums of rows", r"norm_|row_sums"),
    ("transposes", r"transpose"),
    ("copies", r"copy|memcpy|memset"),
    ("reductions", r"reduce"),
    ("concatenations and slices", r"concatenate|slice|pad|scatter|gather"),
    ("fused elementwise", r"fusion|loop|input"),
)


def kernel_times(folder: pathlib.Path) -> dict[tuple[str, str], tuple[float, int]]:
    """Milliseconds and launches by kernel name and HLO operation (without its number)."""
    times: dict[tuple[str, str], tuple[float, int]] = collections.defaultdict(lambda: (0.0, 0))
    for path in folder.rglob("*.xplane.pb"):
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
            if not plane.name.startswith("/device:"):
                continue
            for line in plane.lines:
                if not line.name.startswith("Stream"):
                    continue
                for event in line.events:
                    stats = dict(event.stats)
                    operation = re.sub(r"[.\d]+$", "", str(stats.get("hlo_op", "")))
                    key = event.name, operation
                    milliseconds, launches = times[key]
                    times[key] = milliseconds + event.duration_ns / 1e6, launches + 1
    return dict(times)


def busy_and_idle(folder: pathlib.Path) -> tuple[float, float]:
    """Milliseconds with and without a running kernel, between the first start and the last end."""
    spans = sorted(
        (event.start_ns, event.end_ns)
        for path in folder.rglob("*.xplane.pb")
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes
        if plane.name.startswith("/device:")
        for line in plane.lines
        if line.name.startswith("Stream")
        for event in line.events
    )
    busy, end = 0.0, spans[0][0] if spans else 0.0
    for first, last in spans:
        busy += max(0.0, last - max(first, end))
        end = max(end, last)
    whole = end - spans[0][0] if spans else 0.0
    return busy / 1e6, (whole - busy) / 1e6


def kind_of(kernel: str, operation: str) -> str:
    """The kind of a kernel."""
    for kind, pattern in KINDS:
        if re.search(pattern, kernel, re.IGNORECASE):
            return kind
    return "other"


def main() -> None:
    """Compiles, traces a few steps and prints the kernels, the dearest first."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config")
    parser.add_argument("--batch-size", type=int, default=96)
    parser.add_argument(
        "--set", nargs="*", default=[], help="section.field=value, as --config.section.field=value"
    )
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--out", default="")
    options = parser.parse_args()
    overrides = parse_settings(options.set)
    step = compile_step(options.config, options.batch_size, overrides)
    state, batch = step.state, step.batch
    for _ in range(3):
        state, metrics = step.compiled(state, batch, None)
    jax.block_until_ready(metrics)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(STEPS):
                state, metrics = step.compiled(state, batch, None)
            jax.block_until_ready(metrics)
        wall = (time.monotonic() - began) / STEPS * 1000
        times = kernel_times(pathlib.Path(folder))
        busy, idle = (value / STEPS for value in busy_and_idle(pathlib.Path(folder)))
    rows = sorted(
        (
            (ms / STEPS, launches / STEPS, kernel, operation)
            for (kernel, operation), (ms, launches) in times.items()
        ),
        reverse=True,
    )
    kinds: dict[str, float] = collections.defaultdict(float)
    for milliseconds, _, kernel, operation in rows:
        kinds[kind_of(kernel, operation)] += milliseconds
    print(
        f"{options.config} batch {options.batch_size} {' '.join(options.set)}: "
        f"{jax.devices()[0].device_kind}"
    )
    print(
        f"a step: {sum(kinds.values()):.1f} ms in kernels; the device busy {busy:.1f}, idle "
        f"between {idle:.1f}"
    )
    print(f"{wall:.1f} ms by the clock, the profiler's own work with them")
    for milliseconds, launches, kernel, operation in rows[: options.rows]:
        print(f"{milliseconds:9.2f} ms {launches:6.0f} x  {operation[:40]:40} {kernel[:70]}")
    for kind, milliseconds in sorted(kinds.items(), key=lambda item: -item[1]):
        print(f"{kind:28} {milliseconds:9.1f} ms")
    if options.out:
        write(pathlib.Path(options.out), step.compiled, rows)


def write(folder: pathlib.Path, compiled: Any, rows: list[tuple[float, float, str, str]]) -> None:
    """Keeps the program and the kernels."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "step.txt").write_text(compiled.as_text())
    (folder / "kernels.json").write_text(json.dumps(rows, indent=0))


if __name__ == "__main__":
    run_script(main)
