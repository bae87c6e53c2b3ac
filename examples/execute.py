"""Executes the notebooks from top to bottom, each in an empty folder of its own.

python examples/execute.py                 # all; an error in a cell ends it with that cell
python examples/execute.py --save digits   # one, whose outputs become those of the file
"""

import argparse
import pathlib
import resource
import tempfile
import time

import nbformat
from nbclient import NotebookClient

EXAMPLES = pathlib.Path(__file__).resolve().parent


def execute(path: pathlib.Path) -> nbformat.NotebookNode:
    """The notebook with fresh outputs; nbclient's CellExecutionError where a cell fails."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=600,
            record_timing=False,
            resources={"metadata": {"path": folder}},
        )
        client.execute()
    return notebook


def main() -> None:
    """Executes what the command line names and prints the seconds that each took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="of notebooks, as digits; all by default")
    parser.add_argument("--save", action="store_true", help="write the outputs to the notebooks")
    arguments = parser.parse_args()
    paths = [EXAMPLES / f"{name}.ipynb" for name in arguments.names]
    for path in paths or sorted(EXAMPLES.glob("*.ipynb")):
        began, cpu_before = time.monotonic(), _cpu_seconds()
        notebook = execute(path)
        if arguments.save:
            nbformat.write(notebook, path)
        seconds, cpu = time.monotonic() - began, _cpu_seconds() - cpu_before
        print(f"{path.stem}: {seconds:.0f} s, {cpu:.0f} s of CPU time", flush=True)


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
