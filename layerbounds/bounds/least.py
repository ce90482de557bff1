"""Certified minima: a lower bound over an allowed set from a dual point, one function for each family and dual.

For any point z and any B ⪯ H that is proven, with h = H(z − w),

    f(v) ≥ f(z) + min over allowed v of 2hᵀ(v − z) + (v − z)ᵀB(v − z),

and what that minimum is depends on the allowed set alone. A family's folder in `layerbounds.bounds` has a module
``least`` with a table ``LEAST`` from (allowed set, dual) to a function.
"""

from __future__ import annotations

import functools
import importlib.util
import pkgutil
from collections.abc import Callable
from typing import Any

import layerbounds.bounds as folders
from layerbounds.arrays import Float
from layerbounds.exceptions import CertificationError
from layerbounds.problems.allowed import AllowedSet
from layerbounds.proofs import Dual, Leaf

#: From the Gram matrix, the target, the allowed set and the dual point (and a metric, if there is one) to the bound.
Least = Callable[..., float]


@functools.cache
def family_table(module: str, name: str) -> dict[tuple[type, type], Any]:
    """The entries of all families: of the table ``name`` in the module of each folder that has it."""
    table: dict[tuple[type, type], Any] = {}
    for folder in pkgutil.iter_modules(folders.__path__):
        path = f"{folders.__name__}.{folder.name}.{module}"
        if folder.ispkg and importlib.util.find_spec(path) is not None:
            table.update(getattr(importlib.import_module(path), name))
    return table


def _table() -> dict[tuple[type, type], Least]:
    return family_table("least", "LEAST")


def has_leaves(allowed: AllowedSet) -> bool:
    """Whether points that a search has visited stand for more than themselves: `least` of a `Leaf` is their error."""
    return (type(allowed), Leaf) in _table()


def least(gram: Float, target: Float, allowed: AllowedSet, dual: Dual, metric: Float | None = None) -> float:
    """Lower bound on (v − w)ᵀH(v − w) over an allowed set, every rounding error charged.

    Where a problem has a metric, the function is called with it as one more argument.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    target : ndarray of shape (n,) or (rows, n)
        w.
    allowed : AllowedSet
    dual : DualPoint or BlockDual
    metric : ndarray of shape (rows, rows), optional
        Q, with which errors of several rows count tr(Q (v − w) H (v − w)ᵀ).

    Raises
    ------
    CertificationError
        If the dual point is malformed, or of another family.
    """
    function = _table().get((type(allowed), type(dual)))
    if function is None:
        raise CertificationError("the backend returned a dual point of another kind of problem.")
    if not dual.is_valid(len(gram)):
        raise CertificationError("the backend returned an invalid dual point.")
    return function(gram, target, allowed, dual) if metric is None else function(gram, target, allowed, dual, metric)
