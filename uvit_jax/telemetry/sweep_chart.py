"""Scores against the value that was swept, drawn as a chart."""

import os
from collections.abc import Mapping, Sequence

import numpy as np

from uvit_jax.telemetry.atomic import atomic_write

_BLUE, _TEAL, _GREY = "#1f5fa8", "#2a8a7f", "#888888"


def sweep_chart(
    axis: str,
    values: Sequence[float],
    series: Mapping[str, Sequence[float]],
    path: str | os.PathLike[str],
    *,
    title: str,
) -> None:
    """Writes a PNG with one panel a score, one below another, all against the swept values; the file appears whole or
    not at all.

    Args:
      axis: what the values are.
      values: swept.
      series: scores by name, one for each value; the first, a distance, has its least value marked.

    Raises:
      UserError: the folder can't be made or written to.
    """
    from matplotlib.figure import Figure  # 0.4 s that processes which draw nothing don't pay

    order = np.argsort(values, kind="stable")
    x = np.asarray(values, float)[order]
    figure = Figure(figsize=(7, 1.4 + 1.9 * len(series)), dpi=120, layout="constrained")
    panels = np.atleast_1d(figure.subplots(len(series), 1, sharex=True))
    for number, (panel, (name, scores)) in enumerate(zip(panels, series.items(), strict=True)):
        y = np.asarray(scores, float)[order]
        panel.plot(x, y, color=_TEAL if number else _BLUE, marker="o", markersize=4, linewidth=1.6)
        if number == 0:
            least = int(np.argmin(y))
            panel.plot(x[least], y[least], marker="o", markersize=11, fillstyle="none", color=_BLUE)
            panel.annotate(
                f"{y[least]:.4g} at {x[least]:g}",
                (x[least], y[least]),
                xytext=(0, 12),
                textcoords="offset points",
                ha="center",
                color=_BLUE,
            )
            panel.margins(y=0.25)
        panel.set_ylabel(name.replace("_", " "))
        panel.grid(color="#e8e8e8", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_title(title, loc="left", fontsize=10, color=_GREY)
    panels[-1].set_xlabel(axis)
    with atomic_write(path) as file:
        figure.savefig(file, format="png")
