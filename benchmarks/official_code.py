"""Comparison with the official PyTorch U-ViT, shared by benchmarks: its rows, ratios and a chart.

`--reference DIR` names a checkout of https://github.com/baofff/U-ViT. The forms: "published", its
code as it is (float16 autocast, gradient scaler, EMA parameter by parameter); "float32", the same
with attention in float32; "tuned", bfloat16, fused AdamW, EMA at once, guidance in one batch;
"compiled", tuned under torch.compile. None recomputes activations in the backward pass, which the
published configs of the large models do.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from figures import HELP, record, slug

from uvit_jax.errors import UserError
from uvit_jax.experiment.config import Experiment
from uvit_jax.files import atomic_write
from uvit_jax.models.uvit_config import UViTConfig

Row = dict[str, Any]
FORMS = ("published", "float32", "tuned", "compiled")
_INK, _GREY, _BLUE, _TEAL = "#222222", "#888888", "#1f5fa8", "#2a8a7f"
# Fields that the official network does not have, and the only value it computes.
_FIXED = {
    "skip": "concat",
    "time": "token",
    "patch_embed": "linear",
    "pos_embed": "learned",
    "context_dim": 0,
}


def add_arguments(parser: argparse.ArgumentParser, batch_size: int) -> None:
    """Adds the options of a comparison; batch_size: the official code's, by default."""
    parser.add_argument(
        "--reference", metavar="DIR", help="a checkout of the official PyTorch code to compare with"
    )
    parser.add_argument("--reference-batch-size", type=int, nargs="+", default=[batch_size])
    parser.add_argument(
        "--reference-forms", nargs="+", choices=FORMS, default=["published", "float32", "compiled"]
    )
    parser.add_argument(
        "--reference-python", default=sys.executable, help="a Python that has torch and einops"
    )
    parser.add_argument("--out", help="a JSON file of all rows")
    parser.add_argument("--chart", help="a PNG of all rows")
    parser.add_argument("--figures", help=HELP)


def official_network(config: UViTConfig) -> dict[str, Any]:
    """Returns arguments of the official `UViT` that make the network of a config.

    Raises:
      UserError: for fields that the official network does not have.
    """
    for field, only in _FIXED.items():
        if getattr(config, field) != only:
            raise UserError(
                f"model.{field} is {getattr(config, field)!r}, expected {only!r} to compare with "
                f"--reference"
            )
    height, width = config.input_size
    if height != width or config.conv == "before":
        raise UserError(
            f"the model is {height}x{width} with conv = {config.conv!r}, expected a square with "
            "conv = 'after' or 'none' to compare with --reference"
        )
    return {
        "img_size": height,
        "patch_size": config.patch_size,
        "in_chans": config.in_channels,
        "embed_dim": config.embed_dim,
        "depth": config.depth - 1,  # without the block in the middle
        "num_heads": config.num_heads,
        "mlp_ratio": config.mlp_ratio,
        "qkv_bias": config.qkv_bias,
        "mlp_time_embed": config.time_mlp,
        "num_classes": config.num_classes or -1,
        "conv": config.conv == "after",
    }


