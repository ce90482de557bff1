"""Matching of the names that users type: exact, by unique dotted suffix, by pattern, else an error with candidates."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence

from layerbounds.arguments import members, shown
from layerbounds.exceptions import InputError, UnknownNameError
from layerbounds.suggestions import did_you_mean


def match_name(name: str, candidates: Sequence[str], what: str) -> str:
    """Return the candidate that ``name`` denotes.

    Raises
    ------
    UnknownNameError
        If nothing matches, or a suffix is not unique.
    """
    if not isinstance(name, str):
        raise UnknownNameError(f"{what} is {shown(name)}; pass a name.")
    if name in candidates:
        return name
    suffix = [c for c in candidates if c.endswith("." + name)]
    if len(suffix) == 1:
        return suffix[0]
    if suffix:
        raise UnknownNameError(f"{what} {name!r} is ambiguous: it may be {', '.join(suffix)}; give more of the name.")
    hint = did_you_mean(name, candidates)
    listed = ", ".join(candidates[:20]) + (", …" if len(candidates) > 20 else "")
    raise UnknownNameError(f"there is no {what} {name!r}; {hint}available: {listed or 'none'}.")


def is_pattern(text: str) -> bool:
    """Whether a selection is a glob or a regular expression, and not one name."""
    return text.startswith("re:") or any(mark in text for mark in "*?[")


def match_names(selection: str | Iterable[str], candidates: Sequence[str], what: str) -> list[str]:
    """Return the candidates that names and patterns denote, in the order of the candidates.

    Parameters
    ----------
    selection : str or iterable of str
        Each an exact name, the unique end of a dotted name, a glob (``layer1.*.conv?``; ``*`` also matches dots), or
        ``re:`` and a regular expression that matches the whole name.
    candidates : sequence of str
    what : str
        How error messages call a candidate.

    Raises
    ------
    UnknownNameError
        If a name or pattern matches nothing, or a suffix is not unique.
    InputError
        If a regular expression is invalid.
    """
    chosen: set[str] = set()
    for text in [selection] if isinstance(selection, str) else members(selection, f"the selection of {what}s"):
        if not isinstance(text, str) or text in candidates or not is_pattern(text):
            chosen.add(match_name(text, candidates, what))
            continue
        try:
            expression = re.compile(text[3:] if text.startswith("re:") else fnmatch.translate(text))
        except (re.error, RecursionError, OverflowError) as error:
            raise InputError(f"{text!r} is not a regular expression ({error}); correct it.") from error
        found = [c for c in candidates if expression.fullmatch(c)]
        if not found:
            listed = ", ".join(candidates[:20]) + (", …" if len(candidates) > 20 else "")
            raise UnknownNameError(f"no {what} matches {text!r}; available: {listed or 'none'}.")
        chosen.update(found)
    return [c for c in candidates if c in chosen]


def file_part(text: str, most: int) -> str:
    """A text as part of a file's name on any system: odd letters are replaced, and it has at most so many."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", text)[:most]
