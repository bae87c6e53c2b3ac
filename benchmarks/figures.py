"""Writes what a benchmark measured to the file of figures that the documentation quotes."""

import datetime
import json
import pathlib
import re
import sys
from collections.abc import Mapping

from uvit_jax.files import atomic_write

HELP = "a JSON file of figures to write to, as docs/figures.json"


def record(path: str, device: str, figures: Mapping[str, tuple[float, str]]) -> None:
    """Adds figures to a JSON file, or replaces those of the same names.

    Each becomes {"value", "unit", "command", "device", "date"}: the command is this process's, the
    date today's. `python docs/figures.py` then writes the values into the pages that quote them.

    Args:
      path: the file; made where it is missing.
      device: on which they were measured, as "NVIDIA H100".
      figures: value and unit by name.
    """
    file = pathlib.Path(path)
    known = json.loads(file.read_text()) if file.exists() else {}
    origin = {"command": _command(sys.argv), "device": device, "date": _today()}
    for name, (value, unit) in figures.items():
        known[name] = {"value": _rounded(value), "unit": unit, **origin}
    with atomic_write(path) as opened:
        opened.write(json.dumps(dict(sorted(known.items())), indent=2).encode() + b"\n")


def slug(text: str) -> str:
    """A config's or a device's name as part of a figure's.

    "configs/imagenet256.py:huge" is "imagenet256_huge", "NVIDIA H100 80GB HBM3" is "h100".
    """
    words = re.findall(r"\w+", text.removeprefix("configs/").replace(".py", "").lower())
    return words[1] if words[0] == "nvidia" else "_".join(words)


def _rounded(value: float) -> float | int:
    """Three digits, or all of a number that has more before its point."""
    short = round(value) if abs(value) >= 100 else float(f"{value:.3g}")
    return int(short) if abs(short) >= 10 and short == int(short) else short


def _command(argv: list[str]) -> str:
    """The command line without the option that records."""
    script, *rest = argv
    text = " ".join(["python", f"benchmarks/{pathlib.Path(script).name}", *rest])
    return re.sub(r" --figures[= ]\S+", "", text)


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()