def run_reference(
    options: argparse.Namespace, name: str, experiment: Experiment, what: str, steps: int
) -> list[Row]:
    """Measures the official network in each form at each batch, in a process of its own.

    Call it before JAX takes the GPU's memory.

    Args:
      options: of `add_arguments`, with `repeats`.
      name, experiment: the config, whose network, optimizer and guidance are taken.
      what: "train" or "sample".
      steps: train steps a repeat, or evaluations a sample.

    Raises:
      UserError: there is no such checkout, or the official network lacks a field's value.
    """
    checkout = pathlib.Path(options.reference).resolve()
    if not (checkout / "libs" / "uvit.py").exists():
        raise UserError(
            f"--reference is {options.reference!r}, expected a checkout with libs/uvit.py"
        )
    optimizer, sample = experiment.optimizer, experiment.sample
    job = {
        "what": what,
        "checkout": str(checkout),
        "network": official_network(experiment.model),
        "optimizer": {
            "lr": optimizer.lr,
            "betas": optimizer.betas,
            "weight_decay": optimizer.weight_decay,
        },
        "guidance_scale": sample.guidance_scale,
        "evaluations": steps if what == "sample" else 0,
        "forms": options.reference_forms,
        "batch_sizes": options.reference_batch_size,
        "steps": steps if what == "train" else 1,
        "repeats": options.repeats,
    }
    script = pathlib.Path(__file__).with_name("official_code_torch.py")
    rows = []
    with subprocess.Popen(
        # -P: modules of this folder must not hide those of the checkout.
        [options.reference_python, "-P", str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        with process.stdin as stdin:
            json.dump(job, stdin)
        for line in process.stdout:
            if line.startswith("{"):
                rows.append({"config": name, **json.loads(line)})
                # Printed at once: a later failure must not lose minutes of work.
                print(reference_line(rows[-1]), flush=True)
    if process.returncode:
        print(
            f"the official code ended with status {process.returncode}; its rows so far count",
            file=sys.stderr,
        )
    return rows


def reference_line(row: Row) -> str:
    """Formats a row of the official code, with its TFLOP/s if known."""
    what = f"  official, {row['form']:10} batch {row['batch']:4}: "
    if "error" in row:
        return what + row["error"]
    tflops = (
        f", {row['tflops']:.3g} TFLOP/s, {row['share']:.0%} of the ceiling"
        if "share" in row
        else ""
    )
    memory = "" if row["gib"] is None else f", {row['gib']:.1f} GiB"
    warning = "" if row["finite"] else ", NOT FINITE"
    return (
        f"{what}{show_rate(row['images_per_sec'])} images/s{tflops}{memory} "
        f"(attention in {row['attention']}, torch {row['torch']}){warning}"
    )


def best(rows: Sequence[Row]) -> Row | None:
    """Returns the row with the highest rate per device; None if no row has a rate."""
    return max((row for row in rows if row.get("images_per_sec")), key=rate_of_one, default=None)


def rate_of_one(row: Row) -> float:
    """Images/s per device."""
    return row["images_per_sec"] / row.get("devices", 1)


def show_rate(rate: float) -> str:
    """Formats a rate to three digits or more."""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def print_comparison(
    ours: Sequence[Row], theirs: Sequence[Row], flops: float, ceiling: float
) -> None:
    """Prints the official code's rows, then our best rate over the best of each of its forms.

    Rows get their TFLOP/s and share of the ceiling.

    Args:
      ours, theirs: rows; `theirs` is changed.
      flops: FLOPs of one image.
      ceiling: highest FLOP/s of a matrix product.
    """
    for row in theirs:
        if "error" not in row:
            row["tflops"] = flops * row["images_per_sec"] / 1e12
            row["share"] = row["tflops"] * 1e12 / ceiling
        print(reference_line(row))
    own = best(ours)
    for form in dict.fromkeys(row["form"] for row in theirs):
        other = best([row for row in theirs if row["form"] == form])
        if own is not None and other is not None:
            a, b = rate_of_one(own), rate_of_one(other)
            print(
                f"  ours / official, {form}: {show_rate(a)} / {show_rate(b)} = {a / b:.2f} x",
                flush=True,
            )


def finish(options: argparse.Namespace, rows: Sequence[Row], title: str, what: str) -> None:
    """Writes the rows, the chart and the figures to the files in the options, if any.

    what: first word of the figures' names, "train" or "sample".
    """
    if options.figures:
        device, count = title.split(",")[0], max(row.get("devices", 1) for row in rows)
        for name in dict.fromkeys(row["config"] for row in rows):
            kind = device.split(" x ")[-1]
            place = slug(kind) if count == 1 else f"{count}x{slug(kind)}"
            alike = [row for row in rows if row["config"] == name]
            record(options.figures, device, rates(f"{what}.{slug(name)}.{place}", alike))
    if options.out:
        pathlib.Path(options.out).write_text(json.dumps(rows, indent=1))
    if options.chart:
        bar_chart(rows, options.chart, title=title)


def rates(prefix: str, rows: Sequence[Row]) -> dict[str, tuple[float, str]]:
    """Figures of one config: our best row with TFLOP/s, and the official code's best of each form.

    Rates are images/s a device; shares are of the ceiling, in %.
    """
    own = best([row for row in rows if row["who"] == "ours" and "share" in row])
    if own is None:
        return {}
    found = {
        "images_per_s": (rate_of_one(own), "images/s"),
        "tflops": (own["tflops"] / own.get("devices", 1), "TFLOP/s"),
        "of_matmul": (100 * own["share"], "%"),
    }
    others = [row for row in rows if row["who"] == "official"]
    for form in dict.fromkeys(row["form"] for row in others):
        other = best([row for row in others if row["form"] == form])
        if other is not None:
            found[f"official_{form}"] = (rate_of_one(other), "images/s")
            found[f"official_{form}_of_matmul"] = (100 * other["share"], "%")
            found[f"vs_{form}"] = (rate_of_one(own) / rate_of_one(other), "x")
    return {f"{prefix}.{name}": figure for name, figure in found.items()}


def bar_chart(rows: Sequence[Row], path: str, *, title: str) -> None:
    """Writes a PNG with a panel per config and a bar per row: images/s per device.

    Our rows are coloured, the official code's grey; after each bar come its rate and share of the
    ceiling. The file appears whole or not at all.
    """
    from matplotlib.figure import Figure  # imported late: only for a chart
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    panels: dict[str, list[Row]] = {}
    for row in rows:
        if row.get("images_per_sec"):
            panels.setdefault(row["config"], []).append(row)
    if not panels:
        return
    figure = Figure(
        figsize=(8, 0.8 + 0.6 * len(panels) + 0.34 * sum(map(len, panels.values()))),
        dpi=120,
        layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08),
    )
    grid = figure.subplots(
        len(panels), 1, squeeze=False, height_ratios=[1 + len(some) for some in panels.values()]
    )
    for panel, (config, some) in zip(grid[:, 0], panels.items(), strict=True):
        rates = [rate_of_one(row) for row in some]
        own = best([row for row in some if row["who"] == "ours" and row.get("share")])
        colors = [_GREY if row["who"] != "ours" else _TEAL if row is own else _BLUE for row in some]
        bars = panel.barh(range(len(some)), rates, color=colors, height=0.7)
        shares = [f" ({row['share']:.0%})" if row.get("share") else "" for row in some]
        panel.bar_label(
            bars,
            labels=[f"{show_rate(rate)}{share}" for rate, share in zip(rates, shares, strict=True)],
            padding=4,
            fontsize=9,
            color=_INK,
        )
        panel.set_yticks(range(len(some)), labels=[_name(row) for row in some])
        panel.invert_yaxis()
        panel.set_xlim(0, 1.2 * max(rates))
        panel.set_title(config, loc="left", fontsize=10, color=_INK)
        panel.grid(axis="x", color="#e8e8e8", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(colors=_INK, labelsize=9)
    grid[-1, 0].set_xlabel("images/s a device (share of the matrix product ceiling)")
    figure.suptitle(title, x=0.99, ha="right", fontsize=9, color=_GREY)
    with atomic_write(path) as file:
        figure.savefig(file, format="png")


def _name(row: Row) -> str:
    who = f"official, {row['form']}" if row["who"] == "official" else row.get("form", "ours")
    mesh = f", mesh {row['mesh']}" if row.get("devices", 1) > 1 else ""
    return f"{who}, batch {row['batch']}{mesh}"
