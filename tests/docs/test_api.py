"""The API page has every public name, and docstrings say what each argument is."""

import importlib
import inspect
import re

import pytest

import uvit_jax
from tests.docs.blocks import ROOT
from uvit_jax.experiment.published import PUBLISHED

PAGE = (ROOT / "docs" / "api.md").read_text()
DOCUMENTED = re.findall(r"^::: ([\w.]+)$", PAGE, re.MULTILINE)


def test_the_page_has_every_public_name():
    homes = {f"uvit_jax.{home}.{name}" for name, home in uvit_jax._HOMES.items()}
    assert not homes - set(DOCUMENTED)
    assert "uvit_jax.diffusion.dpm_solver.sample" in DOCUMENTED
    assert {*uvit_jax._HOMES, "dpm_solver", "__version__"} == set(uvit_jax.__all__)


def test_the_published_models_are_those_of_the_page():
    text = (ROOT / "docs" / "published_weights.md").read_text()
    for name, model in PUBLISHED.items():
        [row] = re.findall(rf"^\| .*`{name}` .*$", text, re.MULTILINE)
        assert f"`{model.config}`" in row
        assert f"`{model.weights}`" in row


def load(path: str):
    """The object at a dotted path."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def functions(thing) -> list:
    """A function, or the public methods of a class that are its own, with their classes."""
    if not inspect.isclass(thing):
        return [thing]
    own = [getattr(value, "__func__", value) for value in vars(thing).values()]
    kept = ("__init__", "__call__")
    found = [f for f in own if inspect.isfunction(f)]
    return [f for f in found if not f.__name__.startswith("_") or f.__name__ in kept]


@pytest.mark.parametrize("path", DOCUMENTED)
def test_a_docstring_names_every_argument(path):
    thing = load(path)
    assert inspect.getdoc(thing)
    generated = hasattr(thing, "__dataclass_fields__")
    for function in functions(thing):
        if generated and function.__name__ == "__init__":
            continue
        # A class's docstring, or its base's, may name the arguments of its methods.
        classes = [c for c in getattr(thing, "__mro__", ()) if c.__module__.startswith("uvit_jax")]
        texts = [function, thing, *classes, *(getattr(c, function.__name__, None) for c in classes)]
        text = "\n".join(inspect.getdoc(one) or "" for one in texts)
        names = set(inspect.signature(function).parameters) - {"self", "cls", "other", "ours"}
        missing = [name for name in names if not re.search(rf"\b{name}\b", text)]
        assert not missing, f"{path}.{function.__name__}: {missing}"


@pytest.mark.parametrize("path", [path for path in DOCUMENTED if path.endswith("Config")])
def test_a_configs_docstring_names_every_field(path):
    thing = load(path)
    text = inspect.getdoc(thing)
    assert not [field for field in thing.__dataclass_fields__ if f"  {field}: " not in text]
