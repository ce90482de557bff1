"""Checks of plain arguments: whole numbers, real numbers, flags, choices and collections."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from layerbounds.exceptions import InputError

#: Bounds that keep every seed and counter within what compiled code counts with.
LARGEST_COUNT = 2**62
MOST_THREADS = 1024


def whole_number(value: Any, what: str, least: int = 0, most: int = LARGEST_COUNT) -> int:
    """An integer from ``least`` to ``most``; truth values and floats are none.

    Raises
    ------
    InputError
        If it is something else.
    """
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)) or not least <= value <= most:
        bounds = f"from {least} to {most}" if most < LARGEST_COUNT else f"≥ {least}"
        raise InputError(f"{what} is {shown(value)}; choose an integer {bounds}.")
    return int(value)


def real_number(value: Any, what: str, least: float = -math.inf, most: float = math.inf, unit: str = "number") -> float:
    """A finite number from ``least`` to ``most``; truth values and text are none.

    Raises
    ------
    InputError
        If it is something else.
    """
    number = math.nan
    if isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
    if not (math.isfinite(number) and least <= number <= most):
        bounds = f" ≥ {least:g}" if most == math.inf else f" in [{least:g}, {most:g}]"
        raise InputError(f"{what} is {shown(value)}; pass a finite {unit}{bounds if least > -math.inf else ''}.")
    return number


def flag(value: Any, what: str) -> bool:
    """True or False: words and numbers are not guessed at.

    Raises
    ------
    InputError
        If it is something else.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise InputError(f"{what} is {shown(value)}; pass True or False.")
    return bool(value)


def one_of(value: Any, what: str, choices: Sequence[str]) -> str:
    """One of the words of a list.

    Raises
    ------
    InputError
        If it is something else.
    """
    if not isinstance(value, str) or value not in choices:
        known = ", ".join(repr(c) for c in choices[:-1]) + f" or {choices[-1]!r}" if len(choices) > 1 else choices[0]
        raise InputError(f"{what} is {shown(value)}; choose {known}.")
    return value


def members(value: Any, what: str) -> list[Any]:
    """The members of a list, tuple, array or other iterable; text and mappings are none.

    Raises
    ------
    InputError
        If it is something else.
    """
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise InputError(f"{what} is {shown(value)}; pass a list.")
    try:
        return list(value)
    except TypeError:
        # An array without dimensions calls itself iterable.
        raise InputError(f"{what} is {shown(value)}; pass a list.") from None


def as_mapping(value: Any, what: str) -> dict[str, Any]:
    """A mapping from names, or None for an empty one, as a dictionary.

    Raises
    ------
    InputError
        If it is something else.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise InputError(f"{what} is {shown(value)}; pass a mapping from names.")
    return dict(value)


def as_path(value: Any, what: str) -> Path:
    """A path from text or a path object.

    Raises
    ------
    InputError
        If it is something else, or a name that the system does not take.
    """
    text = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(text, str) or not text or "\0" in text:
        raise InputError(f"{what} is {shown(value)}; pass the path of a file.")
    try:
        Path(text).exists()
    except OSError as error:
        raise InputError(f"{what} is {shown(value)}, which is no usable file name ({error.strerror}).") from error
    return Path(text)


def shown(value: Any) -> str:
    """A value for an error message: short, on one line."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # repr of foreign objects, and of integers of more than 4300 digits
        return f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"a {type(value).__name__}"
