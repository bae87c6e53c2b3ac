"""CPU time (user and system) of `make digits` and of `make test`, and their ratio.

    python benchmarks/suite.py

Both run one after the other from an environment that is installed; the bound on the ratio is 2.5.
The digits' run is written to a temporary folder.
"""

import argparse
import os
import pathlib
import subprocess
import tempfile
import time
from collections.abc import Sequence

from uvit_jax.errors import UserError, run_script

ROOT = pathlib.Path(__file__).parents[1]


def cpu_seconds(command: Sequence[str]) -> tuple[float, float]:
    """Runs a command to its end; returns the CPU seconds of all its processes and the seconds that
    passed. Raises UserError where it fails."""
    before, began = os.times(), time.monotonic()
    if code := subprocess.run(command, cwd=ROOT).returncode:
        raise UserError(f"{' '.join(command)} ended with exit code {code}, expected 0")
    after = os.times()
    spent = after.children_user - before.children_user
    spent += after.children_system - before.children_system
    return spent, time.monotonic() - began


def main() -> None:
    """Prints a line for each of the two, and their ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--figures", help="a JSON file of figures, as docs/figures.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measured = {
            name: cpu_seconds(["make", name, *more])
            for name, more in (("digits", (f"WORKDIR={folder}/run",)), ("test", ()))
        }
    for name, (spent, passed) in measured.items():
        print(f"make {name:6} {spent:6.0f} CPU seconds in {passed:4.0f} s")
    ratio = measured["test"][0] / measured["digits"][0]
    print(f"ratio {ratio:.2f}")
    if options.figures:
        from figures import record  # beside this script, which tests import from elsewhere

        minutes = {f"suite.{name}_minutes": (t / 60, "min") for name, (_, t) in measured.items()}
        unit = "x the CPU time of make digits"
        record(
            options.figures,
            f"{os.cpu_count()} CPU cores",
            {**minutes, "suite.ratio": (ratio, unit)},
        )


if __name__ == "__main__":
    run_script(main)
