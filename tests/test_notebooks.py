"""The notebooks as files: `make notebooks` executes them, which takes minutes."""

import ast
import importlib
import json
import re

import pytest

from tests.jobs.runs import ROOT

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
BADGE = "https://colab.research.google.com/github/uvit-jax/uvit_jax/blob/main/examples/"


def code_of(cell: dict) -> str:
    """A cell's Python: a file that it writes, or its own, IPython's commands left out."""
    source = re.sub(r"\A%%writefile .*\n", "", "".join(cell["source"]))
    return re.sub(r"^(\s*)[%!].*$", r"\1pass", source, flags=re.M)


@pytest.fixture(scope="module", params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    text = request.param.read_text()
    return request.param, text, json.loads(text)


def test_each_is_small_valid_and_opens_in_colab(notebook):
    path, text, content = notebook
    assert path.stat().st_size < 500_000
    assert (content["nbformat"], content["metadata"]["kernelspec"]["name"]) == (4, "python3")
    assert len({cell["id"] for cell in content["cells"]}) == len(content["cells"])
    assert f"({BADGE}{path.name})" in "".join(content["cells"][0]["source"])
    first_code = next(cell for cell in content["cells"] if cell["cell_type"] == "code")
    assert 'find_spec("uvit_jax") is None' in "".join(first_code["source"])
    assert not re.search(r'["\s(=](/home|/root|/tmp|/work|/Users|/content|[A-Z]:\\)', text)


def test_each_was_executed_in_order_without_error_and_shows_pictures(notebook):
    _, _, content = notebook
    cells = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data"}
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3
    written = "".join("".join(output.get("text", [])) for output in outputs)
    assert "Warning" not in written
    assert written.count("\n") < 60


def test_code_compiles_and_every_name_of_the_package_that_it_uses_is_there(notebook):
    _, _, content = notebook
    for cell in content["cells"]:
        if cell["cell_type"] != "code":
            continue
        for node in ast.walk(ast.parse(code_of(cell))):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("uvit_jax"):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    found = hasattr(module, alias.name)
                    assert found or importlib.import_module(f"{node.module}.{alias.name}")
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "uvit_jax":
                assert hasattr(importlib.import_module("uvit_jax"), node.attr), node.attr


def test_links_between_notebooks_and_to_the_repository_lead_to_files(notebook):
    _, text, _ = notebook
    for name in re.findall(r"\]\((\w+\.ipynb)\)", text):
        assert (ROOT / "examples" / name).exists(), name
    for name in re.findall(r"uvit_jax/blob/main/([\w./]+)\)", text):
        assert (ROOT / name).exists(), name


def test_the_readme_names_every_notebook():
    readme = (ROOT / "examples" / "README.md").read_text()
    assert [path.name for path in NOTEBOOKS] == sorted(set(re.findall(r"\((\w+\.ipynb)\)", readme)))
