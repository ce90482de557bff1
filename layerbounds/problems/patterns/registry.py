"""The patterns by name."""

from __future__ import annotations

from typing import Any

from layerbounds.arguments import shown
from layerbounds.exceptions import InputError
from layerbounds.problems.patterns.base import Pattern
from layerbounds.problems.patterns.filters import Filter
from layerbounds.problems.patterns.shared_units import Channel, Column, Head, Position, given_units
from layerbounds.problems.patterns.single_rows import Block, NOfM, Unstructured
from layerbounds.problems.patterns.tiles import Transposable, Venom
from layerbounds.suggestions import did_you_mean

#: All patterns.
PATTERNS: tuple[type[Pattern], ...] = (
    Unstructured, NOfM, Block, Channel, Column, Position, Head, Filter, Transposable, Venom,
)  # fmt: skip


def as_pattern(value: Any) -> Pattern:
    """A pattern as users give it: a name, an array with the unit of each input, or a pattern."""
    return value if isinstance(value, Pattern) else given_units(value) or parse_pattern(value)


def parse_pattern(text: str) -> Pattern:
    """Read a pattern's name, such as ``"unstructured"``, ``"2:4"``, ``"block:9"``, ``"channel"`` or ``"head:64"``.

    Parameters
    ----------
    text : str

    Raises
    ------
    InputError
        If there is no such pattern, or its numbers are impossible.
    """
    if not isinstance(text, str):
        raise InputError(f"pattern is {shown(text)}; pass a text such as '2:4'.")
    name = text.strip().lower()[:100]
    for pattern in PATTERNS:
        if (found := pattern.parse(name)) is not None:
            return found
    *forms, last = (pattern.form for pattern in PATTERNS)
    words = [word for word in (pattern.form.partition(":")[0] for pattern in PATTERNS) if word.islower()]
    hint = did_you_mean(name.partition(":")[0], words)
    raise InputError(f"there is no pattern {shown(text)}; {hint}choose {', '.join(forms)} or {last}.")
