"""A count of the files that a folder's reader passes over, for one line of the log."""

from uvit_jax.data.image_formats import hint
from uvit_jax.data.names import printable

HIDDEN, NO_EXTENSION, EMPTY_FOLDER = "hidden", "without an extension", "without an image inside"


class PassedOver:
    """Counts entries of folders by kind (mostly the extension) and keeps each kind's first name."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._firsts: dict[str, str] = {}

    def add(self, name: str, kind: str = "") -> None:
        """Counts an entry: as of this kind, or by its name."""
        if not kind:
            stem, dot, extension = name.rpartition("/")[2].rpartition(".")
            kind = HIDDEN if not stem and dot else f".{extension.lower()}" if dot else NO_EXTENSION
        self._counts[kind] = self._counts.get(kind, 0) + 1
        self._firsts.setdefault(kind, name)

    def remove(self, kind: str, count: int) -> None:
        """Takes `count` entries of a kind out: they have been read after all."""
        self._counts[kind] -= count
        if not self._counts[kind]:
            del self._counts[kind]

    def count(self, kind: str) -> int:
        """The number of entries of a kind."""
        return self._counts.get(kind, 0)

    def __bool__(self) -> bool:
        return bool(self._counts)

    def __str__(self) -> str:
        """The counts, as "2 .txt (first: notes.txt), 1 .heic (first: a.heic; pip install ...)"."""
        parts = []
        for kind, count in sorted(self._counts.items(), key=lambda item: (-item[1], item[0])):
            said = f"first: {printable(self._firsts[kind])}"
            if needed := hint(kind.removeprefix(".")):
                said += f"; {needed}"
            parts.append(f"{count} {kind} ({said})")
        return ", ".join(parts)
