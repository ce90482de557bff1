"""Options of heuristics: the names that other packages give them, and values as users write them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from layerbounds.arguments import LARGEST_COUNT, shown
from layerbounds.exceptions import InputError
from layerbounds.methods.base import Heuristic
from layerbounds.suggestions import did_you_mean

#: Option names of other packages for the same thing.
ALIASES = {
    "percdamp": "damp",
    "damp_percent": "damp",
    "dampening_frac": "damp",
    "rel_damp": "damp",
    "actorder": "act_order",
    "desc_act": "act_order",
    "blocksize": "block_size",
}


def resolve_options(heuristic: Heuristic, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options under the heuristic's own names.

    Raises
    ------
    InputError
        If it has no such option, or its value is of another kind.
    """
    resolved: dict[str, Any] = {}
    for name, value in options.items():
        own = name if name in heuristic.options else ALIASES.get(name, name)
        if own not in heuristic.options:
            known = ", ".join(heuristic.options) or "none"
            hint = did_you_mean(name, heuristic.options)
            raise InputError(f"heuristic {heuristic.name!r} has no option {name!r}; {hint}its options are: {known}.")
        if own in resolved:
            raise InputError(f"heuristic {heuristic.name!r} is given its option {own!r} twice; leave out one of them.")
        default = heuristic.options[own]
        if not _is_like(value, default):
            raise InputError(
                f"heuristic {heuristic.name!r}: option {name!r} is {shown(value)}; pass a value like its default, "
                f"{default!r}."
            )
        if not isinstance(value, str) and value is not None and not -LARGEST_COUNT <= value <= LARGEST_COUNT:
            raise InputError(f"heuristic {heuristic.name!r}: {name} is {shown(value)}; pass a finite number.")
        resolved[own] = value
    if heuristic.check is not None:
        heuristic.check({**heuristic.options, **resolved})
    return resolved


def _is_like(value: Any, default: Any) -> bool:
    """Whether an option's value is of the kind of its default; where that is None, None or a number."""
    if isinstance(default, bool) or isinstance(value, (bool, np.bool_)):
        return isinstance(default, bool) and isinstance(value, (bool, np.bool_))
    if isinstance(default, str) or isinstance(value, str) or value is None:
        return (isinstance(default, str) and isinstance(value, str)) or (default is None and value is None)
    if isinstance(default, int) and not isinstance(value, (int, np.integer)):
        return False
    return isinstance(value, (int, float, np.integer, np.floating))


def read_parts(text: str, separator: str) -> tuple[str, dict[str, Any]]:
    """Read ``NAME`` or ``NAME:OPTION=VALUE:…``, with any separator; values are numbers, true, false, none or words.

    Raises
    ------
    InputError
        If the text is not of this form.
    """
    name, *parts = (part.strip() for part in str(text).split(separator))
    options: dict[str, Any] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise InputError(f"method {text!r} cannot be read at {part!r}; write NAME{separator}OPTION=VALUE.")
        options[key.strip()] = _value(value.strip())
    return name, options


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        number = json.loads(text)
    except ValueError:
        return text
    return number if isinstance(number, int | float) else text
