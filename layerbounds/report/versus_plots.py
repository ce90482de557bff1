"""Pictures of quantization against pruning; they need the `plot` extra."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

from layerbounds.contests.levels import Comparison, Level
from layerbounds.contests.verdict import Verdict
from layerbounds.report.figures import BITS, EQUAL, OPEN, PRUNING, QUANTIZATION, new_figure, save_figure

_COLOUR = {
    Verdict.QUANTIZATION: QUANTIZATION,
    Verdict.PRUNING: PRUNING,
    Verdict.EQUAL: EQUAL,
    Verdict.OPEN: OPEN,
}


def plot_comparison(comparison: Comparison, path: str | os.PathLike[str]) -> None:
    """Certified SNR intervals of both methods against compression, for one layer.

    Parameters
    ----------
    comparison : Comparison
    path : path-like
        Ends in .svg, .png or .pdf.
    """
    save_figure(comparison_figure(comparison), path)


def comparison_figure(comparison: Comparison) -> Any:
    """The picture of both methods of one layer, as `plot_comparison` writes it.

    Parameters
    ----------
    comparison : Comparison

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, axes = new_figure(6.4, 4.0, 1)
    spans = [(_decibels(level, 0), _decibels(level, 1)) for level in comparison.levels]
    finite = [v for pair in spans for span in pair for v in span if math.isfinite(v)]
    top = 1.08 * max(finite, default=10.0)
    for index, (level, pair) in enumerate(zip(comparison.levels, spans, strict=True)):
        for side, (span, colour) in enumerate(zip(pair, (QUANTIZATION, PRUNING), strict=True)):
            low, high = span
            if math.isnan(low):
                continue
            position = index + (-0.19, 0.19)[side]
            # An interval without an upper end in dB (lower bound 0) is drawn to the edge.
            axes.bar(position, min(high, top * 1.1) - low, 0.34, low, color=colour, alpha=0.85, edgecolor=colour)
        axes.annotate(
            str(level.verdict), (index, 0.0), xytext=(0, 4), textcoords="offset points", ha="center", fontsize=7
        )
    axes.bar(0, 0, color=QUANTIZATION, label="quantization, certified interval")
    axes.bar(0, 0, color=PRUNING, label="pruning, certified interval")
    axes.set_ylim(min(0.0, *finite) if finite else 0.0, top)
    _compressions(axes, comparison.levels)
    axes.set_ylabel("SNR of the layer's output, dB")
    part = f" ({len(comparison.channels)} of {comparison.out_features} channels)" if comparison.sampled else ""
    axes.set_title(f"{comparison.layer}{part}", fontsize=10)
    axes.legend(fontsize=8, loc="upper left")
    axes.grid(axis="y", alpha=0.3)
    return figure


def plot_network(comparisons: Sequence[Comparison], path: str | os.PathLike[str]) -> None:
    """Verdicts of all channels against compression, and both intervals of each layer against each other.

    Parameters
    ----------
    comparisons : sequence of Comparison
        With the same compressions.
    path : path-like
        Ends in .svg, .png or .pdf.
    """
    figure, (left, right) = new_figure(10.0, 4.4, 2)
    levels = comparisons[0].levels
    _stack(left, comparisons)
    _compressions(left, levels)
    left.set_ylabel("share of the channels, %")
    left.set_title("certified verdicts", fontsize=10)
    edge = 10.0
    for index, level in reversed(list(enumerate(levels))):
        label: str | None = f"INT{level.bits} vs {100 * (1 - level.density):.4g} % sparsity"
        for comparison in comparisons:
            spans = [_decibels(comparison.levels[index], side) for side in (0, 1)]
            if not all(math.isfinite(v) for span in spans for v in span):
                continue
            (q_low, q_high), (p_low, p_high) = spans
            centre = (q_low + q_high) / 2, (p_low + p_high) / 2
            size = (q_high - q_low) / 2, (p_high - p_low) / 2
            right.errorbar(
                *centre, xerr=size[0], yerr=size[1], color=BITS[level.bits], linewidth=1.3, label=label, fmt="none"
            )
            label = None
            edge = max(edge, q_high, p_high)
    right.plot([0, 1.05 * edge], [0, 1.05 * edge], color="grey", linestyle="--", linewidth=1.0)
    right.set_xlim(0, 1.05 * edge)
    right.set_ylim(0, 1.05 * edge)
    right.set_aspect("equal")
    right.set_xlabel("quantization SNR, dB")
    right.set_ylabel("pruning SNR, dB")
    right.set_title("certified intervals, one cross for each layer", fontsize=10)
    right.legend(fontsize=8, loc="upper left")
    right.grid(alpha=0.3)
    save_figure(figure, path)


def _stack(axes: Any, comparisons: Sequence[Comparison]) -> None:
    """Stacked shares of the verdicts, one bar for each compression."""
    total = sum(len(c.channels) for c in comparisons)
    for index in range(len(comparisons[0].levels)):
        verdicts = [v for c in comparisons for v in c.levels[index].verdicts]
        bottom = 0.0
        for verdict, colour in _COLOUR.items():
            share = 100.0 * sum(v == verdict for v in verdicts) / total
            if share > 0:
                axes.bar(index, share, 0.7, bottom, color=colour)
                if share >= 6:
                    axes.text(
                        index, bottom + share / 2, f"{share:.0f}", ha="center", va="center", color="white", fontsize=8
                    )
            bottom += share
    present = {v for c in comparisons for level in c.levels for v in level.verdicts}
    names = {
        Verdict.QUANTIZATION: "quantization better",
        Verdict.PRUNING: "pruning better",
        Verdict.EQUAL: "equal",
        Verdict.OPEN: "open",
    }
    for verdict, colour in _COLOUR.items():
        if verdict in present:
            axes.bar(0, 0, color=colour, label=names[verdict])
    axes.set_ylim(0, 100)
    axes.legend(fontsize=8, loc="lower right", framealpha=1.0)


def _compressions(axes: Any, levels: Sequence[Level]) -> None:
    labels = [f"{level.bits}\n{100 * (1 - level.density):.4g} %" for level in levels]
    axes.set_xticks(range(len(levels)), labels, fontsize=8)
    axes.set_xlabel("bits per weight; sparsity at equal bits")


def _decibels(level: Level, side: int) -> tuple[float, float]:
    """Interval of the SNR of the summed channels: NaN where undefined, infinite where the lower bound is 0."""
    low, high = level.totals[side]
    energy = math.fsum(level.energy)
    if not energy > 0 or not math.isfinite(high) or high == 0:
        return math.nan, math.nan
    return -10.0 * math.log10(high / energy), -10.0 * math.log10(low / energy) if low > 0 else math.inf
