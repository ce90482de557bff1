"""Checks of plain arguments: whole numbers, real numbers, numbers of bytes, flags, choices and collections."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from layerbounds.exceptions import InputError
from layerbounds.mistaken import instead
from layerbounds.suggestions import did_you_mean

#: Bounds that keep every seed and counter within what compiled code counts with.
LARGEST_COUNT = 2**62
MOST_THREADS = 1024

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


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
        raise InputError(f"{what} is {shown(value)}; {did_you_mean(value, choices)}choose {known}.")
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
    if (mistake := instead("path", value)) is not None:
        raise InputError(f"{what} is {mistake}")
    text = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(text, str) or not text or "\0" in text:
        raise InputError(f"{what} is {shown(value)}; pass the path of a file.")
    try:
        Path(text).exists()
    except OSError as error:
        raise InputError(f"{what} is {shown(value)}, which is no usable file name ({error.strerror}).") from error
    return Path(text)


def parse_bytes(value: int | str | None) -> int | None:
    """Read a number of bytes such as ``2000000000``, ``"2GB"`` or ``"2GiB"``.

    Raises
    ------
    InputError
        If it is not a positive number of bytes.
    """
    if value is None:
        return None
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([kmgt]?i?)b?\s*", value.lower())
        if match is None or match.group(2) not in _UNITS:
            raise InputError(f"memory_limit is {shown(value)}; write a number of bytes such as 500MB, 2GB or 2GiB.")
        value = int(float(match.group(1)) * _UNITS[match.group(2)])
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise InputError(f"memory_limit is {shown(value)}; pass a positive number of bytes.")
    return value


def thread_count(jobs: Any) -> int:
    """Number of threads: as given, or all cores.

    Raises
    ------
    InputError
        If it is no positive integer.
    """
    return os.cpu_count() or 1 if jobs is None else whole_number(jobs, "jobs", 1, MOST_THREADS)


def check_functions(**functions: Any) -> None:
    """Refuse what cannot be called; None is no function."""
    for name, value in functions.items():
        if value is not None and not callable(value):
            raise InputError(f"{name} is {shown(value)}; pass a function.")


def readable(size: int) -> str:
    """A number of bytes for people."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size} B"


def shown(value: Any) -> str:
    """A value for an error message: short, on one line."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # repr of foreign objects, and of integers of more than 4300 digits
        return f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"a {type(value).__name__}"
