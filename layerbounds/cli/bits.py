"""Parsing of bits: lists of them for the commands that compare compressions, choices for layers of a model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from layerbounds.exceptions import InputError


def parse_bits(text: str) -> list[int]:
    """Read numbers of bits: ``2,3,4``, or with both ends included ``2:8``.

    Raises
    ------
    InputError
        If the text is not of this form or names a number twice.
    """
    chosen: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?::\s*(\d+)\s*)?", part)
        if match is None:
            raise InputError(
                f"bits {text!r} cannot be read at {part!r}; write numbers such as 2,3,4, or 2:8 for 2 to 8."
            )
        first, last = int(match[1]), int(match[2] or match[1])
        if not 1 <= first <= last <= 8:
            raise InputError(f"bits {text!r} are not between 1 and 8 and rising at {part!r}; write 2:8, for example.")
        chosen.extend(range(first, last + 1))
    if len(set(chosen)) != len(chosen):
        raise InputError(f"bits {text!r} name a number twice; name each once.")
    return chosen


def parse_choices(texts: Sequence[str] | None) -> int | str | dict[str, Any] | None:
    """Read the bits of a model's layers: ``4``; several ``PATTERN=WHAT``; or ``TOOL:FILE``.

    WHAT is a number of bits (16: the layers stay as they are), and after slashes a granularity and the kind of grid:
    ``3/128/asymmetric``. A number without a pattern is for all layers that no pattern matches.

    Returns
    -------
    int, str, dict or None
        As ``bits`` of `compress`.

    Raises
    ------
    InputError
        If a text is of none of these forms.
    """
    if not texts:
        return None
    if len(texts) == 1 and "=" not in texts[0]:
        text = texts[0].strip()
        if ":" in text:
            return text
        own = _choice(text, text)
        return own if isinstance(own, int) else {"*": own}
    chosen: dict[str, Any] = {}
    rest: list[Any] = []
    for text in texts:
        pattern, mark, what = text.rpartition("=")
        if not mark:
            rest.append(_choice(what, text))
            continue
        if pattern in chosen:
            raise InputError(f"bits name {pattern!r} twice; name each pattern once.")
        chosen[pattern] = _choice(what, text)
    if len(rest) + ("*" in chosen) > 1:
        raise InputError("bits without a pattern are for all other layers; pass them once.")
    return chosen | ({"*": rest[0]} if rest else {})


def _choice(what: str, text: str) -> int | dict[str, Any]:
    match = re.fullmatch(r"\s*(\d+)((?:/[a-z0-9]+)*)\s*", what)
    wrong = InputError(
        f"bits {text!r} cannot be read; write 4, PATTERN=4, PATTERN=4/128/asymmetric (16: as they are), or TOOL:FILE."
    )
    if match is None:
        raise wrong
    own: dict[str, Any] = {"bits": int(match[1])}
    for part in match[2].split("/")[1:]:
        name = "symmetric" if part in ("symmetric", "asymmetric") else "granularity"
        if name in own or not (name == "symmetric" or part.isdigit() or part in ("tensor", "channel")):
            raise wrong
        own[name] = part == "symmetric" if name == "symmetric" else int(part) if part.isdigit() else part
    return own if len(own) > 1 else own["bits"]
