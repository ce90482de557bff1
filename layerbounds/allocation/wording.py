"""Numbers in sentences that stay bounds."""

from __future__ import annotations

import math
import re
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal


def readable(value: float, up: bool, digits: int = 3) -> str:
    """A number with some significant digits, rounded up or down from its exact value.

    Parameters
    ----------
    value : float
    up : bool
    digits : int
    """
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    rounded = Context(prec=digits, rounding=ROUND_CEILING if up else ROUND_FLOOR).create_decimal(Decimal(value))
    return re.sub(r"e([+-])0*", r"e\1", f"{float(rounded):.{digits}g}").replace("e+", "e").replace("-", "−")
