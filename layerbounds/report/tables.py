"""Tables for terminals: each function takes results and returns something that a rich console prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.console import Console, ConsoleOptions
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from layerbounds.display.outward import MISSING as MISSING
from layerbounds.methods.base import Heuristic
from layerbounds.problems.ranges.rule import RangeRule
from layerbounds.problems.rows import noun, rows_text
from layerbounds.proofs import Status
from layerbounds.solution import Solution
from layerbounds.solvers.registry import BackendInfo

#: More sets of channels, or units kept in one, are left to the JSON record.
MOST_SETS, MOST_UNITS = 8, 64

_STATUS_STYLE = {
    Status.OPTIMAL: "green",
    Status.GAP_REACHED: "cyan",
    Status.TIME_LIMIT: "yellow",
    Status.NODE_LIMIT: "yellow",
    Status.UNRESOLVED: "yellow",
    Status.INTERRUPTED: "red",
    Status.CLAIMED: "cyan",
    Status.RELAXED: "yellow",
    Status.FAILED: "red",
}


def channel_table(solution: Solution, compact: bool = False) -> Table:
    """Intervals of the solved channels, or of the sets of channels that are bound to one another; one row each.

    Numbers are rounded to the nearest for reading; `Solution.to_dict` has them in full.

    Parameters
    ----------
    solution : Solution
    compact : bool
        Leave out the absolute errors and the time, for terminals of less than 80 columns.

    Returns
    -------
    rich.table.Table
    """
    # What a foreign solver says is no certificate: it has a column of its own, and only where there is a figure.
    claimed = bool(np.any(np.isfinite(solution.claimed_lower_bound)))
    problem = solution.problem
    used = solution.backends_used
    backend = used[0] if solution.backend == "auto" and len(used) == 1 else solution.backend
    table = _table(f"{problem.layer.name} · {problem.label} · backend {backend}")
    first = "channels" if any(len(rows) > 1 for rows in solution.sets) else "channel"
    headings = [first, "lower", "upper", "error %", "SQNR dB", "gap %", "status", "time s", "claimed, unproven"]
    left_out = {"lower", "upper", "time s"} if compact else set()
    if not claimed:
        left_out.add("claimed, unproven")
    shown = [heading for heading in headings if heading not in left_out]
    for heading in shown:
        _text(table, heading) if heading == "status" else _number(table, heading)
    relative, sqnr, gap = solution.relative_upper_bound, solution.sqnr_db, solution.gap
    for i, rows in enumerate(solution.sets):
        status = solution.status[i]
        cells: dict[str, str | Text] = {
            first: rows_text(rows),
            "lower": significant(solution.lower_bound[i]),
            "upper": significant(solution.upper_bound[i]),
            "error %": significant(100.0 * relative[i]),
            "SQNR dB": interval(sqnr[i, 0], sqnr[i, 1], decimals=2, collapse=status == Status.OPTIMAL),
            "gap %": fixed(100.0 * gap[i], 2),
            "status": Text(str(status), style=_STATUS_STYLE.get(status, "")),
            "time s": fixed(solution.seconds[i], 2),
            "claimed, unproven": significant(solution.claimed_lower_bound[i]),
        }
        table.add_row(*(cells[heading] for heading in shown))
    return table


def total_line(solution: Solution) -> str:
    """Sum up the solved channels in one line.

    Parameters
    ----------
    solution : Solution

    Returns
    -------
    str
    """
    layer, totals = solution.problem.layer, solution.totals()
    count, optimal, channels = totals["sets"], totals["optimal"], totals["channels"]
    proven = optimal == count
    units = noun(solution.sets, count)
    has = f"{channels} of {layer.out_features} channels" if count < channels else f"the layer has {layer.out_features}"
    part = "" if channels == layer.out_features else f" ({has})"
    low, high = (totals[key] for key in ("relative_lower_bound", "relative_upper_bound"))
    error = significant(_percent(high)) if proven else _span(significant(_percent(low)), significant(_percent(high)))
    # An infinite SQNR (lower bound 0) is None in the totals; only an energy of 0 makes it undefined.
    sqnr = [np.inf if value is None and totals["energy"] > 0 else value for value in totals["sqnr_db"]]
    parts = [
        f"{layer.name}: {optimal} of {count} {units} proven optimal{part}",
        f"relative error {error} %",
        f"SQNR {interval(sqnr[0], sqnr[1], decimals=1, collapse=proven)} dB",
        f"prepared in {fixed(totals['preparation_seconds'], 2)} s, searched {fixed(totals['seconds'], 2)} s",
    ]
    return " · ".join(parts)


def source_lines(solution: Solution) -> list[str]:
    """Which backend gave how many of the ends, where one backend did not give all of them."""
    if solution.backend != "auto" or len(solution.backends_used) == 1:
        return []
    count = len(solution.sets)
    ends = (("lower", solution.lower_backend), ("upper", solution.upper_backend))
    parts = [f"{name} ends: {', '.join(f'{n} {k}' for n, k in Counter(used).most_common())}" for name, used in ends]
    return [f"of {count} intervals · {' · '.join(parts)}"]


def note_lines(solution: Solution) -> list[str]:
    """What was refused of a foreign solver's answers and what has to be known about them; equal notes together."""
    by_note: dict[str, list[str]] = {}
    several: dict[str, bool] = {}
    for rows in solution.sets:
        for note in solution.notes.get(rows[0], ()):
            by_note.setdefault(note, []).append(rows_text(rows))
            several[note] = len(by_note[note]) > 1 or len(rows) > 1
    return [f"channel{'s' if several[note] else ''} {', '.join(c)}: {note}" for note, c in by_note.items()]


