"""Certified minima of many rows that share a Gram matrix and a minorant: the proof and the products are done once.

A family's folder in `layerbounds.bounds` may have a module ``rows`` with a table ``ROWS`` from (allowed set, dual) to a
function. Rows without one are bounded one by one (`layerbounds.bounds.least`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from layerbounds.arrays import Float
from layerbounds.bounds.least import family_table
from layerbounds.problems.allowed import AllowedSet
from layerbounds.proofs import Dual

#: From the Gram matrix, the targets, the allowed sets and the dual points, which share their minorant, to the bounds of
#: the rows.
LeastRows = Callable[[Float, Float, Sequence[Any], Sequence[Any]], Float]


def rows_function(allowed: AllowedSet, dual: Dual) -> LeastRows | None:
    """What bounds many rows of a kind at once; None where nothing does."""
    return family_table("rows", "ROWS").get((type(allowed), type(dual)))


def load_tables() -> None:
    """Import what every family certifies with, so that it counts to no channel's time."""
    for module, name in (("least", "LEAST"), ("rows", "ROWS")):
        family_table(module, name)
