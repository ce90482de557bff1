"""The pictures of a run, one for each question."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from layerbounds.contests.verdict import Verdict
from layerbounds.display.outward import ends, rounded
from layerbounds.network.entries import Entry
from layerbounds.network.result import NetworkRun
from layerbounds.network.table import relative, state, total_of
from layerbounds.report.charts import Axis, Bar, Chart, Key, Label, Mark, log_axis, short
from layerbounds.report.network_totals import Pair

#: Heights in pixels: of a bar, from one to the next, between groups, of a row of marks.
BAR, STEP, GROUP, ROW = 7, 10, 10, 20
#: Per cent of the width that a bar has at least: an optimum that is known is drawn, too.
THINNEST = 0.3
_SHAPES = ("circle", "square", "up", "cross", "diamond", "down", "plus", "star")
_YARDSTICKS = ("tick", "dot")
_LETTER = {Verdict.QUANTIZATION: "Q", Verdict.PRUNING: "P", Verdict.EQUAL: "=", Verdict.OPEN: "?"}
#: How many colours the page has for methods, and how many shades for the compressions of a family.
METHOD_COLOURS, SHADES = 8, 5
_FAMILIES = ("quantization", "pruning", "joint")


def styles(run: NetworkRun) -> list[str]:
    """A class for each choice: its family's colour, in another shade for each member."""
    families = []
    for place in range(len(run.choices)):
        able = [of_layer[place].family for of_layer in run.grid if of_layer[place].refused is None]
        families.append(able[0] if able and able[0] in _FAMILIES else "joint")
    found = []
    for place, family in enumerate(families):
        count, index = families.count(family), families[:place].count(family)
        shade = round(index * (SHADES - 1) / (count - 1)) if count > 1 else SHADES // 2
        found.append(f"{family} shade{shade}")
    return found


