"""Scores against the value that was swept, drawn as a chart."""

import os
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from uvit_jax.telemetry.atomic import atomic_write

_INK, _GREY, _BLUE, _TEAL = "#222222", "#888888", "#1f5fa8", "#2a8a7f"
# An axis is logarithmic where its values, all above 0, span more than this.
_LOG_SPAN = 20


def sweep_chart(
    axis: str,
    values: Sequence[float | int],
    series: Mapping[str, Sequence[float | int]],
    path: str | os.PathLike[str],
    *,
    title: str,
    distances: Collection[str] = (),
) -> None:
    """Writes a PNG with one panel a score, one below another, all against the swept values; the best value of each is
    marked and written above it. The file appears whole or not at all.

    Args:
      axis: what the values are.
      values: swept.
      series: scores by name, one for each value.
      distances: names of those scores that are better the less they are.

    Raises:
      UserError: the folder can't be made or written to.
    """
    from matplotlib.figure import Figure  # 0.4 s that processes which draw nothing don't pay
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    order = np.argsort(values, kind="stable")
    x = np.asarray(values, float)[order]
    figure = Figure(
        figsize=(7, 1.0 + 1.8 * len(series)), dpi=120, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08)
    )
    panels = np.atleast_1d(figure.subplots(len(series), 1, sharex=True))
    for panel, (name, scores) in zip(panels, series.items(), strict=True):
        y, is_distance = np.asarray(scores, float)[order], name in distances
        color, word = (_BLUE, "least") if is_distance else (_TEAL, "greatest")
        best = int(np.argmin(y) if is_distance else np.argmax(y))
        panel.plot(x, y, color=color, marker="o", markersize=4, linewidth=1.6)
        panel.plot(x[best], y[best], marker="o", markersize=11, fillstyle="none", color=color)
        panel.set_title(name.replace("_", " "), loc="left", fontsize=10, color=_INK)
        panel.set_title(f"{word} {y[best]:.4g} at {x[best]:,g}", loc="right", fontsize=10, color=color)
        panel.margins(y=0.15)
        if _is_wide(y):
            panel.set_yscale("log")
            panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=6))
            panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            panel.yaxis.set_minor_locator(NullLocator())
        panel.grid(color="#e8e8e8", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(colors=_INK)
    if _is_wide(x):
        panels[-1].set_xscale("log")
        panels[-1].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        panels[-1].xaxis.set_minor_formatter(NullFormatter())
    panels[-1].set_xlabel(axis)
    figure.suptitle(title, x=0.99, ha="right", fontsize=9, color=_GREY)
    with atomic_write(path) as file:
        figure.savefig(file, format="png")


def _is_wide(values: np.ndarray) -> bool:
    return bool(values.min() > 0 and values.max() / values.min() > _LOG_SPAN)
