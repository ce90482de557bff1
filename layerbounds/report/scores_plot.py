"""The picture of a scored checkpoint: for each layer, between which two figures its distance from optimal lies."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from layerbounds.exceptions import InputError
from layerbounds.report.figures import check_plot, new_figure, save_figure
from layerbounds.scoring.records import MISMATCH, LayerScore, Scores, Standing

#: The layer's own grid, and any scales (Okabe & Ito).
_OWN, _FREE = "#0072B2", "#D55E00"
#: Ratios are drawn to so many times the optimum; what goes on is an arrow.
_FARTHEST = 1e4


def plot_scores(scores: Scores, path: str | os.PathLike[str]) -> None:
    """Draw a bar for each layer, and a second one where scales were left free, over error / least error.

    A bar goes from the ratio that is certain to the ratio that is possible; the optimum is at 1. Where nothing is known
    from below it has no right end.

    Parameters
    ----------
    scores : Scores
    path : path-like
        Ends in .svg, .png or .pdf.
    """
    check_plot(path)
    save_figure(scores_figure(scores), path)


def scores_figure(scores: Scores) -> Any:
    """The picture of scores, as `plot_scores` writes it.

    Parameters
    ----------
    scores : Scores

    Returns
    -------
    matplotlib.figure.Figure
    """
    if not len(scores):
        raise InputError("there are no scores to plot; score at least one layer first.")
    count = len(scores)
    figure, axes = new_figure(8.0, 1.6 + 0.34 * count, 1)
    free = any(score.free is not None for score in scores)
    farthest = min(max([10.0, *(1.3 * end for score in scores for end in _ends(score))]), _FARTHEST)
    for row, score in enumerate(scores):
        if score.status == MISMATCH:
            axes.text(1.02, row, MISMATCH, va="center", fontsize=8, color="0.35")
            continue
        for standing, color, shift in ((score.own, _OWN, -0.16), (score.free, _FREE, 0.16)):
            if standing is not None:
                _bar(axes, standing, row + (shift if free else 0.0), color, farthest, 0.26 if free else 0.5)
    for color, label in ((_OWN, "its own grid"), (_FREE, "any scales"))[: 1 + free]:
        axes.fill_between([], [], color=color, alpha=0.6, linewidth=0, label=label)
    axes.axvline(1.0, color="0.2", linewidth=0.8)
    axes.set_xscale("log", subs=(2, 5))
    for formatted in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        formatted("{x:g}")
    axes.set_xlim(0.97, farthest)
    axes.set_ylim(count - 0.4, -0.6)
    axes.set_yticks(range(count), [score.layer for score in scores], fontsize=8)
    axes.set_xlabel("error / least error (1: optimal)")
    path_of = Path(scores.checkpoint)
    # Files in folders of models have all the same name.
    axes.set_title(f"{path_of.name if path_of.suffix == '.gguf' else path_of.parent.name}: {scores.label}", fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0, frameon=False)
    return figure


def _ends(score: LayerScore) -> list[float]:
    """The ratios that a layer's bars end at."""
    ends = []
    for standing in (score.own, score.free):
        if standing is not None:
            most, least = standing.distance.at_most, standing.distance.at_least
            ends.append(1.0 + (least if most is None else most) / 100.0)
    return ends


def _bar(axes: Any, standing: Standing, place: float, color: str, farthest: float, height: float) -> None:
    low = 1.0 + standing.distance.at_least / 100.0
    most = standing.distance.at_most
    open_end = standing.trivial or most is None or 1.0 + most / 100.0 > farthest
    high = farthest if open_end else 1.0 + (most or 0.0) / 100.0
    axes.barh(place, high - low, left=low, height=height, color=color, alpha=0.3 if open_end else 0.6)
    axes.plot([low, low], [place - height / 2, place + height / 2], color=color, linewidth=1.4)
    if not open_end:
        axes.plot([high, high], [place - height / 2, place + height / 2], color=color, linewidth=1.4)
