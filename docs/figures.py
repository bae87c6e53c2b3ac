"""Writes the measured numbers of docs/figures.json into the pages that quote them.

    python docs/figures.py           # rewrites the pages
    python docs/figures.py --check   # exits with 1 if a page has another number, or an unknown name

A page quotes a figure between two comments: `<!--fig:NAME-->607<!--/fig-->`. Benchmarks write the
file (`--figures docs/figures.json`); a figure says its unit, command, device and date.
"""

import argparse
import json
import pathlib
import re
import sys
from collections.abc import Mapping
from typing import Any

REPOSITORY = pathlib.Path(__file__).parent.parent
FIGURES = REPOSITORY / "docs" / "figures.json"
QUOTE = re.compile(r"<!--fig:([\w.]+)-->(.*?)<!--/fig-->", re.DOTALL)


def pages() -> list[pathlib.Path]:
    """The README and all pages of the documentation."""
    return [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


def text_of(figure: Mapping[str, Any]) -> str:
    """A figure as pages show it: "37,700", "1.25", or its own text."""
    value = figure["value"]
    return value if isinstance(value, str) else f"{value:,}"


def faults(page: str, figures: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A sentence for each quotation that is unknown or has another number."""
    found = []
    for name, text in QUOTE.findall(page):
        if name not in figures:
            found.append(f"quotes an unknown figure, {name}")
        elif text != text_of(figures[name]):
            found.append(f"says {text} for {name}, which is {text_of(figures[name])}")
    return found


def with_figures(page: str, figures: Mapping[str, Mapping[str, Any]]) -> str:
    """The page with the value of each known figure between its comments."""

    def quoted(match: re.Match[str]) -> str:
        name, text = match.groups()
        return f"<!--fig:{name}-->{text_of(figures[name]) if name in figures else text}<!--/fig-->"

    return QUOTE.sub(quoted, page)


def main() -> None:
    """Rewrites the pages, or checks them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    figures = json.loads(FIGURES.read_text())
    wrong = []
    for path in pages():
        page = path.read_text()
        filled = page if check else with_figures(page, figures)
        if filled != page:
            path.write_text(filled)
        wrong += [f"{path.relative_to(REPOSITORY)} {fault}" for fault in faults(filled, figures)]
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
