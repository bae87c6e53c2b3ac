"""Sizes that the package keeps, and the imports that its contracts allow."""

import ast
import pathlib

from tests.jobs.runs import ROOT

MOST_LINES = 350
MOST_PARAMETERS = 10
MOST_ENTRIES_OF_JOBS = 10
# Functions that take the whole config or all that is assembled of it; others name what they need.
WHOLES = ("Experiment", "Assembled", "Opened")
MOST_TAKE_A_WHOLE = 35
# Signatures that users call by the names of the methods' own settings.
LONG_SIGNATURES = {("dpm_solver.py", "sample"), ("sde.py", "euler_maruyama")}

FILES = sorted((ROOT / "uvit_jax").rglob("*.py"))


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    arguments = function.args
    return len([*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs])


def long_signatures(path: pathlib.Path) -> list[tuple[str, str]]:
    """(file, function) of every function with too many parameters, methods' self counted out."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    methods = {child for node in nodes if isinstance(node, ast.ClassDef) for child in node.body}
    return [
        (path.name, node.name)
        for node in nodes
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and parameters(node) - (node in methods) > MOST_PARAMETERS
    ]


def test_no_file_is_longer_than_a_reader_keeps_in_mind():
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in FILES}
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}


def test_no_function_has_more_parameters_than_a_caller_keeps_in_mind():
    found = {signature for path in FILES for signature in long_signatures(path)}
    assert found - LONG_SIGNATURES == set()


def takes_a_whole(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    arguments = function.args
    hints = [
        ast.unparse(argument.annotation)
        for argument in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        if argument.annotation is not None
    ]
    return any(whole in hint for whole in WHOLES for hint in hints)


def test_few_functions_take_the_whole_experiment():
    found = [
        (path.name, node.name)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and takes_a_whole(node)
    ]
    assert ("train.py", "run") in found
    assert len(found) <= MOST_TAKE_A_WHOLE


def test_jobs_are_verbs_and_a_few_rooms():
    # A folder without code may be left of another version, with its caches alone.
    entries = [
        entry
        for entry in (ROOT / "uvit_jax" / "jobs").iterdir()
        if entry.name != "__init__.py" and (entry.suffix == ".py" or any(entry.glob("*.py")))
    ]
    assert len(entries) <= MOST_ENTRIES_OF_JOBS
