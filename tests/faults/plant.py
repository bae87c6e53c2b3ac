"""Plants faults of one line in a copy of the repository and tells which test catches each.

`python -m tests.faults.plant` plants all of them one after another; names as arguments choose some.
Each is planted alone: first the tests named beside it run, with `-x`, and with --whole the default
suite where these pass. The exit code is 1 where a fault was missed.
"""

import argparse
import dataclasses
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).parents[2]
FAULTS = pathlib.Path(__file__).with_name("faults.toml")
NOT_COPIED = (".*", "__pycache__", "runs", "dist", "build", "scratch", "*.egg-info")
NAMED_FIRST = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Fault:
    """A fault of one line.

    Attributes:
      name: of the fault, unique.
      kind: such as "off by one" or "sign".
      file: path from the repository's root.
      line: text that stands exactly once in the file.
      fault: what is planted in its place.
      tests: files and folders of tests that are tried first.
    """

    name: str
    kind: str
    file: str
    line: str
    fault: str
    tests: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What the tests made of a fault: the test that caught it, or "" where it was missed."""

    fault: Fault
    caught_by: str
    seconds: float


def read_faults(path: pathlib.Path = FAULTS) -> list[Fault]:
    """All faults, in the order of the file."""
    entries = tomllib.loads(path.read_text())["fault"]
    return [Fault(**entry | {"tests": tuple(entry["tests"])}) for entry in entries]


def planted(text: str, fault: Fault) -> str:
    """The file's text with the fault in it. Raises ValueError unless its line stands there once."""
    found = text.count(fault.line)
    if found != 1:
        raise ValueError(f"{fault.name}: {fault.file} holds the line {found} times, expected once")
    return text.replace(fault.line, fault.fault)


def try_fault(fault: Fault, copy: pathlib.Path, *, whole: bool, timeout: float) -> Outcome:
    """Plants the fault in the copy, runs the tests, and takes it out again."""
    path, began = copy / fault.file, time.monotonic()
    text = path.read_text()
    path.write_text(planted(text, fault))
    try:
        caught_by = first_failure(copy, fault.tests, timeout)
        if not caught_by and whole:
            caught_by = first_failure(copy, (), timeout)
    finally:
        path.write_text(text)
    return Outcome(fault, caught_by, time.monotonic() - began)


def first_failure(copy: pathlib.Path, tests: Sequence[str], timeout: float) -> str:
    """The first test that fails in the copy, "" where all pass; a hang counts as a failure."""
    command = [sys.executable, "-m", "pytest", "-n0", "-x", "-q", *tests]
    shared = os.environ.get("UVIT_JAX_SHARED", str(ROOT.parent / "shared"))
    environ = os.environ | {"PYTHONPATH": str(copy), "UVIT_JAX_SHARED": shared}
    try:
        ended = subprocess.run(
            command, cwd=copy, env=environ, capture_output=True, text=True, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        return f"no end within {timeout:.0f} s"
    if ended.returncode == 0:
        return ""
    named = NAMED_FIRST.search(ended.stdout)
    if ended.returncode not in (1, 2) or named is None:
        raise RuntimeError(f"pytest ended with {ended.returncode}:\n{ended.stdout}{ended.stderr}")
    return named[1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Plants the faults asked for and prints a line for each; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="faults to plant (default: all)")
    parser.add_argument("--list", action="store_true", help="print the faults and plant none")
    parser.add_argument(
        "--whole", action="store_true", help="run the default suite where the named tests pass"
    )
    parser.add_argument("--timeout", type=float, default=1800, help="seconds that tests may take")
    options = parser.parse_args(arguments)
    faults = read_faults()
    unknown = set(options.names) - {fault.name for fault in faults}
    if unknown:
        parser.error(f"no fault is named {', '.join(sorted(unknown))}: see --list")
    chosen = [fault for fault in faults if not options.names or fault.name in options.names]
    if options.list:
        for fault in chosen:
            print(f"{fault.name:45} {fault.kind:20} {fault.file}")
        return 0
    missed = 0
    with tempfile.TemporaryDirectory(prefix="uvit_jax_faults_") as folder:
        copy = pathlib.Path(folder, "repository")
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*NOT_COPIED))
        for fault in chosen:
            outcome = try_fault(fault, copy, whole=options.whole, timeout=options.timeout)
            missed += not outcome.caught_by
            said = f"caught by {outcome.caught_by}" if outcome.caught_by else "MISSED"
            print(f"{fault.name:45} {outcome.seconds:5.0f} s  {said}", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} caught")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
