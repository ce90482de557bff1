"""Pictures; they need the `plot` extra."""

from __future__ import annotations

import os
from typing import Any

from layerbounds.exceptions import InputError, MissingExtraError
from layerbounds.layers.files import atomic_path
from layerbounds.problems.rows import rows_text
from layerbounds.solution import Solution

_FORMATS = ("svg", "png", "pdf")


def _figure_class() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("plots need matplotlib; run: pip install 'layerbounds[plot]'") from error
    return Figure


def check_plot(path: str | os.PathLike[str]) -> None:
    """Raise before anything is computed if a plot cannot be drawn or its format is unknown."""
    _figure_class()
    if os.fspath(path).rsplit(".", 1)[-1].lower() not in _FORMATS:
        raise InputError(f"cannot plot to {os.fspath(path)}; choose a name that ends in .svg, .png or .pdf.")


def plot_trace(solution: Solution, path: str | os.PathLike[str]) -> None:
    """Draw how the interval of each channel, or set of channels, closed over time.

    Parameters
    ----------
    solution : Solution
    path : path-like
        Ends in .svg, .png or .pdf.
    """
    check_plot(path)
    figure = _figure_class()(figsize=(7.0, 4.2), layout="constrained")
    axes = figure.subplots()
    for row, channels in enumerate(solution.sets):
        trace = solution.trace[row]
        if not trace or solution.upper_bound[row] <= 0:
            continue
        best = float(solution.upper_bound[row])
        end = max(float(solution.seconds[row]), trace[-1].seconds)
        times = [max(p.seconds, 1e-3) for p in trace] + [max(end, 1e-3)]
        lower = [p.lower / best for p in trace] + [float(solution.lower_bound[row]) / best]
        upper = [p.upper / best for p in trace] + [1.0]
        color = f"C{row % 10}"
        label = f"channel{'' if len(channels) == 1 else 's'} {rows_text(channels)}"
        axes.step(times, lower, where="post", color=color, linewidth=1.2, label=label)
        axes.step(times, upper, where="post", color=color, linewidth=1.2, linestyle="--")
    axes.set_xscale("log")
    axes.set_xlabel("seconds of search")
    claimed = "" if solution.certified_trace else f" (lower bounds of the trace: claims of {solution.backend})"
    axes.set_ylabel("bound / best error found")
    axes.set_title(f"{solution.problem.layer.name}: {solution.problem.label}{claimed}", fontsize=10)
    axes.set_ylim(bottom=0.0)
    axes.grid(alpha=0.3)
    if 0 < len(solution.sets) <= 12:
        axes.legend(fontsize=8)
    suffix = os.fspath(path).rsplit(".", 1)[-1].lower()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=suffix)
