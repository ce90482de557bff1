"""Did you mean …: what a name that is not among the known ones may have been meant as."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

#: Names that are offered at most, and the least likeness of one that is (`difflib.SequenceMatcher.ratio`).
MOST, LIKENESS = 3, 0.61
#: Names of so few letters differ from many others in one; only those with the same first letter are near.
SHORT = 3
#: Longer texts are no mistyped names, and would take long to compare.
LONGEST = 200


def did_you_mean(given: Any, known: Iterable[str]) -> str:
    """The part of an error message that offers the nearest names: ``"did you mean gptq? "``, or nothing.

    Letters count alike whether small or capital, and a name without dots is compared with the ends of dotted ones, too.

    Parameters
    ----------
    given : object
        What was passed instead of a name; only for texts is there anything near.
    known : iterable of str
    """
    *others, last = nearest_names(given, known) or [""]
    return f"did you mean {' or '.join([', '.join(others), last] if others else [last])}? " if last else ""


def nearest_names(given: Any, known: Iterable[str]) -> list[str]:
    """The known names that are most like a given one, the nearest first.

    Parameters
    ----------
    given : object
    known : iterable of str
    """
    if not isinstance(given, str) or not 0 < len(given) <= LONGEST:
        return []
    name = given.strip().lower()
    parts = name.count(".") + 1
    forms: dict[str, str] = {}
    for whole in known:
        forms.setdefault(whole.lower(), whole)
        forms.setdefault(".".join(whole.lower().split(".")[-parts:]), whole)
    near = difflib.get_close_matches(name, forms, n=2 * MOST, cutoff=LIKENESS)
    near = [form for form in near if len(name) > SHORT or form[0] == name[0]]
    return list(dict.fromkeys(forms[form] for form in near))[:MOST]
