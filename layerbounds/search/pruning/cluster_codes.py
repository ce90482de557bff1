"""The sets that the clusters of a node may still keep, and clusters merged where few of their joint sets are left."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from layerbounds.arrays import Float, Int
from layerbounds.bounds.minorants.clusters import ClusterMinorant, join_clusters
from layerbounds.kernels.pruning import cluster_codes
from layerbounds.search.pruning.subset_search import Flags


@dataclass(frozen=True, eq=False)
class Codes:
    """Sets of free inputs, a list for each cluster; see `kernels.clusters`.

    Attributes
    ----------
    status : ndarray of int8, shape (n,)
        Of the inputs at the node whose free inputs the bits stand for.
    base : ndarray of int64, shape (clusters + 1,)
    code : ndarray of int64, shape (base[-1],)
    """

    status: Flags
    base: Int
    code: Int

    def restrict(self, minorant: ClusterMinorant, status: Flags) -> Codes | None:
        """Those that agree with a descendant's status; None where a cluster has none left."""
        if np.array_equal(status, self.status):
            return self
        base, code = np.empty_like(self.base), np.empty_like(self.code)
        if not cluster_codes.inherit(
            minorant.first, minorant.member, self.status, status, self.base, self.code, base, code
        ):
            return None
        return Codes(status.copy(), base, code[: base[-1]])


def every_code(minorant: ClusterMinorant, status: Flags, group: Int, room: Int) -> Codes:
    """All sets that fit the pattern."""
    first, member = minorant.first, minorant.member
    groups = len(first) - 1
    free = np.add.reduceat(status[member] == 0, first[:-1]).astype(np.int64)
    kept = np.add.reduceat(status[member] == 1, first[:-1]).astype(np.int64)
    place = np.concatenate(
        [np.argsort(-status[member[first[g] : first[g + 1]]], kind="stable") for g in range(groups)]
    ).astype(np.int64)
    base, code = np.empty(groups + 1, np.int64), np.empty(int(np.sum(1 << free)), np.int64)
    cluster_codes.every_code(first, member, place, kept, free, group, room, len(room) == 1, base, code)
    return Codes(status.copy(), base, code[: base[-1]].copy())


def merge(
    minorant: ClusterMinorant, codes: Codes, cost: Float, link: Float, gap: float, most: int
) -> tuple[ClusterMinorant, Codes]:
    """Merge clusters, two at a time, as long as no more than ``most`` codes are left.

    The joint codes are the pairs whose costs add up to at most the gap. A merged block starts as the two blocks side by
    side: the bound stays, and has more room to grow.

    Parameters
    ----------
    minorant : ClusterMinorant
    codes : Codes
    cost : ndarray of shape (len(codes.code),)
        What each code adds to the bound.
    link : ndarray of shape (n, n)
        How strongly inputs depend on one another, such as squared partial correlations.
    gap : float
        What separates the bound from the cut.
    most : int
    """
    first, member, status = minorant.first, minorant.member, codes.status
    parts = [[g] for g in range(len(first) - 1)]
    lists = [(codes.code[a:b], cost[a:b]) for a, b in zip(codes.base[:-1], codes.base[1:], strict=True)]
    holds = np.zeros((len(parts), len(status)))
    own = np.repeat(np.arange(len(parts)), np.diff(first))
    holds[own, member] = status[member] == 0
    bits = holds.sum(axis=1).astype(np.int64)
    width = np.bincount(own, weights=status[member] >= 0, minlength=len(parts)).astype(np.int64)
    strength = holds @ link @ holds.T
    ranked = [np.sort(paid) for _, paid in lists]
    base = codes.base
    while len(parts) > 1:
        g, h, count = cluster_codes.choose_pair(base, np.concatenate(ranked), width, strength, gap, most)
        if g < 0:
            break
        code, paid = np.empty(count, np.int64), np.empty(count)
        (code_g, cost_g), (code_h, cost_h) = lists[g], lists[h]
        found = cluster_codes.join(code_g, cost_g, code_h, cost_h, bits[h], gap, code, paid)
        lists[g] = (code[:found], paid[:found])
        ranked[g] = np.sort(lists[g][1])
        parts[g] += parts[h]
        bits[g] += bits[h]
        width[g] += width[h]
        strength[g] += strength[h]
        strength[:, g] += strength[:, h]
        del lists[h], ranked[h], parts[h]
        bits, width = np.delete(bits, h), np.delete(width, h)
        strength = np.delete(np.delete(strength, h, 0), h, 1)
        base = np.concatenate([[0], np.cumsum([len(code) for code, _ in lists])]).astype(np.int64)
    if len(parts) == len(first) - 1:
        return minorant, codes
    merged = join_clusters(minorant, parts, status)
    if merged is None:
        return minorant, codes
    return merged, Codes(status, base, np.concatenate([code for code, _ in lists]))
