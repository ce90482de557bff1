"""The tree that proves a lower end of masks of units, or of output channels, found anew below a known cut."""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np

from layerbounds.certificates.dual import Parts
from layerbounds.certificates.log import LeafLog, TooLargeError, rounded
from layerbounds.certificates.rows import mask_form
from layerbounds.problems.kept_rows import KeptRows
from layerbounds.problems.tasks import Task
from layerbounds.proofs import Control, Evidence
from layerbounds.search.pruning.mask_run import first_masks
from layerbounds.search.pruning.masks import MaskNode, MaskSearch

#: Nodes of one tree.
MOST_NODES = 40_000
#: What float64, and shorter points, may take off a bound: relative, and of the terms that it adds up.
MARGIN, NOISE = 1e-10, 1e-12


def mask_leaves(task: Task[Any], evidence: Evidence, lower: float) -> Parts:
    """The leaves of a depth-first tree over units, all of which reach ``lower``; nothing if it grows large.

    Parameters
    ----------
    task : Task
        Whose kept weights stay as they are.
    evidence : Evidence
        What the lower end was derived from.
    lower : float
        The claimed lower end without the constant.
    """
    control = Control(math.inf, 0.0, MOST_NODES, 0, 1, threading.Event())
    starts = [] if isinstance(task.allowed, KeptRows) else first_masks(task)
    form = mask_form(task)
    search = MaskSearch(form, control, starts)
    search.first_incumbents()
    log, cut = LeafLog(short=False), lower * (1.0 + MARGIN) + NOISE * form.size + search.allowance
    open_nodes: list[tuple[int, MaskNode]] = [(0, search.root())]
    diagonal = log.minorant(search.d)
    try:
        for _ in range(MOST_NODES):
            if not open_nodes:
                return log.tensors()
            k, node = open_nodes.pop()
            open_nodes += _expanded(search, log, k, node, cut, diagonal)
    except TooLargeError:
        pass
    return {}


def _expanded(
    search: MaskSearch, log: LeafLog, k: int, node: MaskNode, cut: float, diagonal: int
) -> list[tuple[int, MaskNode]]:
    """Bound a node, and close or divide it."""
    before = node.status.copy()
    value, children = search.expand(node, 0.0, cut)
    if not children:
        decided = value < cut
        kept = (node.status == 1).astype(np.float64)
        log.close(k, log.evidence(kept if decided else rounded(node.z), diagonal))
        return []
    fixed = np.flatnonzero(node.status != before)
    if len(fixed):
        number = log.evidence(rounded(node.z), diagonal)
        # What is dropped as its group is full comes after what fills it.
        for i in fixed[np.argsort(-node.status[fixed], kind="stable")]:
            dropped, kept_place = log.split(k, int(i))
            k, other = (kept_place, dropped) if node.status[i] == 1 else (dropped, kept_place)
            log.close(other, number)
    if len(children) == 1:
        return [(k, children[0])]
    branch = int(np.flatnonzero((children[0].status == -1) & (children[1].status == 1))[0])
    return list(zip(log.split(k, branch), children, strict=True))
