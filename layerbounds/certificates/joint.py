"""Proofs of lower ends of levels on supports, and of masks of single inputs, found anew below a known cut."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from layerbounds.arrays import Float
from layerbounds.certificates.dual import Parts
from layerbounds.certificates.joint_leaves import JointTree
from layerbounds.kernels.joint.preparation import minorants_by_depth
from layerbounds.problems.levels import Levels
from layerbounds.problems.levels_on_support import LevelsOnSupport
from layerbounds.problems.support import Support
from layerbounds.problems.tasks import Task
from layerbounds.proofs import Control, Evidence
from layerbounds.search.frontier import Incumbent
from layerbounds.search.joint.deep import NEARLY, WIDTHS, Part, Start
from layerbounds.search.joint.enumeration import SWEEPS, Enumeration
from layerbounds.search.joint.root import Root, find_root, first_minorant, gram_parts
from layerbounds.search.joint.tree import JointSearch, Node, whole
from layerbounds.search.joint.units import JointUnits, joint_units

#: What is tried in turn: enumerations of at most so many nodes with so many smoothings, then a tree of at most so many.
ATTEMPTS = ((20_000, 6, 500), (200_000, 6, 3_000), (4_000_000, 2, 30_000), (16_000_000, 2, 30_000))

#: Problems of more inputs than this get fewer nodes.
USUAL = 64


@dataclass(eq=False)
class Known:
    """A problem and its root below a cut, in the units of the search.

    Attributes
    ----------
    units : JointUnits
    search : JointSearch
    node : Node
    root : Root
    cut : float
        The claimed lower end.
    """

    units: JointUnits
    search: JointSearch
    node: Node
    root: Root
    cut: float


def known_root(task: Task[LevelsOnSupport], lower: float) -> Known:
    """The root; ``lower`` is without the constant."""
    units = joint_units(task)
    minorant = first_minorant(units, gram_parts(units.gram))
    node = whole(units, minorant.d)
    cut = lower * units.factor**2
    root = find_root(units, minorant, node.lists, cut, lambda: False)
    node.d, node.x, node.price = root.d, root.x, root.price
    control = Control(math.inf, 0.0, None, 0, 1, threading.Event())
    search = JointSearch(units, control, minorant, Incumbent(units.energy, np.zeros(units.size)))
    return Known(units, search, node, root, cut)


def _proof(task: Task[LevelsOnSupport], levels: Float, lower: float) -> Parts:
    """As `joint_proof`, with the levels of each weight as checkers number them."""
    known = known_root(task, lower)
    if not np.any(known.root.d > 0.0):
        return {}
    part = known.search.below(known.node, known.root.bound, known.cut) if known.units.single else None
    widths = _widths(known, part) if part is not None else []
    tree = JointTree(known.units, known.search.minorant, known.node, known.cut, levels)
    share = min((USUAL / known.units.size) ** 2, 1.0)
    for nodes, many, leaves in ATTEMPTS:
        parts = {} if part is None else _enumeration(known, part, widths[:many], int(share * nodes))
        parts = parts or tree.run(int(share * leaves))
        if parts:
            return parts
    return {}


def joint_proof(task: Task[LevelsOnSupport], evidence: Evidence, lower: float) -> Parts:
    """An enumeration, or the leaves of a tree, whichever needs less; nothing where both grow large.

    Parameters
    ----------
    task : Task
    evidence : Evidence
        What the lower end was derived from.
    lower : float
        The claimed lower end without the constant.
    """
    levels = task.allowed.levels.values
    return _proof(task, np.sort(np.concatenate([levels, np.zeros((len(levels), 1))], axis=1), axis=1), lower)


def mask_proof(task: Task[Any], evidence: Evidence, lower: float) -> Parts:
    """The same for a mask of single inputs: one level each."""
    allowed: Support = task.allowed
    if len(allowed.structure.group) != len(task.gram):
        return {}
    n = len(task.gram)
    levels = Levels(allowed.original[:, None], np.ones((n, 1)), allowed.original, np.zeros(n), False)
    return _proof(replace(task, allowed=LevelsOnSupport(levels, allowed.structure)), levels.values, lower)


def _widths(known: Known, part: Part) -> list[float]:
    """Smoothings, those first that promise few points below the cut (`layerbounds.search.joint.deep.Deep.begin`)."""
    scale = (known.cut - known.root.bound) / math.sqrt(known.units.size)
    widths = [width * scale for width in WIDTHS]
    points = [max((known.cut - part.smoothed(width, known.cut).value) / width, 0.0) for width in widths]
    best = next(k for k, count in enumerate(points) if count <= NEARLY * min(points))
    return sorted(widths, key=lambda width: abs(math.log(width / widths[best])))


def _enumeration(known: Known, part: Part, widths: list[float], most: int) -> Parts:
    """The search with the fewest nodes, of at most so many."""
    best: Parts = {}
    for width in widths:
        start = part.smoothed(width, known.cut)
        assert known.search.basis is not None
        tried = Enumeration(
            known.search.basis, part.lists, start.x, known.root.d, start.price, known.cut, known.search.shift
        )
        if tried.run(most):
            best, most = _stored(known, tried, start), max(tried.nodes, 1)
    return best


def _stored(known: Known, search: Enumeration, start: Start) -> Parts:
    """Its order, in which inputs that are decided are fixed first, and diagonals for each depth."""
    units, free = known.units, search.inputs
    n, m = units.size, len(free)
    order = np.concatenate([free, np.setdiff1d(np.arange(n), free)]).astype(np.int64)
    rows = np.zeros((n + 1, n))
    for k in range(n + 1):
        rows[k, :k] = known.root.d[order[:k]]
    if m > 1:
        inner = np.zeros((m + 1, m))
        inner[m] = rows[m, :m]
        minorants_by_depth(np.ascontiguousarray(units.gram[np.ix_(free, free)]), search.gaps**2, SWEEPS, inner)
        rows[1:m, :m] = inner[1:m]
    return {"order": order, "z": start.x / units.factor, "price": start.price, "minorants": rows}
