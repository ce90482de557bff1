"""What is said about where a layer comes from, made ready for JSON without losing anything."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

#: Depth beyond which nested values are stored as text: deeper than anything written by hand, and than any cycle.
_DEPTH = 32


def json_ready(value: Mapping[str, Any], layer: str) -> dict[str, Any]:
    """A copy that JSON can hold: arrays and tuples become lists, paths their text.

    Parameters
    ----------
    value : mapping
    layer : str
        The layer's name, for warnings.

    Warns
    -----
    UserWarning
        Where something has no counterpart in JSON (an object, NaN) and is stored as text.
    """
    texts: list[str] = []
    plain: dict[str, Any] = _plain(value, "", texts, 0)
    if texts:
        warnings.warn(
            f"provenance of layer {layer!r}: JSON has no counterpart of {', '.join(texts[:5])}"
            f"{', …' if len(texts) > 5 else ''}, which is stored as text",
            stacklevel=3,
        )
    return plain


def _plain(value: Any, place: str, texts: list[str], depth: int) -> Any:
    if isinstance(value, np.generic):
        # A long double is its own item.
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)):
        # Subclasses (enumerations, NumPy's strings) become what JSON reads back.
        return value if value is None or type(value) in (bool, int, str) else _base(value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufU":
        return _plain(value.tolist(), place, texts, depth)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if isinstance(value, os.PathLike) and isinstance(os.fspath(value), str):
        return os.fspath(value)
    if depth < _DEPTH:
        if isinstance(value, Mapping):
            return _object(value, place, texts, depth)
        if isinstance(value, (list, tuple)):
            return [_plain(item, f"{place}[{i}]", texts, depth + 1) for i, item in enumerate(value)]
        if isinstance(value, (set, frozenset)):
            return _plain(sorted(value, key=repr), place, texts, depth)
    texts.append(f"{place} ({type(value).__name__})")
    return str(value)


def _base(value: int | str) -> int | str:
    return str.__str__(value) if isinstance(value, str) else int(value)


def _object(value: Mapping[Any, Any], place: str, texts: list[str], depth: int) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for key, item in value.items():
        name = _base(key) if isinstance(key, str) else str(key)
        while name in plain:
            # 1 and "1" are two keys here and would be one there.
            name = f"{name}'"
        plain[str(name)] = _plain(item, f"{place}.{name}" if place else str(name), texts, depth + 1)
    return plain
