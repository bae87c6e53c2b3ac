"""Code blocks of the README and of the documentation, and the commands in them."""

import dataclasses
import pathlib
import re
import shlex
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SHELL, PYTHON = ("sh", "bash", "shell"), ("python", "py")
# A fence, with the comment `<!-- test: run -->` above it where there is one.
_FENCE = re.compile(
    r"(?:<!-- test: (\w+)([^>]*?)-->\n)?^( *)```(\w+)[^\n]*\n(.*?)^ *```$", re.MULTILINE | re.DOTALL
)
MODES = ("run", "parse", "skip")


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block of shell or Python.

    Attributes:
      page: the file's name.
      line: of the fence, from 1.
      language: "sh" or "python".
      text: without the fence and its indentation.
      mode: "run" (executed by `make docs-test`), "parse" (checked), or "skip", with a reason.
      reason: why it is skipped.
    """

    page: str
    line: int
    language: str
    text: str
    mode: str = "parse"
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_in(text: str, page: str) -> list[Block]:
    """The shell and Python blocks of a page, in order."""
    found = []
    for match in _FENCE.finditer(text):
        mode, reason, indent, language, body = match.groups()
        kind = "sh" if language in SHELL else "python" if language in PYTHON else ""
        if kind:
            lines = [line.removeprefix(indent) for line in body.splitlines()]
            line = text.count("\n", 0, match.start(4)) + 1
            where = Block(page, line, kind, "\n".join(lines) + "\n", mode or "parse")
            found.append(dataclasses.replace(where, reason=(reason or "").strip()))
    return found


def all_blocks() -> list[Block]:
    """The blocks of all pages."""
    return [block for page in PAGES for block in blocks_in(page.read_text(), page.name)]


def commands(text: str) -> Iterator[list[str]]:
    """The simple commands of a shell block as words, without comments and variables in front."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&;|")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("&;|"):
                if words:
                    yield words
                words = []
            elif words or not re.fullmatch(r"[A-Z_]+=.*", word):
                words.append(word)
