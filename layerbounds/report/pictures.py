"""The pictures that results draw of themselves: each kind of result with the function that draws it."""

from __future__ import annotations

import io
import os
import sys
from typing import Any

from layerbounds.comparison.records import MethodComparison
from layerbounds.contests.levels import Comparison
from layerbounds.contests.standings import Standings
from layerbounds.display import picture
from layerbounds.network.result import NetworkRun
from layerbounds.report.comparison_plot import comparison_figure
from layerbounds.report.figures import _figure_class, check_plot, save_figure
from layerbounds.report.intervals_plot import run_figure, solution_figure
from layerbounds.report.plots import trace_figure
from layerbounds.report.scores_plot import scores_figure
from layerbounds.report.standings_plot import standings_figure
from layerbounds.report.versus_plots import comparison_figure as versus_figure
from layerbounds.scoring.records import Scores
from layerbounds.solution import Solution

Path = str | os.PathLike[str] | None


@picture.register
def _(result: Solution, path: Path = None, kind: str = "intervals") -> Any:
    return finished(trace_figure if kind == "trace" else solution_figure, result, path)


@picture.register
def _(result: MethodComparison, path: Path = None) -> Any:
    return finished(comparison_figure, result, path)


@picture.register
def _(result: Comparison, path: Path = None) -> Any:
    return finished(versus_figure, result, path)


@picture.register
def _(result: Standings, path: Path = None) -> Any:
    return finished(standings_figure, [result], path)


@picture.register
def _(result: NetworkRun, path: Path = None) -> Any:
    return finished(run_figure, result, path)


@picture.register
def _(result: Scores, path: Path = None) -> Any:
    return finished(scores_figure, result, path)


def finished(draw: Any, result: Any, path: Path) -> Any:
    """Draw a result, write the picture if there is a path, and let notebooks show it.

    Parameters
    ----------
    draw : callable
        From the result to a figure.
    result
    path : path-like or None

    Returns
    -------
    matplotlib.figure.Figure
    """
    _let_notebooks_show(_figure_class())
    if path is not None:
        check_plot(path)
    figure = draw(result)
    if path is not None:
        save_figure(figure, path)
    return figure


def _let_notebooks_show(figure_class: type) -> None:
    """Tell IPython how figures look, unless it knows: matplotlib does so only once pyplot is in use."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    if shell is not None:
        formatter = shell.display_formatter.formatters["image/png"]
        if figure_class not in formatter.type_printers:
            formatter.for_type(figure_class, _png)


def _png(figure: Any) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=90)
    return stream.getvalue()
