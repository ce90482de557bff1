"""The picture of all weight tensors of a model, after figure 3 of Kuzmin et al. (NeurIPS 2023)."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from layerbounds.report.figures import BITS, check_plot, new_figure, save_figure
from layerbounds.theory.tensors import TensorRow

#: From here on points are drawn as an image inside the figure, so that files stay small.
MANY = 500
#: Kurtosis below this is drawn on a linear scale.
LINEAR = 1.0
#: Powers of ten that have room on the axis of kurtosis.
MOST_POWERS = 4


def plot_tensors(rows: Sequence[TensorRow], path: str | os.PathLike[str], title: str) -> None:
    """Draw pruning against quantization SNR of every tensor, and their difference against kurtosis, into a file.

    Parameters
    ----------
    rows : sequence of TensorRow
    path : path-like
        Ends in .svg, .png or .pdf.
    title : str
    """
    check_plot(path)
    save_figure(tensors_figure(rows, title), path)


def tensors_figure(rows: Sequence[TensorRow], title: str) -> Any:
    """The picture of pruning against quantization SNR of every tensor, and of their difference against kurtosis.

    Infinite and undefined ratios are left out of the picture, and their number is given.

    Parameters
    ----------
    rows : sequence of TensorRow
    title : str

    Returns
    -------
    matplotlib.figure.Figure
    """
    table = np.array([[r.bits, r.quantization_sqnr_db, r.pruning_sqnr_db, r.excess_kurtosis] for r in rows])
    table = table.reshape(-1, 4)
    finite = np.isfinite(table[:, 1]) & np.isfinite(table[:, 2])
    drawn = table[finite]
    many = len(drawn) > MANY
    size, alpha = (7.0, 0.35) if many else (16.0, 0.8)
    edge = max(10.0, 1.05 * float(drawn[:, 1:3].max(initial=0.0)))

    figure, (left, right) = new_figure(10.0, 4.6, 2)
    for b in sorted({int(v) for v in table[:, 0]}, reverse=True):
        own = drawn[drawn[:, 0] == b]
        label = f"INT{b} vs {100 - 100 * b / 16:g} % sparsity"
        style = {"color": BITS[b], "s": size, "alpha": alpha, "linewidths": 0, "rasterized": many}
        left.scatter(own[:, 1], own[:, 2], **style)
        left.scatter([], [], color=BITS[b], s=24, label=label)
        known = own[np.isfinite(own[:, 3])]
        right.scatter(known[:, 3], known[:, 1] - known[:, 2], **style)
    left.plot([0, edge], [0, edge], color="grey", linestyle="--", linewidth=1.0)
    left.set_xlim(0, edge)
    left.set_aspect("equal")
    ticks = range(0, int(edge) + 1, 10 if edge > 25.0 else 5)
    left.set_xticks(ticks)
    left.set_yticks(ticks)
    left.set_xlim(0, edge)
    left.set_ylim(0, edge)
    left.set_xlabel("quantization SNR, dB")
    left.set_ylabel("pruning SNR, dB")
    left.legend(fontsize=7, loc="upper left")
    missing = int(np.count_nonzero(~finite))
    left.set_title(title + (f" (not drawn: {missing} infinite)" if missing else ""), fontsize=8)
    right.axhline(0.0, color="grey", linestyle="--", linewidth=1.0)
    right.set_xscale("symlog", linthresh=LINEAR)
    finite_kurtosis = drawn[np.isfinite(drawn[:, 3]), 3]
    _label_symlog(right, float(finite_kurtosis.min(initial=0.0)), float(finite_kurtosis.max(initial=LINEAR)))
    right.set_xlabel("excess kurtosis")
    right.set_ylabel("quantization SNR − pruning SNR, dB")
    bottom, top = right.get_ylim()
    right.set_ylim(min(bottom, -0.12 * top), top)
    right.annotate(
        "pruning is better below 0", (0.98, 0.03), xycoords="axes fraction", ha="right", fontsize=8, color="dimgrey"
    )
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return figure


def _label_symlog(axes: Any, low: float, high: float) -> None:
    """Numbers at 0, at the ends of the linear part, and at as many larger ones as have room."""
    count = max(1, math.ceil(math.log10(max(high, LINEAR))))
    powers = [10.0**power for power in range(1, count + 1)]
    if count <= MOST_POWERS // 2:
        larger = [factor * power / 10.0 for power in powers for factor in (2.0, 5.0, 10.0)]
    else:
        larger = powers[:: math.ceil(count / MOST_POWERS)]
    places = [-LINEAR] * (low < -LINEAR / 2) + [0.0, LINEAR, *larger]
    axes.set_xticks(places, [_number(place) for place in places])
    axes.set_xticks([], minor=True)


def _number(value: float) -> str:
    if value >= 1e5:
        return f"$10^{{{math.log10(value):.0f}}}$"
    return f"{value:,.0f}".replace(",", " ").replace("-", "−")
