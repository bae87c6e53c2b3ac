"""Installation into a fresh virtual environment: seconds, size, packages, the heaviest ten.

    python benchmarks/install.py                 # the core
    python benchmarks/install.py '.[dev]' --uv   # with extras, by uv
    python benchmarks/install.py flax            # what Flax alone brings: the core can't be smaller

Run it twice: the first run fills the installer's cache, the second is the figure. pip compiles
every module, uv with --compile-bytecode too; their bytecode counts in the sizes.
"""

import argparse
import importlib.metadata
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from uvit_jax.errors import UserError, run_script

ROOT = pathlib.Path(__file__).parents[1]
MB = 1e6
HEAVIEST = 10


def commands(folder: pathlib.Path, what: str, uv: bool) -> list[list[str]]:
    """The commands that make an environment in the folder and install `what` into it."""
    python = str(folder / ("Scripts" if sys.platform == "win32" else "bin") / "python")
    if uv:
        return [
            ["uv", "venv", "-q", "--python", sys.executable, str(folder)],
            ["uv", "pip", "install", "-q", "--compile-bytecode", "--python", python, what],
        ]
    return [
        [sys.executable, "-m", "venv", str(folder)],
        [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", what],
    ]


def install(commands: Sequence[Sequence[str]]) -> tuple[float, float]:
    """Runs the commands; returns the seconds that passed and the CPU seconds of their processes.

    Raises:
      UserError: one of them fails.
    """
    before, began = os.times(), time.monotonic()
    for command in commands:
        if code := subprocess.run(command, cwd=ROOT).returncode:
            raise UserError(f"{' '.join(command)} ended with exit code {code}, expected 0")
    passed, after = time.monotonic() - began, os.times()
    spent = after.children_user - before.children_user
    spent += after.children_system - before.children_system
    return passed, spent


def size(folder: pathlib.Path) -> int:
    """Bytes of all files in a folder; links are not followed."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_size for path in files)


def package_sizes(folder: pathlib.Path) -> dict[str, int]:
    """Bytes of each installed package, by name, with its bundled libraries and its bytecode."""
    (site,) = {path.parent.parent for path in folder.rglob("*.dist-info/METADATA")}
    sizes = {}
    for package in importlib.metadata.distributions(path=[str(site)]):
        paths = {pathlib.Path(str(package.locate_file(file))) for file in package.files or ()}
        # uv's bytecode is not in a package's list of files.
        paths |= {
            compiled
            for path in paths
            if path.suffix == ".py"
            for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc")
        }
        sizes[package.name] = sum(path.stat().st_size for path in paths if path.exists())
    return sizes


def main() -> None:
    """Installs, and prints a line for the whole and one for each of the heaviest packages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", nargs="?", default=".", help="what pip installs, such as '.[dev]'")
    parser.add_argument("--uv", action="store_true", help="with uv instead of venv and pip")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        passed, spent = install(commands(folder, args.what, args.uv))
        sizes = package_sizes(folder)
        print(
            f"{args.what}: {passed:.0f} s ({spent:.0f} CPU seconds), "
            f"{size(folder) / MB:.0f} MB, {len(sizes)} packages"
        )
        for package, bytes_ in sorted(sizes.items(), key=lambda item: -item[1])[:HEAVIEST]:
            print(f"  {bytes_ / MB:5.0f} MB  {package}")


if __name__ == "__main__":
    run_script(main)
