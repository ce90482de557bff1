"""The picture of bits against the error of a whole network, with one compression for each layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from layerbounds.allocation import FrontPoint
from layerbounds.display.outward import ends
from layerbounds.exceptions import InputError
from layerbounds.network.allocate import allocation_front
from layerbounds.network.result import NetworkRun
from layerbounds.report.charts import Bar, Chart, Key, Line, Mark, linear_axis, log_axis
from layerbounds.report.network_charts import styles
from layerbounds.report.network_totals import totals

_HEIGHT = 300
#: Fronts at evenly spaced budgets have at least so many points.
_SPACED = 60
#: Steps of the front that are drawn at most; and per cent of the height by which one has to differ from the last.
_STEPS, _LEAST_STEP = 240, 0.4


def front_chart(run: NetworkRun) -> tuple[Chart, list[Key]] | None:
    """The least sum of relative errors for every number of bits; None where no sum is known or bits do not vary.

    Parameters
    ----------
    run : NetworkRun
    """
    try:
        points = [point for point in _stepwise(allocation_front(run)) if math.isfinite(point.upper)]
    except InputError:
        # A layer that can have none of the compressions.
        return None
    weights = sum(layer.weights for layer in run.layers)
    if not points or weights == 0 or points[0].storage == points[-1].storage:
        return None
    uniform = [
        (total, style)
        for total, style in zip(totals(run), styles(run), strict=True)
        if not total.refused and total.bits_per_weight is not None and math.isfinite(total.relative[1])
    ]
    upright = log_axis(
        [*(p.lower for p in points), *(p.upper for p in points), *(t.relative[1] for t, _ in uniform)], ""
    )
    if upright is None:
        return None
    sizes = [point.storage / weights for point in points] + [total.bits_per_weight or 0.0 for total, _ in uniform]
    first, last = min(sizes), max(sizes)
    room = 0.03 * (last - first)
    across = linear_axis(first - room, last + room, "bits per weight, scales and masks counted")
    chart = Chart("Bits against the sum of the layers’ relative errors", "", across, _HEIGHT, upright=upright)
    drawn = _thinned(chart, points)
    for here, beyond in zip(drawn, [*drawn[1:], None], strict=True):
        left = across.place(here.storage / weights)
        right = across.place(beyond.storage / weights) if beyond is not None else 100.0
        top, bottom = chart.down(here.upper), chart.down(here.lower)
        hint = f"{here.storage / weights:.3f} bits: {ends((here.lower, here.upper), 3)}"
        chart.bars.append(Bar(left, round(right - left, 3), top, round(max(bottom - top, 1.0), 1), "between", hint))
        after = beyond or here
        for end, next_end, style in ((here.upper, after.upper, "pruning"), (here.lower, after.lower, "quantization")):
            y, y_next = chart.down(end), chart.down(next_end)
            chart.lines += [Line((left, right), (y, y), style), Line((right, right), (y, y_next), style)]
    for total, style in uniform:
        assert total.bits_per_weight is not None
        hint = f"{total.choice} for all layers, {total.bits_per_weight:.3f} bits: {ends(total.relative, 3)}"
        chart.marks.append(
            Mark(across.place(total.bits_per_weight), chart.down(total.relative[1]), "diamond", style, hint)
        )
    chart.alt = _text(points, weights)
    keys = [
        Key("line", "pruning", "sum that is reached"),
        Key("line", "quantization", "no allocation is below"),
        *(Key("diamond", style, f"{total.choice} for all layers (upper end)") for total, style in uniform),
    ]
    return chart, keys


def _stepwise(points: list[FrontPoint]) -> list[FrontPoint]:
    """Points of which each holds up to the next one.

    Long fronts come at evenly spaced budgets: between two of them there may be as little error as at the second.
    """
    gaps = {after.storage - before.storage for before, after in pairwise(points)}
    if len(points) < _SPACED or max(gaps) - min(gaps) > 1:
        return points
    return [
        FrontPoint(point.storage, after.lower, point.upper, point.choices)
        for point, after in zip(points, [*points[1:], points[-1]], strict=True)
    ]


def _thinned(chart: Chart, points: Sequence[FrontPoint]) -> list[FrontPoint]:
    """Points that can be told apart, and the last one; a point that is left out only makes the step before it longer.

    Both ends fall with the bits, so that the lower line would be too high there: it gets the lower end of the last one
    that is left out.
    """
    least = max(_LEAST_STEP * _HEIGHT / 100.0, _HEIGHT / _STEPS)
    kept: list[FrontPoint] = []
    for point in points:
        if kept and point is not points[-1]:
            moved = (chart.down(end) - chart.down(before) for end, before in _ends(point, kept[-1]))
            if max(moved) < least:
                kept[-1] = FrontPoint(kept[-1].storage, min(kept[-1].lower, point.lower), kept[-1].upper, {})
                continue
        kept.append(point)
    return kept


def _ends(point: FrontPoint, before: FrontPoint) -> list[tuple[float, float]]:
    return [(point.lower, before.lower), (point.upper, before.upper)]


def _text(points: Sequence[FrontPoint], weights: int) -> str:
    """What the picture says, at the whole numbers of bits and at the ends."""
    least, most = points[0].storage / weights, points[-1].storage / weights
    wanted = sorted({least, most, *(float(b) for b in range(math.ceil(least), math.floor(most) + 1))})
    parts = []
    for bits in wanted:
        point = max((p for p in points if p.storage <= bits * weights * (1 + 1e-12)), key=lambda p: p.storage)
        parts.append(f"{ends((point.lower, point.upper), 3)} at {bits:.4g} bits")
    text = "Least certified sum of relative errors by bits per weight, one compression for each layer"
    return f"{text}: {'; '.join(parts)}."
