"""Tables of quantization against pruning: for terminals and, for a network, as Markdown."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from rich.table import Table
from rich.text import Text

from layerbounds.contests.levels import Comparison, Level
from layerbounds.contests.verdict import Verdict
from layerbounds.problems.rows import noun
from layerbounds.report.tables import MISSING, _number, _table, _text, significant

_STYLE = {
    Verdict.QUANTIZATION: "cyan",
    Verdict.PRUNING: "magenta",
    Verdict.EQUAL: "green",
    Verdict.OPEN: "yellow",
}
_LETTER = {Verdict.QUANTIZATION: "Q", Verdict.PRUNING: "P", Verdict.EQUAL: "=", Verdict.OPEN: "?"}


def comparison_table(comparison: Comparison) -> Table:
    """One layer, one row for each compression: intervals of the relative error in percent, verdicts, counts.

    Parameters
    ----------
    comparison : Comparison

    Returns
    -------
    rich.table.Table
    """
    part = f", {len(comparison.channels)} of {comparison.out_features} channels" if comparison.sampled else ""
    table = _table(f"{comparison.layer}{part}: {rule(comparison)}")
    for heading in ("bits", "sparsity %", "quantization error %", "pruning error %"):
        _number(table, heading)
    _text(table, "verdict")
    for heading in (f"{noun(comparison.sets, 2)} Q", "P", "=", "open"):
        _number(table, heading)
    for level in comparison.levels:
        energy = math.fsum(level.energy)
        quantized, pruned = level.totals
        count = level.count()
        table.add_row(
            str(level.bits),
            f"{100 * (1 - level.density):.4g}",
            percent(quantized, energy),
            percent(pruned, energy),
            Text(str(level.verdict), style=_STYLE[level.verdict]),
            *(str(count[v]) for v in _LETTER),
        )
    return table


def rule(comparison: Comparison) -> str:
    """What the verdicts are about, without the numbers that change from one compression to the next."""
    level = comparison.levels[0]
    grid = level.quantization_problem.partition("-bit ")[2] or level.quantization_problem
    pattern = re.sub(r"(?<= )\d+(?=:)", "N", re.sub(r" k=\d+ of \d+", "", level.pruning_problem))
    fixed_scales = ", scales fixed" if level.scales == "fixed" else ""
    density = "density b/16" if level.mask == "none" else f"b bits per weight, mask: {level.mask}"
    return f"b-bit {grid}{fixed_scales}, against {pattern} at {density}"


def network_table(comparisons: Sequence[Comparison]) -> Table:
    """All layers: for each compression the verdict of the layer and the channels that share it.

    Parameters
    ----------
    comparisons : sequence of Comparison
        With the same compressions.

    Returns
    -------
    rich.table.Table
    """
    table = _table(rule(comparisons[0]))
    _text(table, "layer")
    for heading in ("n", "channels"):
        _number(table, heading)
    for level in comparisons[0].levels:
        _number(table, f"{level.bits} bits")
    for row in _rows(comparisons):
        table.add_row(*row)
    return table


def network_markdown(comparisons: Sequence[Comparison]) -> str:
    """The same as a Markdown table, with a line on how to read it.

    Parameters
    ----------
    comparisons : sequence of Comparison

    Returns
    -------
    str
    """
    heading = ["layer", "n", "channels"] + [f"{level.bits} bits" for level in comparisons[0].levels]
    lines = [
        f"{rule(comparisons[0])}.",
        "",
        "Verdict of the summed error of the layer's compared channels (Q quantization, P pruning, = equal, ? open), "
        f"then the numbers of {_noun(comparisons)} with verdict Q/P/open.",
        "",
        "| " + " | ".join(heading) + " |",
        "|" + "---|" * len(heading),
    ]
    lines += ["| " + " | ".join(row) + " |" for row in _rows(comparisons)]
    return "\n".join(lines) + "\n"


def summary_lines(comparisons: Sequence[Comparison]) -> list[str]:
    """How many verdicts are proven and open, one line for each compression."""
    lines = []
    for i, level in enumerate(comparisons[0].levels):
        channels, layers = _counts([c.levels[i] for c in comparisons])
        total = sum(channels.values())
        sparsity = f"{100 * (1 - level.density):.4g}"
        units = _noun(comparisons, total)
        lines.append(
            f"{level.bits} bits, sparsity {sparsity} %: {total - channels[Verdict.OPEN]} of {total} {units} proven "
            f"(quantization {channels[Verdict.QUANTIZATION]}, pruning {channels[Verdict.PRUNING]}"
            f"{_equal(channels)}), {channels[Verdict.OPEN]} open; layers: quantization "
            f"{layers[Verdict.QUANTIZATION]}, pruning {layers[Verdict.PRUNING]}{_equal(layers)}, open "
            f"{layers[Verdict.OPEN]}"
        )
    return lines


def _noun(comparisons: Sequence[Comparison], count: int = 2) -> str:
    """What the verdicts of some layers are about: channels or sets of them."""
    return noun([rows for comparison in comparisons for rows in comparison.sets], count)


def _equal(count: Counter[Verdict]) -> str:
    return f", equal {count[Verdict.EQUAL]}" if count[Verdict.EQUAL] else ""


def _counts(levels: Sequence[Level]) -> tuple[Counter[Verdict], Counter[Verdict]]:
    channels: Counter[Verdict] = Counter()
    for level in levels:
        channels.update(level.verdicts)
    return channels, Counter(level.verdict for level in levels)


def _rows(comparisons: Sequence[Comparison]) -> list[list[str]]:
    rows = []
    for c in comparisons:
        compared = f"{len(c.channels)} of {c.out_features}" if c.sampled else str(len(c.channels))
        rows.append([c.layer, str(c.inputs), compared] + [_cell(level.verdict, level.count()) for level in c.levels])
    total = ["all layers", "", str(sum(len(c.channels) for c in comparisons))]
    for i in range(len(comparisons[0].levels)):
        channels, layers = _counts([c.levels[i] for c in comparisons])
        leading = ", ".join(f"{count} {_LETTER[v]}" for v, count in sorted(layers.items(), key=lambda item: -item[1]))
        total.append(f"{leading}: {_split(channels)}")
    return [*rows, total]


def _cell(verdict: Verdict, count: Counter[Verdict]) -> str:
    return f"{_LETTER[verdict]} {_split(count)}"


def _split(count: Counter[Verdict]) -> str:
    equal = f"/{count[Verdict.EQUAL]}=" if count[Verdict.EQUAL] else ""
    return f"{count[Verdict.QUANTIZATION]}/{count[Verdict.PRUNING]}/{count[Verdict.OPEN]}{equal}"


def percent(bounds: tuple[float, float], energy: float) -> str:
    """An interval in per cent of an energy."""
    if not energy > 0:
        return MISSING
    low, high = (significant(100.0 * b / energy, 3) for b in bounds)
    return low if low == high and np.isfinite(bounds[1]) else f"{low} – {high}"
