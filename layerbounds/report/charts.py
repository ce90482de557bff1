"""Pictures of pages as data: positions in per cent of the width, so that they fit every screen and texts keep a size.

``page/chart.html`` draws them. Nothing here is markup: texts are escaped where they are written.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field

#: Layers' names in pictures are cut to their ends, which tell them apart.
LONGEST_NAME = 22


@dataclass(frozen=True)
class Tick:
    """A place on an axis.

    Attributes
    ----------
    x : float
    text : str
        Empty for a line without a number.
    always : bool
        Whether the number is there on narrow screens, too.
    """

    x: float
    text: str
    always: bool = True


@dataclass(frozen=True)
class Axis:
    """A logarithmic axis, or a linear one.

    Attributes
    ----------
    low, high : float
        Values at 0 and 100 per cent.
    title : str
    ticks : list of Tick
    linear : bool
    """

    low: float
    high: float
    title: str
    ticks: list[Tick]
    linear: bool = False

    def place(self, value: float) -> float:
        """Where a value is, in per cent; what lies beyond an end is at the end."""
        if value <= self.low:
            return 0.0
        if value >= self.high:
            return 100.0
        if self.linear:
            return round(100.0 * (value - self.low) / (self.high - self.low), 3)
        low, high = math.log(self.low), math.log(self.high)
        return round(100.0 * (math.log(value) - low) / (high - low), 3)


@dataclass(frozen=True)
class Bar:
    """An interval.

    Attributes
    ----------
    x, width : float
    y, height : float
        In pixels.
    style : str
        Class of its colour.
    hint : str
        What it says, shown under the pointer.
    endless : bool
        Whether it has no left end on a logarithmic axis.
    """

    x: float
    width: float
    y: float
    height: float
    style: str
    hint: str
    endless: bool = False


@dataclass(frozen=True)
class Mark:
    """A point; ``shape`` is one of `SHAPES`."""

    x: float
    y: float
    shape: str
    style: str
    hint: str


@dataclass(frozen=True)
class Label:
    """A row's name, and what stands at its end or instead of its marks."""

    y: int
    text: str
    full: str
    after: str = ""
    instead: str = ""


@dataclass(frozen=True)
class Line:
    """A straight line; x in per cent, y in pixels."""

    x: tuple[float, float]
    y: tuple[float, float]
    style: str


@dataclass(frozen=True)
class Key:
    """A line of a legend; ``shape`` is "bar" or one of `SHAPES`."""

    shape: str
    style: str
    text: str


@dataclass
class Chart:
    """A picture.

    Attributes
    ----------
    title, alt : str
    axis : Axis
    height : int
        Of the part with marks, in pixels.
    upright : Axis or None
        The axis of y, where rows are none.
    """

    title: str
    alt: str
    axis: Axis
    height: int
    labels: list[Label] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    rules: list[int] = field(default_factory=list)
    upright: Axis | None = None

    def down(self, value: float) -> float:
        """Where a value of the axis of y is, in pixels from the top."""
        assert self.upright is not None
        return round(self.height * (1.0 - self.upright.place(value) / 100.0), 1)

    @property
    def ends(self) -> bool:
        """Whether rows have something at their ends."""
        return any(label.after for label in self.labels)


#: Shapes of marks, as paths around the origin, apart without colour.
SHAPES: dict[str, str] = {
    "circle": "M-4.2,0a4.2,4.2 0 1,0 8.4,0a4.2,4.2 0 1,0 -8.4,0z",
    "square": "M-3.7,-3.7h7.4v7.4h-7.4z",
    "up": "M0,-4.8L4.8,3.8H-4.8z",
    "down": "M0,4.8L4.8,-3.8H-4.8z",
    "cross": "M-4.6,-2.2L-2.2,-4.6L0,-2.4L2.2,-4.6L4.6,-2.2L2.4,0L4.6,2.2L2.2,4.6L0,2.4L-2.2,4.6L-4.6,2.2L-2.4,0z",
    "plus": "M-1.6,-4.8h3.2v3.2h3.2v3.2h-3.2v3.2h-3.2v-3.2h-3.2v-3.2h3.2z",
    "star": "M0,-5.2L1.3,-1.7L5,-1.6L2.1,0.7L3.1,4.2L0,2.1L-3.1,4.2L-2.1,0.7L-5,-1.6L-1.3,-1.7z",
    "diamond": "M0,-5.2L4,0L0,5.2L-4,0z",
    "tick": "M-1,-5h2v10h-2z",
    "dot": "M-2.8,0a2.8,2.8 0 1,0 5.6,0a2.8,2.8 0 1,0 -5.6,0z",
}


def log_axis(values: Iterable[float], title: str, least: float | None = None, percent: bool = False) -> Axis | None:
    """A logarithmic axis that has room for all positive values; None if there are none.

    Parameters
    ----------
    values : iterable of float
    title : str
    least : float, optional
        Where it begins; default: below the smallest value.
    percent : bool
        Whether its numbers are shown in per cent.
    """
    positive = [v for v in values if v > 0 and math.isfinite(v)]
    if not positive:
        return None
    low = least if least is not None else min(positive) / 1.15
    high = max(min(max(positive) * 1.15, sys.float_info.max), low * 2.0)
    decades = math.log10(high) - math.log10(low)
    steps = [1.0] if decades > 3.2 else [1.0, 2.0, 5.0] if decades > 0.6 else [1 + i / 5 for i in range(45)]
    places = [
        factor * 10.0**power
        for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for factor in steps
        if low * (1 - 1e-9) <= factor * 10.0**power <= high
    ]
    axis = Axis(low, high, title, [])
    # Neighbours need about a tenth of the width each, and twice that on narrow screens.
    kept: list[Tick] = []
    wide: float | None = None
    for value in places:
        x = axis.place(value)
        if kept and x - kept[-1].x < 8.0:
            continue
        always = wide is None or x - wide >= 22.0
        if always:
            wide = x
        kept.append(Tick(x, _number(100.0 * value, " %") if percent else _number(value, ""), always))
    return Axis(low, high, title, kept)


def _number(value: float, unit: str) -> str:
    text = f"{value:.3g}"
    if "e" in text:
        mantissa, exponent = text.split("e")
        power = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        text = f"10{power}" if mantissa == "1" else f"{mantissa}·10{power}"
    return text + unit


def linear_axis(low: float, high: float, title: str) -> Axis:
    """An axis from one value to another, with about eight round numbers."""
    step = 10.0 ** math.floor(math.log10((high - low) / 4.0))
    step *= next(factor for factor in (1.0, 2.0, 5.0, 10.0) if (high - low) / (step * factor) <= 9.0)
    axis = Axis(low, high, title, [], linear=True)
    places = [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    ticks = [Tick(axis.place(value), f"{value:.6g}", i % 2 == 0) for i, value in enumerate(places)]
    return Axis(low, high, title, ticks, linear=True)


def short(name: str) -> str:
    """A layer's name for pictures."""
    return name if len(name) <= LONGEST_NAME else "…" + name[-(LONGEST_NAME - 1) :]
