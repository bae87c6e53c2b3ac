"""Chart of scores against the value that a sweep varies."""

import os
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from uvit_jax.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _GREY, _BLUE, _TEAL = "#222222", "#888888", "#1f5fa8", "#2a8a7f"
# An axis is logarithmic where its values, all above 0, span more than this.
_LOG_SPAN = 20
# Scores without a standard deviation count as different if they differ by more than this share.
_SHARE = 0.005


def sweep_chart(
    axis: str,
    values: Sequence[float | int],
    series: Mapping[str, Sequence[float | int]],
    path: str | os.PathLike[str],
    *,
    title: str,
    distances: Collection[str] = (),
    deviations: Mapping[str, Sequence[float | int]] | None = None,
) -> None:
    """Writes a PNG with one panel per score, one below another, against the swept values.

    If a score's values differ clearly, the best is marked and written above the panel. The file
    appears whole or not at all.

    Args:
      axis: name of the swept value.
      values: the swept values.
      series: scores by name, one for each value.
      title: small text above the panels.
      distances: names of the scores of which less is better.
      deviations: standard deviations by the names of their scores, drawn as a band. Values differ
        clearly if they differ by more than the largest of these, or, without any, by more than
        0.5 % of their size.

    Raises:
      UserError: the folder can't be made or written to.
    """
    from matplotlib.figure import Figure  # imported late: 0.4 s, for processes that draw only
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

    order = np.argsort(values, kind="stable")
    x, deviations = np.asarray(values, float)[order], deviations or {}
    figure = Figure(
        figsize=(7, 1.0 + 1.8 * len(series)),
        dpi=120,
        layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08),
    )
    panels = np.atleast_1d(figure.subplots(len(series), 1, sharex=True))
    for panel, (name, scores) in zip(panels, series.items(), strict=True):
        deviation = np.asarray(deviations[name], float)[order] if name in deviations else None
        _draw(panel, x, np.asarray(scores, float)[order], deviation, is_distance=name in distances)
        panel.set_title(name.replace("_", " "), loc="left", fontsize=10, color=_INK)
    if _is_wide(x):
        panels[-1].set_xscale("log")
        panels[-1].xaxis.set_minor_formatter(NullFormatter())
    elif (x == x.round()).all():
        panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    panels[-1].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    panels[-1].set_xlabel(axis)
    figure.suptitle(title, x=0.99, ha="right", fontsize=9, color=_GREY)
    with atomic_write(path) as file:
        figure.savefig(file, format="png")


def _draw(
    panel: "Axes", x: np.ndarray, y: np.ndarray, deviation: np.ndarray | None, *, is_distance: bool
) -> None:
    """Draws one score and its band of deviations; marks the best value if it differs clearly."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    color, word = (_BLUE, "least") if is_distance else (_TEAL, "greatest")
    panel.plot(x, y, color=color, marker="o", markersize=4, linewidth=1.6)
    panel.margins(y=0.15)
    panel.ticklabel_format(axis="y", style="plain", useOffset=False)
    difference = _SHARE * np.abs(y).max()
    if deviation is not None:
        panel.fill_between(x, y - deviation, y + deviation, color=color, alpha=0.12, linewidth=0)
        difference = deviation.max()
    if np.ptp(y) > difference:
        best = int(np.argmin(y) if is_distance else np.argmax(y))
        panel.plot(x[best], y[best], marker="o", markersize=11, fillstyle="none", color=color)
        note = f"{word} {y[best]:.4g} at {x[best]:,.10g}"
        if _is_wide(y):
            panel.set_yscale("log")
            panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=6))
            panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            panel.yaxis.set_minor_locator(NullLocator())
    else:
        if difference:  # Values that do not differ clearly are drawn flat.
            panel.set_ylim(y.min() - 2 * difference, y.max() + 2 * difference)
        ends = [f"{end:.4g}" for end in (y.min(), y.max())]
        note = (
            f"{ends[0]} throughout"
            if len(set(ends)) == 1
            else f"{' to '.join(ends)}, too close to tell"
        )
    panel.set_title(note, loc="right", fontsize=10, color=color)
    panel.grid(color="#e8e8e8", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(colors=_INK)


def _is_wide(values: np.ndarray) -> bool:
    return bool(values.min() > 0 and values.max() / values.min() > _LOG_SPAN)
