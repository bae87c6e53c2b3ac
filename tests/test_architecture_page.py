"""The page of the house agrees with the code: its graph, its paths and its names."""

import ast
import re

import pytest

from docs.architecture import (
    END,
    PACKAGE,
    PAGE,
    REPOSITORY,
    direct,
    mermaid,
    not_down,
    read_graph,
    with_graph,
)

TEXT = PAGE.read_text()
# `path` or `path:name`; a path has a slash or a suffix, and anything else is no reference.
REFERENCES = sorted(
    set(re.findall(r"`([\w./-]+(?:/[\w.-]+|\.(?:py|sh|yaml|md)))(?::([\w.]+))?`", TEXT))
)


def defined(source: str) -> set[str]:
    """The names that a module defines at its top and in its classes, as `Class.name`."""

    def names(body, prefix=""):
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                yield prefix + node.name
            if isinstance(node, ast.ClassDef):
                yield from names(node.body, f"{prefix}{node.name}.")
            targets = (
                node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            )
            yield from (prefix + target.id for target in targets if isinstance(target, ast.Name))

    return set(names(ast.parse(source).body))


def test_imports_go_down():
    assert not_down(read_graph()) == []


def test_the_graph_is_that_of_the_imports():
    assert with_graph(TEXT, mermaid(read_graph())) == TEXT, "run python docs/architecture.py"


def test_an_arrow_that_follows_from_others_is_not_drawn():
    graph = {"top": {"middle", "ground"}, "middle": {"ground"}, "ground": set()}
    assert direct(graph) == {"top": {"middle"}, "middle": {"ground"}, "ground": set()}


def test_an_import_upwards_is_found():
    graph = read_graph()
    assert not_down(graph | {"models": {"training"}}) == ["models -> training"]


def test_every_room_has_its_row():
    rows = set(re.findall(r"^\| ([\w.]+) \|", TEXT.split(END)[1], re.MULTILINE))
    assert set(read_graph()) <= rows


def test_the_table_of_changes_is_long_enough_to_be_of_use():
    table = TEXT.split("## Where do I change ...?")[1]
    assert len(re.findall(r"^\| (?!to change|---)", table, re.MULTILINE)) >= 25
    assert len(REFERENCES) >= 100


@pytest.mark.parametrize(("path", "name"), REFERENCES, ids=[":".join(r) for r in REFERENCES])
def test_a_path_and_its_name_are_in_the_code(path, name):
    found = next((base / path for base in (PACKAGE, REPOSITORY) if (base / path).exists()), None)
    assert found is not None, f"there is no {path}"
    if name:
        assert name in defined(found.read_text()), f"{path} defines no {name}"


# One page names the files of another repository; tests/docs/test_from_official_code.py reads it.
PAGES = {REPOSITORY / "README.md", *PAGE.parent.glob("*.md")}
PAGES -= {PAGE.with_name("from_official_code.md")}


@pytest.mark.parametrize("page", sorted(PAGES), ids=lambda page: page.name)
def test_a_page_names_only_files_that_exist(page):
    paths = set(re.findall(r"(?:^|[\s`(])((?:\w+/)+\w+\.(?:py|sh|yaml|md))\b", page.read_text()))
    bases = (PACKAGE, REPOSITORY, page.parent)
    assert not {path for path in paths if not any((base / path).exists() for base in bases)}
