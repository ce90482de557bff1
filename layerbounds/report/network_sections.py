"""The questions of a run's page: for each some sentences, and pictures or a table."""

from __future__ import annotations

from dataclasses import dataclass, field

from layerbounds.display.outward import ends, rounded
from layerbounds.network.allocate import allocate
from layerbounds.network.result import NetworkRun
from layerbounds.report.charts import Chart, Key
from layerbounds.report.network_charts import interval_chart, method_charts, styles, verdict_charts, verdict_text
from layerbounds.report.network_front import front_chart
from layerbounds.report.network_totals import pairs

#: Rows of the table of allocations at most.
_MOST_BUDGETS = 12


@dataclass(frozen=True)
class SmallTable:
    """A table whose first columns are texts, ``texts`` of them."""

    caption: str
    headings: list[str]
    rows: list[list[str]]
    texts: int = 0


@dataclass(frozen=True)
class Section:
    """A question and its pictures."""

    id: str
    nav: str
    title: str
    texts: list[str]
    charts: list[Chart] = field(default_factory=list)
    keys: list[Key] = field(default_factory=list)
    table: SmallTable | None = None


def sections(run: NetworkRun) -> list[Section]:
    """What the page asks and answers, in its order."""
    found = []
    intervals = interval_chart(run)
    if intervals is not None:
        text = (
            "Each bar spans the certified interval of a layer’s error: the optimum lies inside, wherever that is. A "
            "short bar is known well, and a bar further left can be compressed with less error. The axis is "
            "logarithmic; a dashed bar has the lower end 0."
        )
        title = "How well can each layer be compressed?"
        found.append(Section("intervals", "Intervals", title, [text], [intervals[0]], intervals[1]))
    methods, keys = method_charts(run)
    if methods:
        text = (
            "Errors of methods as multiples of the certified lower end. At 1 nothing can be better; a mark at 2 has at "
            "most twice the least possible error. The grey band ends at the best weights of this run: whatever lies to "
            "its right is certainly worse than these."
        )
        found.append(Section("methods", "Methods", "How far are methods from the best?", [text], methods, keys))
    found.append(_verdicts(run))
    front = _allocation(run)
    if front is not None:
        found.append(front)
    drawn = _drawn(run)
    if drawn is not None:
        found.append(drawn)
    return found


def _verdicts(run: NetworkRun) -> Section:
    known = [pair for pair in pairs(run) if pair.duels]
    title = "Quantization or pruning, at equal bits?"
    if not known:
        text = (
            "The run has no pair of a quantization and a pruning at equal bits: neither b bits beside density b/16 (4 "
            "bits and ¼, say) nor two of the same storage in every layer that have both."
        )
        return Section("verdicts", "Verdicts", title, [text])
    texts = [
        "A verdict is proven where the intervals do not overlap, so that the worst of the one is better than the best "
        "of the other: Q quantization, P pruning, = equal, ? open."
    ]
    texts += [f"{pair.quantization} against {pair.pruning} ({pair.rule}): {verdict_text(pair)}" for pair in known]
    of_choice = dict(zip((choice.name for choice in run.choices), styles(run), strict=True))
    charts, keys = verdict_charts(known, of_choice)
    return Section("verdicts", "Verdicts", title, texts, charts, keys)


def _allocation(run: NetworkRun) -> Section | None:
    """The Pareto front of bits against error, and the regret at some budgets; None where it is not known."""
    drawing = front_chart(run)
    if drawing is None:
        return None
    rows: list[list[str]] = []
    taken = -1
    for budget in run.budgets:
        best = allocate(run, budget)
        if best.storage == taken:
            continue
        taken = best.storage
        rows.append(
            [
                f"{budget:g}",
                f"{best.bits_per_weight:.3f}",
                ends(best.best),
                rounded(best.error[1], True),
                f"{rounded(best.relative_regret, True, 3, 2)} %",
            ]
        )
        if len(rows) == _MOST_BUDGETS:
            break
    text = (
        "Each layer may have another compression. No choice of one for each layer has a smaller sum of relative errors "
        "than the lower line at its bits, and choices with the sum of the upper line are known. Diamonds stand for one "
        "compression for all layers."
    )
    if any(len(layer.channels) < layer.shape[0] for layer in run.layers):
        text += " All sums are about the channels that were compared."
    headings = [
        "bits per weight ≤",
        "bits used",
        "least sum of relative errors",
        "sum reached",
        "regret ≤",
    ]
    caption = (
        "Allocations. The regret bounds how much more than the best one the recommended one loses, as a share of what "
        "it reaches; layerbounds allocate writes it for tools."
    )
    table = SmallTable(caption, headings, rows) if rows else None
    chart, keys = drawing
    return Section("allocation", "Allocation", "Where do the bits go?", [text], [chart], keys, table)


def _drawn(run: NetworkRun) -> Section | None:
    """What is known of the channels that were not drawn; None where all were taken."""
    rows = []
    confidence = 0.0
    for entry in run.entries:
        statement = run.statement(entry) if entry.visited else None
        if statement is None or statement.sample.whole:
            continue
        confidence = statement.confidence
        rows.append(
            [
                entry.layer.name,
                entry.choice.name,
                f"{len(statement.sample.channels)} of {statement.sample.out}",
                rounded(statement.sample.share, False, 3, 2),
                *(ends(interval, 3, 2) for interval in (statement.drawn, statement.certified, statement.likely)),
            ]
        )
    if not rows:
        return None
    text = (
        "Some channels of each layer were drawn, with probabilities proportional to their energy. The certified "
        "interval of all channels assumes nothing of the others but that their errors lie between 0 and, where zero "
        f"weights are allowed, their energy. The last column holds with {100 * confidence:g} % confidence over the "
        "draw, and is no certificate."
    )
    headings = [
        "layer",
        "compression",
        "channels drawn",
        "their energy, %",
        "error of these, %",
        "certified for all, %",
    ]
    headings.append(f"all, with {100 * confidence:g} % confidence (no certificate), %")
    title = "What is known of the channels that were not drawn?"
    return Section(
        "drawn",
        "Channels not drawn",
        title,
        [text],
        table=SmallTable("Errors, relative to those of zero weights.", headings, rows, texts=2),
    )
