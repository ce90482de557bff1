"""Numbers for reading that stay bounds: lower ends rounded down, upper ends up."""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal

#: Stands for what is undefined, such as a relative error where f(0) = 0.
MISSING = "–"


def rounded(value: float | None, up: bool, digits: int = 4, unit: int = 0) -> str:
    """A number with some significant digits, rounded in one direction from its exact value.

    Parameters
    ----------
    value : float or None
        None and NaN give a dash.
    up : bool
    digits : int
    unit : int
        Power of ten that it is multiplied by, such as 2 for per cent.
    """
    if value is None or math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    context = Context(prec=digits, rounding=ROUND_CEILING if up else ROUND_FLOOR)
    # Scaling by a power of ten and creating the decimal are exact; only this rounds.
    number = context.create_decimal(Decimal(value).scaleb(unit, Context(prec=2000)))
    if number == 0:
        return "0"
    size = number.adjusted()
    if -5 <= size < 7:
        text = f"{number:.{max(digits - 1 - size, 0)}f}"
    else:
        text = f"{number:.{digits - 1}e}".replace("e+", "e")
    return text.replace("-", "−")


def ends(interval: tuple[float, float] | None, digits: int = 4, unit: int = 0) -> str:
    """An interval such as 0.1234 – 0.1301, as one number where both ends read the same."""
    if interval is None:
        return MISSING
    low, high = rounded(interval[0], False, digits, unit), rounded(interval[1], True, digits, unit)
    return low if low == high else f"{low} – {high}"
