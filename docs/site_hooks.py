"""What the site adds to the pages, which are also read as they are in the repository.

MkDocs calls `on_page_markdown` for every page. Links to files outside docs/ go to the repository,
comments for tests and figures go, and two pages get what is made from the code: the table of the
config's fields, and the graph of the rooms as a drawing.
"""

import html
import pathlib
import re
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from docs.architecture import FLOORS, Graph, direct, read_graph

SOURCE = "https://github.com/uvit-jax/uvit_jax/blob/main/"
FIELDS = "<!-- fields: the site's table is made from the code -->"
_COMMENT = re.compile(
    r"<!--\s*(?:/fig|fig:|test:)[^>]*-->\n?(?=```)|<!--\s*(?:/fig|fig:|test:)[^>]*-->"
)
_OUTSIDE = re.compile(r"\]\(\.\./([^)\s]+)\)")
_MERMAID = re.compile(r"```mermaid\n.*?\n```", re.DOTALL)


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """The page's text as the site shows it."""
    markdown = _OUTSIDE.sub(rf"]({SOURCE}\1)", _COMMENT.sub("", markdown))
    if page.file.src_uri == "config_reference.md":
        before, after = markdown.split(FIELDS)
        return before + field_tables() + after
    return _MERMAID.sub(lambda _: drawing(read_graph()), markdown)


def field_tables() -> str:
    """A heading and a table for each section of the config, in Markdown."""
    # Imported late: every other page is made without jax.
    from uvit_jax.experiment.field_docs import field_docs, section_texts

    lines, texts, last = [], section_texts(), None
    for doc in field_docs():
        if doc.section != last:
            last = doc.section
            lines += ["", f"## {last or 'Top level'}", "", texts.get(last, ""), ""]
            lines += ["| field and default | meaning |", "|---|---|"]
        text = _outside_code(f"{doc.text} ({doc.type})".replace("|", "\\|"))
        lines.append(f"| `{doc.name}`<br>`{doc.default!r}` | {text} |")
    return "\n".join(lines)


def _outside_code(text: str) -> str:
    """Text whose "<" is no tag; between backticks Markdown sees to it."""
    parts = text.split("`")
    parts[::2] = [part.replace("<", "&lt;") for part in parts[::2]]
    return "`".join(parts)


def drawing(graph: Graph) -> str:
    """The graph of the rooms as inline SVG: a row a floor, an arrow for each direct import."""
    width, row, box_height = 720, 74, 34
    place: dict[str, tuple[float, float]] = {}
    for level, floor in enumerate(FLOORS):
        for number, room in enumerate(floor):
            place[room] = (width * (number + 1) / (len(floor) + 1), 24 + level * row)
    parts = [
        f'<svg class="rooms" role="img" aria-label="Rooms and their imports" '
        f'viewBox="0 0 {width} {48 + row * (len(FLOORS) - 1)}">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z"/></marker></defs>',
    ]
    for room, others in sorted(direct(graph).items()):
        for other in sorted(others):
            (x, y), (to_x, to_y) = place[room], place[other]
            top, bottom = y + box_height / 2, to_y - box_height / 2
            bend = (bottom - top) / 2
            curve = f"{x:.0f} {top + bend:.0f} {to_x:.0f} {bottom - bend:.0f} {to_x:.0f}"
            parts.append(
                f'<path class="arrow" marker-end="url(#tip)" '
                f'd="M{x:.0f} {top:.0f}C{curve} {bottom:.0f}"/>'
            )
    for room, (x, y) in place.items():
        wide = 24 + 8.2 * len(room)
        parts.append(
            f'<rect x="{x - wide / 2:.0f}" y="{y - box_height / 2:.0f}" width="{wide:.0f}" '
            f'height="{box_height}" rx="6"/><text x="{x:.0f}" y="{y + 5:.0f}">'
            f"{html.escape(room)}</text>"
        )
    return f'<div class="rooms-frame">{"".join(parts)}</svg></div>'