def kept_lines(solution: Solution) -> list[str]:
    """Which units of a pattern the sets of channels keep, where they are few enough to be read."""
    kept = solution.kept_units
    if kept is None or len(kept) > MOST_SETS or max(map(len, kept), default=0) > MOST_UNITS:
        return []
    pairs = zip(solution.sets, kept, strict=True)
    return [f"channels {rows_text(rows)} keep units {', '.join(map(str, units)) or 'none'}" for rows, units in pairs]


def layer_table(rows: Iterable[dict[str, Any]], title: str) -> Table:
    """Layers of a file, one row each.

    Parameters
    ----------
    rows : iterable of dict
        From `layerbounds.report.describe.describe_layer`.
    title : str

    Returns
    -------
    rich.table.Table
    """
    rows = list(rows)
    shared = any(row["gram_of"] != row["name"] for row in rows)
    table = _table(title)
    _text(table, "name")
    for heading in ("weight", "n", "groups", "live", "rank", "samples"):
        _number(table, heading)
    _text(table, "repaired")
    if shared:
        _text(table, "Gram matrix of")
    for row in rows:
        table.add_row(
            row["name"],
            "x".join(map(str, row["weight_shape"])),
            str(row["inputs"]),
            str(row["groups"]),
            _extent(row["live_inputs"]),
            _extent(row["rank"]),
            MISSING if row["samples"] is None else str(row["samples"]),
            _repairs(row),
            *((MISSING if row["gram_of"] == row["name"] else row["gram_of"],) if shared else ()),
        )
    return table


def backend_table(rows: Iterable[BackendInfo]) -> Table:
    """Backends, one row each.

    Parameters
    ----------
    rows : iterable of BackendInfo

    Returns
    -------
    rich.table.Table
    """
    table = _table("backends")
    for heading in ("name", "version", "available", "can treat"):
        _text(table, heading)
    for row in rows:
        available = Text("yes", style="green") if row.available else Text(f"no: {row.reason}", style="yellow")
        table.add_row(row.name, row.version or MISSING, available, ", ".join(row.capabilities))
    return table


def heuristic_table(rows: Iterable[Heuristic]) -> Table:
    """Heuristics, one row each.

    Parameters
    ----------
    rows : iterable of Heuristic
        From `layerbounds.methods.registry.describe_heuristics`.

    Returns
    -------
    rich.table.Table
    """
    table = _table("heuristics")
    for heading in ("name", "what it does", "can treat", "source"):
        _text(table, heading)
    for row in rows:
        patterns = f" ({', '.join(row.patterns)})" if row.patterns else ""
        table.add_row(row.name, row.summary, ", ".join(row.capabilities) + patterns, row.source)
    return table


def range_table(rows: Iterable[RangeRule]) -> Table:
    """Ranges, one row each.

    Parameters
    ----------
    rows : iterable of RangeRule
        From `layerbounds.problems.ranges.registry`.

    Returns
    -------
    rich.table.Table
    """
    table = _table("ranges")
    for heading in ("name", "the scale", "grids", "source"):
        _text(table, heading)
    for row in rows:
        table.add_row(row.name, row.summary, ", ".join(row.kinds), row.source)
    return table


def significant(value: float | None, digits: int = 4) -> str:
    """Format a number with some significant digits; what is undefined becomes a dash."""
    if value is None or np.isnan(value):
        return MISSING
    if np.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:#.{digits}g}".removesuffix(".") if value else "0"


def fixed(value: float | None, decimals: int) -> str:
    """Format a number with some decimals, zero without a sign; what is undefined becomes a dash."""
    if value is None or np.isnan(value):
        return MISSING
    return f"{value:z.{decimals}f}" if np.isfinite(value) else significant(value)


def interval(low: float | None, high: float | None, decimals: int, collapse: bool) -> str:
    """Format an interval, or its first end alone."""
    first = fixed(low, decimals)
    return first if collapse else _span(first, fixed(high, decimals))


def _span(first: str, second: str) -> str:
    return first if first == second else f"{first}–{second}"


def _percent(value: float | None) -> float | None:
    return None if value is None else 100.0 * value


def _extent(values: Sequence[int | None]) -> str:
    """One number for all groups, or the smallest and the largest."""
    known = [v for v in values if v is not None]
    return _span(str(min(known)), str(max(known))) if len(known) == len(values) else MISSING


def _repairs(row: dict[str, Any]) -> str:
    notes = []
    if any(row["projected"]):
        smallest = min(v for v in row["min_eigenvalue"] if v is not None)
        notes.append(f"negative eigenvalues (down to {smallest:.1e} of the largest) set to 0")
    if any(row["raised"]):
        notes.append(f"indefinite by rounding: for refitted weights the diagonal counts {max(row['raised']):.1e} more")
    asymmetry = max(row["asymmetry"])
    if asymmetry > 0:
        notes.append(f"symmetrised ({asymmetry:.1e})")
    return ", ".join(notes) or MISSING


class _Title(Text):
    """A table's title that is wrapped where the console ends, and not where the table does."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[Segment]:
        return super().__rich_console__(console, options.update(width=console.width, justify="default"))


def _table(title: str) -> Table:
    # Two characters between columns and no frame: the channel table just fits 80 columns.
    return Table(
        title=_Title(title),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )


def _number(table: Table, heading: str) -> None:
    # Folding instead of the default ellipsis: a narrow terminal must not hide digits.
    table.add_column(Text(heading), justify="right", overflow="fold")


def _text(table: Table, heading: str) -> None:
    table.add_column(Text(heading), overflow="fold")
