"""The picture of a solution: how intervals closed over time."""

from __future__ import annotations

import os
from typing import Any

from layerbounds.problems.rows import rows_text
from layerbounds.report.figures import check_plot, new_figure, save_figure
from layerbounds.solution import Solution

#: More channels than that are not named one by one.
NAMED = 12


def plot_trace(solution: Solution, path: str | os.PathLike[str]) -> None:
    """Draw how the interval of each channel, or set of channels, closed over time, into a file.

    Parameters
    ----------
    solution : Solution
    path : path-like
        Ends in .svg, .png or .pdf.
    """
    check_plot(path)
    save_figure(trace_figure(solution), path)


def trace_figure(solution: Solution) -> Any:
    """The picture of how the interval of each channel, or set of channels, closed over time.

    Lower bounds are solid and upper bounds dashed, both relative to the best error found; a key says so. Channels that
    are too many to be named have no names.

    Parameters
    ----------
    solution : Solution

    Returns
    -------
    matplotlib.figure.Figure
    """
    from matplotlib.lines import Line2D

    figure, axes = new_figure(7.6, 4.2, 1)
    drawn: list[Any] = []
    top = 1.0
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
        drawn += axes.step(times, lower, where="post", color=color, linewidth=1.4, label=label)
        axes.step(times, upper, where="post", color=color, linewidth=1.2, linestyle=(0, (3, 2)))
        top = max(top, *(u for u in upper if u < float("inf")))
    axes.set_xscale("log")
    axes.set_xlabel("seconds of search")
    claimed = "" if solution.certified_trace else f" (lower bounds of the trace: claims of {solution.backend})"
    axes.set_ylabel("bound / best error found")
    axes.set_title(f"{solution.problem.layer.name}: {solution.problem.label}{claimed}", fontsize=10)
    axes.set_ylim(0.0, 1.06 * top)
    axes.grid(alpha=0.3)
    proven = "lower bound" if solution.certified_trace else "claimed lower bound"
    handles = [
        Line2D([], [], color="0.45", linewidth=1.4, label=f"{proven}: nothing is better"),
        Line2D([], [], color="0.45", linewidth=1.2, linestyle=(0, (3, 2)), label="upper bound: weights that are known"),
    ]
    handles += drawn if len(drawn) <= NAMED else []
    figure.legend(handles=handles, fontsize=8, loc="outside right upper", frameon=False)
    return figure
