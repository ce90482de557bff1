"""Tables of comparisons: one for each grid or pattern."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

from rich.table import Table
from rich.text import Text

from layerbounds.comparison.records import Record
from layerbounds.proofs import OPTIMAL_RELATIVE
from layerbounds.report.tables import MISSING, _number, _table, _text, fixed, interval, significant


def comparison_tables(records: Sequence[Record], compact: bool = False) -> list[Table]:
    """One table for each grid or pattern: the certified interval first, then the methods, best first.

    Parameters
    ----------
    records : sequence of Record
    compact : bool
        Leave out the times, for narrow terminals.

    Returns
    -------
    list of rich.table.Table
    """
    return [_one(list(rows), compact) for _, rows in groupby(records, key=lambda record: record.fingerprint)]


def _one(records: list[Record], compact: bool) -> Table:
    first = records[0]
    channels = f"{first.channels} channel{'' if first.channels == 1 else 's'}"
    stored = "" if first.mask == "none" else f" · {first.bits_per_weight:.4g} bits per weight, mask: {first.mask}"
    table = _table(f"{first.layer} · {first.grid} · {channels}{stored}")
    noted = any(record.note for record in records)
    _text(table, "method")
    for heading in ["error %", "SQNR dB", "at most % from optimal", *([] if compact else ["time s"])]:
        _number(table, heading)
    if noted:
        _text(table, "")
    ranked = sorted(records, key=lambda record: (record.kind != "certified", record.error))
    for record in ranked:
        certified = record.kind == "certified"
        cells: list[str | Text] = [
            Text(record.method, style="bold" if certified else ""),
            _error(record) if certified else significant(_percent(record.relative_error)),
            interval(record.sqnr_db, record.best_sqnr_db, 2, collapse=not certified),
            excess(record),
        ]
        if not compact:
            cells.append(MISSING if record.kind == "given" else fixed(record.seconds, 2))
        if noted:
            cells.append(record.note)
        table.add_row(*cells)
    return table


def excess(record: Record) -> str:
    """How far from optimal at most, in per cent, rounded up; 0.00 within the tolerance of ``optimal``."""
    value = record.excess_percent
    if value is None or not math.isfinite(value):
        return significant(value)
    decimals = 0 if value >= 100 else 2
    shift = 10**decimals
    return fixed(math.ceil((value - 100 * OPTIMAL_RELATIVE) * shift) / shift, decimals)


def _error(record: Record) -> str:
    if record.relative_error is None or record.lower_bound is None or not record.error > 0:
        return significant(_percent(record.relative_error))
    low, high = record.relative_error * record.lower_bound / record.error, record.relative_error
    ends = significant(100.0 * low), significant(100.0 * high)
    return ends[0] if ends[0] == ends[1] else f"{ends[0]}–{ends[1]}"


def _percent(value: float | None) -> float | None:
    return None if value is None else 100.0 * value
