"""Links of the README and the documentation lead to files and headings that are there."""

import re
import urllib.parse

import pytest

from tests.docs.blocks import PAGES, ROOT

_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")
_CODE = re.compile(r"^ *```.*?^ *```$|`[^`\n]*`", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)


def links(text: str) -> list[str]:
    """Targets of a page's links and pictures, without those in code."""
    return [markdown or html for markdown, html in _LINK.findall(_CODE.sub("", text))]


def anchors(text: str, *, site: bool) -> set[str]:
    """Anchors of a page's headings, as the site (Python-Markdown) or GitHub names them."""
    fences_gone = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)
    found = set(re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE))
    for heading in _HEADING.findall(fences_gone):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        words = re.sub(r"[^\w\s-]", "", words).lower()
        found.add(re.sub(r"[-\s]+", "-", words.strip()) if site else words.replace(" ", "-"))
    return found


def fault(page, target: str) -> str | None:
    """Says what is wrong with a link of a page; None if nothing is."""
    if target.startswith("mailto:"):
        return None
    if "://" in target:
        parts = urllib.parse.urlsplit(target)
        well = parts.scheme == "https" and re.fullmatch(r"[\w.-]+\.\w+", parts.netloc)
        return None if well else f"{target} is not an https address"
    path, _, anchor = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    if not file.exists() or ROOT not in [file, *file.parents]:
        return f"{target}: there is no {path}"
    if anchor and anchor not in anchors(file.read_text(), site=page.parent.name == "docs"):
        return f"{target}: {file.name} has no heading {anchor}"
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_link_is_dead(page):
    found = [fault(page, target) for target in links(page.read_text())]
    assert not [one for one in found if one]


def test_every_page_is_in_the_sites_navigation():
    text = (ROOT / "mkdocs.yml").read_text()
    named = re.findall(r"^ +- .*: ([\w.]+\.md)$", text, re.MULTILINE)
    assert sorted(named) == [path.name for path in PAGES[1:]]


@pytest.mark.parametrize(
    "target",
    ["nosuch.md", "faq.md#nosuch", "#nosuch", "http://x.org", "https://nowhere", "../../x.md"],
)
def test_a_dead_link_is_found(target):
    assert fault(ROOT / "docs" / "index.md", target)


def test_headings_become_anchors_as_the_site_and_as_github_name_them():
    text = "# Where do I ...?\n\n```sh\n# no heading\n```\n\n::: a.b\n"
    assert anchors(text, site=True) == {"where-do-i", "a.b"}
    assert anchors(text, site=False) == {"where-do-i-", "a.b"}
    assert links('[a](b.md#c) `[d](e)` <img src="f.png">') == ["b.md#c", "f.png"]
