"""Matching of the names that users type: exactly, by unique dotted suffix, else an error with candidates."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from layerbounds.exceptions import UnknownNameError


def match_name(name: str, candidates: Sequence[str], what: str) -> str:
    """Return the candidate that ``name`` denotes.

    Raises
    ------
    UnknownNameError
        If nothing matches, or a suffix is not unique.
    """
    if name in candidates:
        return name
    suffix = [c for c in candidates if c.endswith("." + name)]
    if len(suffix) == 1:
        return suffix[0]
    if suffix:
        raise UnknownNameError(f"{what} {name!r} is ambiguous: it may be {', '.join(suffix)}; give more of the name.")
    near = difflib.get_close_matches(name, candidates, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    shown = ", ".join(candidates[:20]) + (", …" if len(candidates) > 20 else "")
    raise UnknownNameError(f"there is no {what} {name!r}; {hint}available: {shown or 'none'}.")
