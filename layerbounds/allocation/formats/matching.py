"""Names and regular expressions of layers, as the tools write them."""

from __future__ import annotations

import json
import re
from typing import Any

from layerbounds.exceptions import FileFormatError


def compiled(pattern: str) -> re.Pattern[str]:
    """A regular expression of a file.

    Raises
    ------
    FileFormatError
        If it is none.
    """
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise FileFormatError(f"{pattern!r} in the file is no regular expression ({error}); correct it.") from error


def parsed_json(text: str, what: str) -> dict[str, Any]:
    """The object of a JSON file.

    Raises
    ------
    FileFormatError
        If it is none.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"the file is no JSON ({error}); pass {what}.") from error
    if not isinstance(value, dict):
        raise FileFormatError(f"the file is no JSON object; pass {what}.")
    return value


def entry(value: Any, name: str) -> dict[str, Any]:
    """What a file says about a layer, if it is a mapping.

    Raises
    ------
    FileFormatError
        If it is something else.
    """
    if not isinstance(value, dict):
        raise FileFormatError(f"what the file says about {name!r} is no mapping; correct it.")
    return value


def whole(value: Any, what: str) -> int:
    """An integer of a file.

    Raises
    ------
    FileFormatError
        If it is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise FileFormatError(f"{what} in the file is {value!r}; write an integer.")
    return value


def flag(value: Any, what: str) -> bool:
    """A truth value of a file.

    Raises
    ------
    FileFormatError
        If it is something else.
    """
    if not isinstance(value, bool):
        raise FileFormatError(f"{what} in the file is {value!r}; write true or false.")
    return value
