"""Pictures of certified intervals: of the channels of a solution, and of the layers of a run."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from layerbounds.arrays import Float
from layerbounds.exceptions import InputError
from layerbounds.network.result import NetworkRun
from layerbounds.network.table import relative
from layerbounds.problems.rows import rows_text
from layerbounds.proofs import Status
from layerbounds.report.figures import EQUAL, QUANTIZATION, new_figure
from layerbounds.solution import Solution

#: More sets of channels have ticks at some of them.
NAMED = 24
#: So far down a logarithmic axis goes below the smallest number where lower ends are 0.
_ROOM = 10.0
#: Inches of a bar, and of pictures of many layers at most.
_BAR, _TALLEST = 0.16, 60.0


def solution_figure(solution: Solution) -> Any:
    """The certified interval of each channel, or set of channels, relative to f(0).

    A vertical line goes from the lower to the upper end, and a point is at the error of the weights that were found;
    optima that are proven are points of another colour. A line without a lower end leaves the picture.

    Parameters
    ----------
    solution : Solution

    Returns
    -------
    matplotlib.figure.Figure
    """
    spans = 100.0 * np.stack([solution.relative_lower_bound, solution.relative_upper_bound], axis=1)
    drawn = np.isfinite(spans[:, 1])
    if not drawn.any():
        raise InputError("no channel has any energy, so that there are no relative errors to draw.")
    count = len(solution.sets)
    figure, axes = new_figure(min(max(5.6, 2.0 + 0.12 * count), 16.0), 4.2, 1)
    proven = np.array([status == Status.OPTIMAL for status in solution.status])
    bottom = _logarithmic(axes.set_yscale, axes.set_ylim, spans[drawn])
    places = np.arange(count)
    for chosen, colour, label in (
        (drawn & ~proven, QUANTIZATION, "certified interval, and the best weights known"),
        (drawn & proven, EQUAL, "proven optimal"),
    ):
        if chosen.any():
            axes.vlines(
                places[chosen], np.maximum(spans[chosen, 0], bottom), spans[chosen, 1], colors=colour, linewidth=2.4
            )
            axes.plot(places[chosen], spans[chosen, 1], "o", color=colour, markersize=4, label=label)
    step = math.ceil(count / NAMED)
    axes.set_xticks(places[::step], [rows_text(rows) for rows in solution.sets[::step]], fontsize=8)
    axes.set_xlim(-0.6, count - 0.4)
    several = any(len(rows) > 1 for rows in solution.sets)
    axes.set_xlabel("output channels" if several else "output channel")
    axes.set_ylabel("error, % of f(0)")
    _finish(axes, f"{solution.problem.layer.name}: {solution.problem.label}", "y")
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(0.0, -0.16), ncols=2, borderaxespad=0.0, frameon=False)
    return figure


def run_figure(run: NetworkRun) -> Any:
    """The certified intervals of all layers of a run, a bar for each compression.

    Parameters
    ----------
    run : NetworkRun

    Returns
    -------
    matplotlib.figure.Figure
    """
    spans = {
        entry.number: span for entry in run.entries for span in [relative(entry)] if entry.refused is None and span
    }
    known = {number: span for number, span in spans.items() if math.isfinite(span[1])}
    if not known:
        raise InputError("the run has no bounds yet; let it go on before it is drawn.")
    layers, choices = run.layers, run.choices
    bars = len(layers) * (len(choices) + 1)
    figure, axes = new_figure(8.0, min(1.4 + _BAR * bars, _TALLEST), 1)
    values = 100.0 * np.array(list(known.values()))
    bottom = _logarithmic(axes.set_xscale, axes.set_xlim, values)
    height = 1.0 / (len(choices) + 1)
    for place, choice in enumerate(choices):
        own = [(number[0], *span) for number, span in known.items() if number[1] == place]
        rows = [layer + (place - (len(choices) - 1) / 2) * height for layer, _, _ in own]
        left = [max(100.0 * low, bottom) for _, low, _ in own]
        # An optimum that is known is as wide as the bar's edge.
        width = [max(100.0 * high - start, 0.0) for (_, _, high), start in zip(own, left, strict=True)]
        colour = f"C{place % 10}"
        axes.barh(rows, width, 0.8 * height, left, color=colour, edgecolor=colour, linewidth=1.6, label=choice.name)
    axes.set_yticks(range(len(layers)), [layer.name for layer in layers], fontsize=8)
    axes.set_ylim(len(layers) - 0.5, -0.5)
    axes.set_xlabel("error, % of f(0)")
    _finish(axes, "certified intervals of the smallest error", "x")
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0, frameon=False)
    return figure


def _logarithmic(scale: Any, limits: Any, spans: Float) -> float:
    """A logarithmic axis for intervals; returns where it begins, which is where ends at 0 are drawn."""
    positive = spans[(spans > 0) & np.isfinite(spans)]
    if not positive.size:
        limits(0.0, 1.0)
        return 0.0
    low, high = float(positive.min()), float(positive.max())
    bottom = low / (_ROOM if np.any(spans <= 0) else 1.25)
    scale("log")
    limits(bottom, 1.25 * high)
    return bottom


def _finish(axes: Any, title: str, along: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.grid(axis=along, which="both", alpha=0.25)
    axes.set_axisbelow(True)
    axis = axes.xaxis if along == "x" else axes.yaxis
    low, high = axes.get_xlim() if along == "x" else axes.get_ylim()
    axis.set_major_formatter("{x:g}")
    # Between close powers of ten there is room for more numbers, and there may be no power at all.
    if low > 0 and high / low < 100.0:
        from matplotlib.ticker import LogLocator

        axis.set_minor_locator(LogLocator(subs=range(2, 10) if high / low < 5.0 else (2, 5)))
        axis.set_minor_formatter("{x:g}")
