"""Certified minima of many rows that share a Gram matrix and a minorant: the proof and the products are done once.

A family's folder in `layerbounds.bounds` may have a module ``rows`` with a table ``ROWS`` from (allowed set, dual) to a
function. Rows without one are bounded one by one (`layerbounds.bounds.least`).
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Sequence
from typing import Any

import layerbounds.bounds as folders
from layerbounds.arrays import Float
from layerbounds.problems.allowed import AllowedSet
from layerbounds.proofs import Dual

#: From the Gram matrix, the targets, the allowed sets and the dual points, which share their minorant, to the bounds of
#: the rows.
LeastRows = Callable[[Float, Float, Sequence[Any], Sequence[Any]], Float]


@functools.cache
def _table() -> dict[tuple[type, type], LeastRows]:
    table: dict[tuple[type, type], LeastRows] = {}
    for folder in pkgutil.iter_modules(folders.__path__):
        name = f"{folders.__name__}.{folder.name}.rows"
        if folder.ispkg and importlib.util.find_spec(name) is not None:
            table.update(importlib.import_module(name).ROWS)
    return table


def rows_function(allowed: AllowedSet, dual: Dual) -> LeastRows | None:
    """What bounds many rows of a kind at once; None where nothing does."""
    return _table().get((type(allowed), type(dual)))