def interval_chart(run: NetworkRun) -> tuple[Chart, list[Key]] | None:
    """Certified intervals of all layers, a bar for each compression; None before any bounds."""
    spans = [end for entry in run.entries if entry.refused is None for end in relative(entry) or ()]
    yards = [value / e.layer.energy for e in run.entries for value in _yardsticks(e).values() if e.layer.energy > 0]
    axis = log_axis([*spans, *yards], "error, relative to that of zero weights", percent=True)
    if axis is None:
        return None
    of_choice = styles(run)
    names = list(dict.fromkeys(name for entry in run.entries for name in _yardsticks(entry)))
    shapes = {name: _YARDSTICKS[i % len(_YARDSTICKS)] for i, name in enumerate(names)}
    chart = Chart("Certified intervals by layer", "", axis, 0)
    y = GROUP // 2
    for of_layer in run.grid:
        rows = [entry for entry in of_layer if entry.refused is None]
        height = STEP * max(len(rows), 2)
        missing = "" if any(_bar(axis, entry, 0, "") for entry in rows) else _why_nothing(of_layer)
        chart.labels.append(
            Label(y + height // 2, short(of_layer[0].layer.name), of_layer[0].layer.name, instead=missing)
        )
        top = y + (height - STEP * len(rows)) // 2
        for index, entry in enumerate(rows):
            where = top + index * STEP
            bar = _bar(axis, entry, where, of_choice[entry.number[1]])
            if bar is not None:
                chart.bars.append(bar)
            for name, value in _yardsticks(entry).items():
                if entry.layer.energy > 0 and value > 0:
                    share = value / entry.layer.energy
                    hint = f"{_title(entry)}: {name} {rounded(share, True, 3, 2)} % (no certificate)"
                    chart.marks.append(Mark(axis.place(share), where + BAR // 2 + 1, shapes[name], "yardstick", hint))
        y += height + GROUP
        chart.rules.append(y - GROUP // 2)
    chart.height = y - GROUP // 2
    keys = [Key("bar", style, choice.name) for style, choice in zip(of_choice, run.choices, strict=True)]
    keys += [Key(shape, "yardstick", f"{name}: yardstick, no certificate") for name, shape in shapes.items()]
    chart.alt = _interval_text(run)
    return chart, keys


def method_charts(run: NetworkRun) -> tuple[list[Chart], list[Key]]:
    """For each compression the errors of methods over the certified lower end, layer by layer."""
    known = [entry for entry in run.entries if entry.refused is None and entry.visited and entry.interval[0] > 0]
    labels = list(dict.fromkeys(label for entry in known for label in entry.methods))
    values = [total / e.interval[0] for e in known for total in map(total_of, e.methods.values()) if total is not None]
    values += [e.interval[1] / e.interval[0] for e in known]
    axis = log_axis(values, "error / certified lower end", least=1.0)
    if axis is None or not labels:
        return [], []
    looks = {label: (_SHAPES[i % len(_SHAPES)], f"method{i % METHOD_COLOURS}") for i, label in enumerate(labels)}
    charts = []
    for place, choice in enumerate(run.choices):
        column = [of_layer[place] for of_layer in run.grid]
        if any(entry.methods for entry in column):
            charts.append(_method_chart(choice.name, column, axis, looks))
    keys = [Key("bar", "undecided", "the optimum and the best weights of this run")]
    given = {label for entry in known for label, score in entry.methods.items() if score.given}
    keys += [Key(*looks[label], f"{label} (given)" if label in given else label) for label in labels]
    if any(not score.feasible for entry in known for score in entry.methods.values()):
        keys.append(Key("circle", "barred", "hollow: weights that the compression does not allow"))
    return charts, keys


def _method_chart(title: str, column: Sequence[Entry], axis: Axis, looks: dict[str, tuple[str, str]]) -> Chart:
    chart = Chart(title, "", axis, ROW * len(column))
    best: dict[str, list[float]] = {}
    for index, entry in enumerate(column):
        y = index * ROW + ROW // 2
        low, high = entry.interval
        instead = ""
        if entry.refused is not None or not entry.visited:
            instead = state(entry)
        elif low == 0:
            instead = "lower end is 0"
        chart.labels.append(Label(y, short(entry.layer.name), entry.layer.name, instead=instead))
        chart.rules.append(y + ROW // 2)
        if instead:
            continue
        hint = f"{_title(entry)}: the run's best weights have at most {rounded(high / low, True)} × the least error"
        chart.bars.append(Bar(0.0, max(axis.place(high / low), THINNEST), y - 5, 10, "undecided", hint))
        for label, score in entry.methods.items():
            total = total_of(score)
            if total is None:
                continue
            shape, style = looks[label]
            barred = "" if score.feasible else " barred"
            text = "" if score.feasible else ", not allowed"
            hint = f"{_title(entry)}: {label} {rounded(total / low, True)} × the lower end{text}"
            chart.marks.append(Mark(axis.place(total / low), y, shape, style + barred, hint))
            if score.feasible:
                best.setdefault(label, []).append(total / low)
    parts = [
        f"{label} from {rounded(min(found), True, 3)} to {rounded(max(found), True, 3)} times (median "
        f"{rounded(float(np.median(found)), True, 3)}, {len(found)} {_plural('layer', len(found))})"
        for label, found in best.items()
    ]
    text = "; ".join(parts) or "no method with allowed weights"
    chart.alt = f"{title}: errors of methods over the certified lower end, by layer: {text}."
    return chart


def verdict_charts(pairs: Sequence[Pair], of_choice: dict[str, str]) -> tuple[list[Chart], list[Key]]:
    """For each pair at equal bits both intervals of every layer, and its verdict."""
    duels = [duel for pair in pairs for duel in pair.duels]
    spans = [end for duel in duels for entry in (duel.quantized, duel.pruned) for end in relative(entry) or ()]
    axis = log_axis(spans, "error, relative to that of zero weights", percent=True)
    if axis is None:
        return [], []
    charts = []
    for pair in pairs:
        chart = Chart(f"{pair.quantization} against {pair.pruning}", "", axis, (2 * STEP + GROUP) * len(pair.duels))
        for index, duel in enumerate(pair.duels):
            y = index * (2 * STEP + GROUP)
            name = duel.quantized.layer.name
            chart.labels.append(Label(y + STEP + GROUP // 2, short(name), name, after=_LETTER[duel.verdict]))
            chart.rules.append(y + 2 * STEP + GROUP)
            for side, entry in enumerate((duel.quantized, duel.pruned)):
                bar = _bar(axis, entry, y + GROUP // 2 + 1 + side * STEP, of_choice[entry.choice.name])
                if bar is not None:
                    chart.bars.append(bar)
        chart.alt = f"{chart.title} at {pair.rule}, by layer: {verdict_text(pair)}"
        charts.append(chart)
    sides = dict.fromkeys(pair.quantization for pair in pairs) | dict.fromkeys(pair.pruning for pair in pairs)
    return charts, [Key("bar", of_choice[name], name) for name in sides]


def verdict_text(pair: Pair) -> str:
    """The verdicts of a pair in a sentence."""
    count = pair.count()
    total = len(pair.duels)
    text = (
        f"quantization is better in {count[Verdict.QUANTIZATION]} of {total} {_plural('layer', total)}, pruning in "
        f"{count[Verdict.PRUNING]}, {count[Verdict.OPEN]} {'is' if count[Verdict.OPEN] == 1 else 'are'} open"
    )
    if count[Verdict.EQUAL]:
        text += f", {count[Verdict.EQUAL]} equal"
    known = [duel.sets for duel in pair.duels if duel.sets is not None]
    if known and len(known) == total:
        of = sum(known, Counter[Verdict]())
        text += (
            f"; of {of.total()} channels (or sets of them) quantization in {of[Verdict.QUANTIZATION]}, pruning in "
            f"{of[Verdict.PRUNING]}, {of[Verdict.OPEN]} open"
        )
        if of[Verdict.EQUAL]:
            text += f", {of[Verdict.EQUAL]} equal"
    return text + "."


def _bar(axis: Axis, entry: Entry, y: int, style: str) -> Bar | None:
    """The interval of an entry; None where there is nothing to draw."""
    span = relative(entry)
    if span is None or not math.isfinite(span[1]):
        return None
    left, right = axis.place(span[0]), axis.place(span[1])
    left, right = min(left, 100.0 - THINNEST), max(right, left + THINNEST)
    optimal = ", proven optimal" if state(entry) == "proven" else ""
    hint = f"{_title(entry)}: {ends(span, 4, 2)} %{optimal}"
    return Bar(left, round(right - left, 3), y, BAR, style, hint, span[0] == 0)


def _why_nothing(of_layer: Sequence[Entry]) -> str:
    """Why a layer has no bars."""
    rows = [entry for entry in of_layer if entry.refused is None]
    if not rows:
        return "refused"
    return "not yet" if any(relative(entry) for entry in rows) else "no energy"


def _title(entry: Entry) -> str:
    return f"{entry.layer.name}, {entry.choice.name}"


def _yardsticks(entry: Entry) -> dict[str, float]:
    return {name: value for name, value in entry.yardsticks.items() if value is not None and math.isfinite(value)}


def _interval_text(run: NetworkRun) -> str:
    """What the picture of intervals says, with its main numbers."""
    parts = []
    for place, choice in enumerate(run.choices):
        column = [of_layer[place] for of_layer in run.grid if of_layer[place].refused is None]
        spans = [(span, e.layer.name) for e in column for span in [relative(e)] if span and math.isfinite(span[1])]
        if not spans:
            parts.append(f"{choice.name}: no intervals yet")
            continue
        least, most = min(spans, key=lambda s: s[0][1]), max(spans, key=lambda s: s[0][1])
        parts.append(f"{choice.name} from {ends(least[0], 3, 2)} % ({least[1]}) to {ends(most[0], 3, 2)} % ({most[1]})")
    count = len(run.layers)
    return f"Certified intervals of the relative error of {count} {_plural('layer', count)}: {'; '.join(parts)}."


def _plural(noun: str, count: int) -> str:
    return noun if count == 1 else noun + "s"
