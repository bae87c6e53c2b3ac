"""Chart of a run's loss, drawn from its metrics."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from uvit_jax.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _GREY, _BLUE, _TEAL = "#222222", "#888888", "#1f5fa8", "#2a8a7f"


def loss_curve(metrics: Sequence[dict], path: str | os.PathLike[str]) -> None:
    """Writes a PNG of loss against step, and of images/s below it if logged.

    Raw values are light, their running mean is dark. The loss axis is logarithmic if the running
    mean spans more than a factor of four. No global state of pyplot is used, so this needs no
    display and can run beside other plots. The file appears whole or not at all.

    metrics: lines as `read_metrics` returns them; those without a number are left out.

    Raises:
      UserError: the folder can't be made or written to.
    """
    from matplotlib.figure import Figure  # imported late: 0.4 s, for processes that draw only
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    losses, rates = _series(metrics, "loss"), _series(metrics, "images_per_sec")
    figure = Figure(
        figsize=(8, 5 if len(rates) > 1 else 4.2),
        dpi=120,
        layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1),
    )
    if len(rates) > 1:
        axes, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        lower.plot(rates[:, 0], rates[:, 1], color=_TEAL, linewidth=1.2)
        lower.set_ylim(bottom=0, top=1.15 * rates[:, 1].max() or 1)
        lower.set_ylabel("images/s")
        lower.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    else:
        axes = lower = figure.subplots()

    _draw_loss(axes, losses)
    axes.set_ylabel("loss")
    lower.set_xlabel("step")
    lower.xaxis.set_major_locator(
        MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)
    )
    lower.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    for panel in {axes, lower}:
        panel.grid(color="#e8e8e8", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(colors=_INK)
    figure.align_ylabels()
    with atomic_write(path) as file:
        figure.savefig(file, format="png")


def _draw_loss(axes: "Axes", losses: Float[np.ndarray, "n 2"]) -> None:
    """Draws (step, loss) light under their running mean, whose last value is written beside it."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    if len(losses) == 0:
        axes.text(
            0.5, 0.5, "no loss was logged", transform=axes.transAxes, ha="center", color=_GREY
        )
        return
    steps, mean = losses[:, 0], _running_mean(losses[:, 1])
    axes.plot(
        steps,
        losses[:, 1],
        color=_BLUE,
        alpha=0.3,
        linewidth=1,
        marker="." if len(losses) == 1 else None,
    )
    axes.plot(steps, mean, color=_BLUE, linewidth=2)
    axes.annotate(
        f"{mean[-1]:.3g}",
        (steps[-1], mean[-1]),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
        color=_BLUE,
    )
    if losses[:, 1].min() > 0 and mean.max() / mean.min() > 4:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _series(metrics: Sequence[dict], key: str) -> Float[np.ndarray, "n 2"]:
    """Returns (step, value) of the lines that have a number under `key`."""
    points = [
        (line["step"], line[key])
        for line in metrics
        if line.get(key) is not None and "step" in line
    ]
    return np.asarray(points, dtype=np.float64).reshape(-1, 2)


def _running_mean(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Returns the mean over a window of a twentieth of the values, or of eleven if that is more.

    The window is centred, but narrower at the start, which is steep, and one-sided at the end,
    which is noisy.
    """
    n = len(values)
    index, reach = np.arange(n), max(n // 40, min(n // 8, 5))
    first, last = np.maximum(index - reach, 0), np.minimum(index + np.minimum(index, reach), n - 1)
    total = np.concatenate([[0.0], np.cumsum(values)])
    return (total[last + 1] - total[first]) / (last - first + 1)
