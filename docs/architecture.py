"""Draws the rooms of the package and what they import, by floors, into docs/architecture.md.

    python docs/architecture.py           # writes the graph between the page's two markers
    python docs/architecture.py --check   # exits with 1 if the page's graph is out of date

A room is a folder of `uvit_jax`; folders inside `jobs` are rooms of their own, the modules beside
the folders are "main" or "ground". `FLOORS` says where each room is: imports go only down.
"""

import argparse
import ast
import pathlib
import sys
from collections.abc import Iterator

REPOSITORY = pathlib.Path(__file__).parent.parent
PACKAGE = REPOSITORY / "uvit_jax"
PAGE = REPOSITORY / "docs" / "architecture.md"
BEGIN, END = "<!-- graph: begin, by docs/architecture.py -->", "<!-- graph: end -->"

# The rooms of each floor, the highest first. Rooms of one floor don't import each other.
FLOORS = (
    ("main",),
    ("jobs",),
    ("jobs.evaluation",),
    ("jobs.sampling", "jobs.preparation", "jobs.forecast"),
    ("experiment",),
    ("training",),
    ("interop", "metrics", "data"),
    ("compiled",),
    ("models", "diffusion", "telemetry", "parallel"),
    ("ground",),
)
_MAIN = ("main", "__main__", "command_help", "command_line", "failures")
_BY_NAME = {"main": {"jobs"}}  # `main` imports the module of a job by the job's name

Graph = dict[str, set[str]]


def room_of(module: str) -> str | None:
    """The room of a module: "models" for `uvit_jax.models.kernels.norm`; None for the package."""
    _, *names = module.split(".")
    if not names:
        return None
    if not (PACKAGE / names[0]).is_dir():
        return "main" if names[0] in _MAIN else "ground"
    inside_jobs = names[0] == "jobs" and len(names) > 1 and (PACKAGE / "jobs" / names[1]).is_dir()
    return f"jobs.{names[1]}" if inside_jobs else names[0]


def module_of(path: pathlib.Path) -> str:
    """The dotted name of a source file of the package."""
    names = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


def imported(path: pathlib.Path) -> Iterator[str]:
    """The modules of the package that a source file imports, at its top or inside functions."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.startswith("uvit_jax."))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "uvit_jax":
            assert node.module is not None
            for name in node.names:
                inside = REPOSITORY.joinpath(*node.module.split("."), name.name)
                is_module = inside.is_dir() or inside.with_suffix(".py").is_file()
                yield f"{node.module}.{name.name}" if is_module else node.module


def read_graph() -> Graph:
    """The rooms, and for each the other rooms it imports."""
    graph: Graph = {room: set() for floor in FLOORS for room in floor}
    for path in sorted(PACKAGE.rglob("*.py")):
        room = room_of(module_of(path))
        if room is not None:
            found = {room_of(module) for module in imported(path)}
            graph[room] |= {name for name in found if name not in (room, None)}
    return {room: others | _BY_NAME.get(room, set()) for room, others in graph.items()}


def not_down(graph: Graph) -> list[str]:
    """The imports that don't go to a lower floor, as "room -> room"."""
    level = {room: number for number, floor in enumerate(FLOORS) for room in floor}
    return [
        f"{room} -> {other}"
        for room, others in sorted(graph.items())
        for other in sorted(others)
        if level[other] <= level[room]
    ]


def direct(graph: Graph) -> Graph:
    """The graph without the arrows that follow from others."""

    def reached(room: str) -> set[str]:
        return graph[room].union(*(reached(other) for other in graph[room]))

    return {
        room: {name for name in others if not any(name in reached(o) for o in others - {name})}
        for room, others in graph.items()
    }


def mermaid(graph: Graph) -> str:
    """The graph in Mermaid's language, a box a floor, the highest first."""
    lines = ["```mermaid", "flowchart TD"]
    for number, floor in enumerate(FLOORS):
        lines.append(f'  subgraph floor{len(FLOORS) - 1 - number}[" "]')
        lines += [f'    {_id(room)}["{room}"]' for room in floor]
        lines.append("  end")
    for room, others in sorted(direct(graph).items()):
        lines += [f"  {_id(room)} --> {_id(other)}" for other in sorted(others)]
    return "\n".join([*lines, "```"])


def _id(room: str) -> str:
    return room.replace(".", "_")


def with_graph(page: str, graph: str) -> str:
    """The page with this graph between its markers."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{graph}\n{END}{after}"


def main() -> None:
    """Writes the graph, or checks it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    page = PAGE.read_text()
    drawn_anew = with_graph(page, mermaid(read_graph()))
    if check and drawn_anew != page:
        sys.exit(f"{PAGE} is out of date: run python docs/architecture.py")
    if not check:
        PAGE.write_text(drawn_anew)


if __name__ == "__main__":
    main()
