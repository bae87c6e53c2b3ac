"""Amounts as text: bytes, seconds, hours and shares in a unit that suits their size."""

from collections.abc import Sequence

GiB, MiB = 2**30, 2**20


def byte_unit(*sizes: int | None) -> tuple[str, int]:
    """Returns the unit for these sizes and its bytes: GiB, or MiB if all of them are below one."""
    known = [size for size in sizes if size is not None]
    return ("MiB", MiB) if known and max(known) < GiB else ("GiB", GiB)


def in_bytes(size: int | None) -> str:
    """Formats a size as "11.20 GiB"."""
    if size is None:
        return "an unknown number of GiB"
    unit, scale = byte_unit(size)
    return f"{size / scale:.2f} {unit}"


def in_hours(hours: float, per: str = "") -> str:
    """Formats a time as "5.64 hours", below 0.1 hours in minutes, below a minute in seconds.

    per: goes before the unit, as "chip-".
    """
    if hours >= 0.1:
        return f"{number(hours)} {per}hours"
    minutes = 60 * hours
    return (
        f"{number(minutes)} {per}minutes"
        if minutes >= 1
        else f"{number(3600 * hours)} {per}seconds"
    )


def in_seconds(seconds: float | int) -> str:
    """Formats a time as "12.3 s", below a second in ms."""
    return f"{in_ms(seconds)} ms" if seconds < 1 else f"{number(seconds)} s"


def in_ms(seconds: float | int) -> str:
    """Formats a time in milliseconds, without the unit."""
    return number(1e3 * seconds)


def number(value: float | int) -> str:
    """Formats a number with three digits, or all those of a whole number."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def percent(share: float) -> str:
    """Formats a share of 1 as "41%", below 9.5 % with a decimal."""
    return f"{share:.0%}" if share >= 0.095 else f"{share:.1%}"


def rows(title: str, cells: Sequence[tuple[str, str, str]]) -> str:
    """Aligns rows of (name, amount, note) under a title."""
    first, second = (max(len(row[i]) for row in cells) for i in (0, 1))
    lines = (
        f"  {name:<{first}}  {value:>{second}}  {note}".rstrip() for name, value, note in cells
    )
    return "\n".join((title, *lines))
