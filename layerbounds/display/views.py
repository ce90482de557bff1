"""What is shown of a result, as plain data: words, tables, and intervals drawn into them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

#: Colours of intervals, of those of pruning beside quantization, of both at once, and of methods: seen on light and on
#: dark pages.
INTERVAL, PRUNING, JOINT, METHOD = "#2f7fc1", "#d9642b", "#a75bb5", "#d9642b"
#: Texts that are longer are broken into lines.
_WIDTH = 100


#: What a column of a table holds.
Shape = Literal["text", "number", "bar"]


@dataclass(frozen=True)
class Summary:
    """A result in a few words.

    Attributes
    ----------
    title : str
        What it is about.
    facts : sequence of str
    in_tables : bool
        Whether the tables say all of them, too.
    """

    title: str
    facts: Sequence[str] = ()
    in_tables: bool = False

    def text(self, kind: str) -> str:
        """For terminals: one line, or where that is too long a line for each fact."""
        whole = f"<{kind}: {' · '.join([self.title, *self.facts])}>"
        if len(whole) <= _WIDTH:
            return whole
        return "\n  ".join([f"<{kind}: {self.title}", *self.facts]) + ">"


@dataclass(frozen=True)
class Bar:
    """An interval, or a point where both ends are equal.

    Attributes
    ----------
    low, high : float
        Zero and infinity go to the ends of the axis.
    hint : str
        Shown under the pointer.
    colour : str
    """

    low: float
    high: float
    hint: str
    colour: str = INTERVAL


@dataclass(frozen=True)
class Table:
    """Rows of texts, numbers and bars; all bars of a table have one logarithmic axis.

    Attributes
    ----------
    columns : mapping of str to {"text", "number", "bar"}
        By heading; if all are blank there is no line of them.
    rows : sequence of sequence
        Texts, and bars (or None) in columns of bars.
    note : str
        Below the table.
    unit : str
        Of the numbers at the ends of the axis; ``"%"`` multiplies by 100.
    """

    columns: Mapping[str, Shape]
    rows: Sequence[Sequence[str | Bar | None]] = field(default=(), repr=False)
    note: str = ""
    unit: str = ""

    def axis(self) -> tuple[float, float] | None:
        """The positive finite values between which bars are drawn; None if there are none."""
        bars = [cell for row in self.rows for cell in row if isinstance(cell, Bar)]
        known = [end for bar in bars for end in (bar.low, bar.high) if end > 0 and math.isfinite(end)]
        if not known:
            return None
        low, high = min(known), max(known)
        # A little room on both sides, and an axis even for a single number.
        room = max((high / low) ** 0.04, 1.02) if high / low < math.inf else 1.02
        return low / room, high * room
