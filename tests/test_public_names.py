"""The package's public names: there, typed, imported only when asked for, and documented."""

import ast
import doctest
import importlib.metadata
import inspect
import sys
import tomllib

import pytest

import uvit_jax
from tests.jobs.runs import ROOT, run_command

SOURCE = ast.parse((ROOT / "uvit_jax" / "__init__.py").read_text())
# Examples are in the docstrings of at least these.
WITH_EXAMPLES = {"UViT", "Sampler", "frechet_distance", "load_experiment"}


def names_for_type_checkers() -> dict[str, str]:
    """The names imported for type checkers and their modules."""
    checked = next(node for node in SOURCE.body if isinstance(node, ast.If))
    return {
        alias.name: node.module
        for node in checked.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_importing_the_package_is_cheap():
    program = """
import sys, time
began = time.process_time()
import uvit_jax
print(time.process_time() - began)
print([name for name in ("jax", "flax", "numpy", "absl", "uvit_jax.errors") if name in sys.modules])
"""
    ended = run_command([sys.executable, "-c", program], timeout=60)
    seconds, imported = ended.stdout.splitlines()
    assert float(seconds) < 0.2
    assert imported == "[]"


def test_type_checkers_see_the_names_that_are_there():
    typed = names_for_type_checkers()
    assert {*typed, "__version__"} == set(uvit_jax.__all__)
    assert (ROOT / "uvit_jax" / "py.typed").is_file()
    for name, module in typed.items():
        found = getattr(uvit_jax, name)
        home = f"{module}.{name}" if inspect.ismodule(found) else module
        assert found is (
            sys.modules[home] if inspect.ismodule(found) else vars(sys.modules[home])[name]
        )
    assert set(uvit_jax.__all__) <= set(dir(uvit_jax))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"^module 'uvit_jax' has no attribute 'UVit'$"):
        uvit_jax.UVit  # noqa: B018


def test_the_version_is_that_of_pyproject_and_unknown_for_a_clone(monkeypatch):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert uvit_jax._version() in (project["version"], "unknown")

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert uvit_jax._version() == "unknown"


def test_the_examples_of_the_public_names_run(monkeypatch):
    monkeypatch.chdir(ROOT)
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner()
    found = set()
    for name in sorted(set(uvit_jax.__all__) - {"__version__"}):
        public = getattr(uvit_jax, name)
        module = public if inspect.ismodule(public) else sys.modules[public.__module__]
        for test in finder.find(public, name, module=module, globs=dict(vars(module))):
            if test.examples:
                found.add(name)
                runner.run(test)
    assert found >= WITH_EXAMPLES
    assert runner.failures == 0
