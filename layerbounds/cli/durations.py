"""Times as people write them, ``90``, ``10m`` or ``1h30m``, and the options that take them."""

from __future__ import annotations

import math
import re
from typing import Any

import typer

from layerbounds.arguments import shown
from layerbounds.exceptions import InputError

_NUMBER = r"\+?(\d+(?:\.\d*)?|\.\d+)"
_SECONDS = re.compile(rf"{_NUMBER}(e[+-]?\d+)?", re.ASCII)
#: Units from the largest to the smallest, each at most once.
_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_PARTS = re.compile(r"\s*".join(rf"(?:(\d+(?:\.\d*)?|\.\d+)\s*{unit})?" for unit in _UNITS), re.ASCII)


def parse_duration(text: str | float) -> float:
    """Read a time: ``90`` and ``90s`` are seconds; ``10m``, ``1.5h``, ``1h30m``, ``2d`` have units.

    Parameters
    ----------
    text : str or float
        A number counts seconds.

    Returns
    -------
    float
        Seconds, finite and not negative.

    Raises
    ------
    InputError
        If it is something else.
    """
    written = str(text).strip().lower()
    seconds = math.inf
    if _SECONDS.fullmatch(written):
        seconds = float(written)
    elif written and (parts := _PARTS.fullmatch(written)):
        seconds = sum(float(part) * unit for part, unit in zip(parts.groups(), _UNITS.values(), strict=True) if part)
    if not math.isfinite(seconds):
        raise InputError(f"{shown(text)} is not a time; write seconds such as 90, or 90s, 10m, 1.5h, 1h30m.")
    return seconds


def duration_option(name: str, text: str) -> Any:
    """Declare an option that takes a time; the command gets seconds.

    Parameters
    ----------
    name : str
        With its dashes.
    text : str
        What ``--help`` says.
    """
    return typer.Option(name, metavar="TIME", help=text, parser=_seconds)


def _seconds(text: str | float) -> float:
    """The parser for typer, whose own wrapper hides the message of a plain `ValueError`."""
    try:
        return parse_duration(text)
    except InputError as error:
        raise typer.BadParameter(str(error)) from None
