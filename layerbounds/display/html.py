"""Summaries and tables as HTML for notebooks.

Colours are inherited or stay apart from white and black, and all style is inline: output cells have no head, and
viewers drop what they do not trust.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from layerbounds.display.outward import rounded
from layerbounds.display.views import Bar, Summary, Table

#: Rows of a table that are shown.
MOST_ROWS = 24
#: Facts that have so many characters together are written into one line.
_LINE = 130

_BLOCK = "font-size:13px;line-height:1.45;color:inherit;max-width:100%;overflow-x:auto"
_TABLE = "border-collapse:collapse;margin:0.4em 0;color:inherit;background-color:transparent;font-size:inherit"
_CELL = "padding:2px 14px 2px 0;border:0;vertical-align:middle;color:inherit;max-width:none;"
_HEAD = "border-bottom:1px solid currentColor;font-weight:600;"
_FAINT = "opacity:0.75"
#: The track of a bar: half transparent grey is seen on every page.
_TRACK = "width:170px;background-color:rgba(128,128,128,0.22)"


def rendered(kind: str, summary: Summary, tables: Sequence[Table]) -> str:
    """A result as HTML.

    Parameters
    ----------
    kind : str
        The name of its class.
    summary : Summary
    tables : sequence of Table

    Returns
    -------
    str
        One element, with all texts escaped.
    """
    known = [] if summary.in_tables and tables else list(summary.facts)
    lines = [" · ".join(known)] if sum(map(len, known)) <= _LINE else known
    facts = "".join(f'<div style="{_FAINT}">{escape(line)}</div>' for line in lines if line)
    head = f"<div><strong>{escape(kind)}</strong> {escape(summary.title)}</div>"
    return f'<div style="{_BLOCK}">{head}{facts}{"".join(map(_table, tables))}</div>'


def _table(table: Table) -> str:
    kinds = list(table.columns.values())
    axis = table.axis()
    heads = [_heading(table, name, kind, axis) for name, kind in table.columns.items()]
    lines = []
    for row in table.rows[:MOST_ROWS]:
        cells = [_cell(cell, kind, axis) for cell, kind in zip(row, kinds, strict=True)]
        lines.append(f'<tr style="background-color:transparent">{"".join(cells)}</tr>')
    left_out = len(table.rows) - MOST_ROWS
    notes = [f"{left_out} more rows" if left_out > 1 else "1 more row"] if left_out > 0 else []
    notes += [table.note] if table.note else []
    foot = "".join(f'<div style="{_FAINT}">{escape(note)}</div>' for note in notes)
    header = f'<thead><tr style="background-color:transparent">{"".join(heads)}</tr></thead>'
    header = header if any(map(str.strip, table.columns)) else ""
    return f'<table style="{_TABLE}">{header}<tbody>{"".join(lines)}</tbody></table>{foot}'


def _heading(table: Table, name: str, kind: str, axis: tuple[float, float] | None) -> str:
    text = escape(name)
    if kind == "bar" and axis is not None:
        low, high = (rounded(end, False, 2, 2 if table.unit == "%" else 0) for end in axis)
        unit = f" {table.unit}" if table.unit else ""
        note = f"{low} to {high}{unit}, logarithmic"
        text += f'<div style="{_FAINT};font-weight:400;white-space:nowrap">{escape(note)}</div>'
    return f'<th style="{_CELL}{_HEAD}{_aligned(kind)}">{text}</th>'


def _cell(cell: str | Bar | None, kind: str, axis: tuple[float, float] | None) -> str:
    inner = "" if cell is None else _bar(cell, axis) if isinstance(cell, Bar) else escape(cell)
    return f'<td style="{_CELL}{_aligned(kind)}">{inner}</td>'


def _aligned(kind: str) -> str:
    return "text-align:right;white-space:nowrap" if kind == "number" else "text-align:left"


def _bar(bar: Bar, axis: tuple[float, float] | None) -> str:
    if axis is None:
        return ""
    left, right = (_place(end, axis) for end in (bar.low, bar.high))
    # An optimum that is known is a line of its own width.
    left = min(left, 98.2)
    shape = f"margin-left:{left:.2f}%;width:{max(right - left, 1.8):.2f}%;height:10px;background-color:{bar.colour}"
    hint = escape(bar.hint)
    return f'<div style="{_TRACK}" title="{hint}"><div style="{shape}"></div></div>'


def _place(value: float, axis: tuple[float, float]) -> float:
    """Where a value lies on a logarithmic axis, in per cent."""
    low, high = axis
    if not value > low:
        return 0.0
    if value >= high:
        return 100.0
    return 100.0 * (math.log(value) - math.log(low)) / (math.log(high) - math.log(low))
