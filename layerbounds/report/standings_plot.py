"""The picture of several contenders: certified SNR intervals against storage, or the shares of all verdicts."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

from layerbounds.contests.standings import Entrant, Rank, Standings, named_pairs, ranks_of
from layerbounds.report.figures import EQUAL, OPEN, PRUNING, QUANTIZATION, new_figure, save_figure

#: Of the palette of Okabe and Ito, as the other figures.
_FAMILY = {"quantization": QUANTIZATION, "pruning": PRUNING, "joint": "#CC79A7"}
_RANK = {Rank.BETTER: QUANTIZATION, Rank.WORSE: PRUNING, Rank.EQUAL: EQUAL, Rank.OPEN: OPEN}


def plot_standings(standings: Sequence[Standings], path: str | os.PathLike[str]) -> None:
    """Draw one layer's intervals by storage, or for several layers how many channels each pair is decided in.

    Parameters
    ----------
    standings : sequence of Standings
    path : path-like
        Ends in .svg, .png or .pdf.
    """
    save_figure(standings_figure(standings), path)


def standings_figure(standings: Sequence[Standings]) -> Any:
    """The picture of several contenders, as `plot_standings` writes it.

    Parameters
    ----------
    standings : sequence of Standings

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, axes = new_figure(7.2, 4.2, 1)
    if len(standings) == 1:
        _intervals(axes, standings[0])
    else:
        _shares(axes, standings)
    return figure


def _intervals(axes: Any, standings: Standings) -> None:
    energy = math.fsum(standings.energy)
    spans = [_decibels(entrant, energy) for entrant in standings.entrants]
    finite = [v for span in spans for v in span if math.isfinite(v)]
    top = 1.08 * max(finite, default=10.0)
    for index, (entrant, (low, high)) in enumerate(zip(standings.entrants, spans, strict=True)):
        colour = _FAMILY.get(entrant.family, OPEN)
        if not math.isnan(low):
            # An interval without an upper end in dB (lower bound 0) is drawn to the edge.
            axes.bar(index, min(high, 1.1 * top) - low, 0.6, low, color=colour, alpha=0.85, edgecolor=colour)
    for family in dict.fromkeys(entrant.family for entrant in standings.entrants):
        axes.bar(0, 0, color=_FAMILY.get(family, OPEN), label=f"{family}, certified interval")
    axes.set_ylim(min(0.0, *finite) if finite else 0.0, top)
    names = [entrant.name.replace(", ", "\n").replace(" + ", "\n+ ") for entrant in standings.entrants]
    labels = [f"{name}\n{entrant.storage:.4g} bits" for name, entrant in zip(names, standings.entrants, strict=True)]
    axes.set_xticks(range(len(labels)), labels, fontsize=8)
    axes.set_xlabel(f"bits per weight, mask: {standings.mask}")
    axes.set_ylabel("SNR of the layer's output, dB")
    part = f" ({len(standings.channels)} of {standings.out_features} channels)" if standings.sampled else ""
    axes.set_title(f"{standings.layer}{part}", fontsize=10)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0, frameon=False)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)


def _shares(axes: Any, standings: Sequence[Standings]) -> None:
    pairs = named_pairs(standings)
    for index, pair in enumerate(pairs):
        count: Counter[Rank] = Counter()
        for one in standings:
            found = ranks_of(one, pair)
            count.update(found[1] if found is not None else [])
        left = 0.0
        for rank, colour in _RANK.items():
            share = 100.0 * count[rank] / max(count.total(), 1)
            axes.barh(-index, share, 0.7, left, color=colour)
            if share >= 6:
                axes.text(left + share / 2, -index, f"{share:.0f}", ha="center", va="center", color="white", fontsize=8)
            left += share
    names = {Rank.BETTER: "first better", Rank.WORSE: "second better", Rank.EQUAL: "equal", Rank.OPEN: "open"}
    for rank, colour in _RANK.items():
        axes.barh(0, 0, color=colour, label=names[rank])
    axes.set_yticks([-i for i in range(len(pairs))], [f"{a}\nagainst {b}" for a, b in pairs], fontsize=8)
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of the channels, %")
    axes.set_title(f"certified verdicts, mask: {standings[0].mask}", fontsize=10)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=4, frameon=False)


def _decibels(entrant: Entrant, energy: float) -> tuple[float, float]:
    """Interval of the SNR of the summed channels: NaN where undefined, infinite where the lower bound is 0."""
    low, high = entrant.total
    if not energy > 0 or not math.isfinite(high) or high == 0:
        return math.nan, math.nan
    return -10.0 * math.log10(high / energy), -10.0 * math.log10(low / energy) if low > 0 else math.inf
