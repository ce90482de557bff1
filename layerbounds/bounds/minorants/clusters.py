"""Block-diagonal minorants of clusters of correlated inputs, for the compiled block dual (docs/pruning-bounds.md)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from layerbounds.arrays import Float, Int
from layerbounds.bounds.minorants.semidefinite import are_positive_semidefinite, is_positive_semidefinite
from layerbounds.kernels.factorization import cholesky, gamma, inverted, smallest_eigenvalues, symmetric_inverse
from layerbounds.kernels.pruning.cluster_minorant import link_clusters

#: Factors tried where a minorant is too close to the boundary of the cone for its proof.
SHRINKS = (1.0, 0.97, 0.8)
#: Relative rounding of a saving above which a minorant is not used.
LOSS = 1e-6


@dataclass(frozen=True, eq=False)
class ClusterMinorant:
    """A proven block-diagonal minorant.

    Attributes
    ----------
    first, member : ndarray of int64
        Cluster g holds the inputs ``member[first[g]:first[g + 1]]``.
    block : ndarray of shape (clusters, m, m)
        In the order of ``member``, padded with zeros.
    loss, smallest : ndarray of shape (clusters,)
        Relative rounding of a saving; proven lower bounds of the smallest eigenvalues.
    """

    first: Int
    member: Int
    block: Float
    loss: Float
    smallest: Float

    def matrix(self, position: Int, size: int) -> Float:
        """As one matrix of the inputs whose ``position`` is not −1."""
        full = np.zeros((size, size))
        rows, pair = _rows(self.first, self.member, self.block, position)
        full[_spread(rows, pair)] = self.block[pair]
        return full


def _rows(first: Int, member: Int, block: Float, position: Int) -> tuple[Int, np.ndarray]:
    """Rows of each cluster's inputs, −1 where there is none, and which pairs of them are there."""
    groups, widest, _ = block.shape
    rows = np.full((groups, widest), -1)
    rows[np.arange(widest) < np.diff(first)[:, None]] = position[member]
    return rows, (rows[:, :, None] >= 0) & (rows[:, None, :] >= 0)


def _spread(rows: Int, pair: np.ndarray) -> tuple[Int, Int]:
    return np.broadcast_to(rows[:, :, None], pair.shape)[pair], np.broadcast_to(rows[:, None, :], pair.shape)[pair]


def prove_clusters(
    gram: Float, first: Int, member: Int, block: Float, active: Int, position: Int
) -> ClusterMinorant | None:
    """Prove a block-diagonal matrix on the active inputs, lowered where needed; None where that fails.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    first, member, block
        See `ClusterMinorant`.
    active : ndarray of int64
        Inputs that count.
    position : ndarray of int64, shape (n,)
        Index of each input in ``active``, −1 for others.
    """
    widest = block.shape[1]
    matrix = gram.take(active, 0).take(active, 1)
    rows, pair = _rows(first, member, block, position)
    at = _spread(rows, pair)
    block = 0.5 * (block + block.transpose(0, 2, 1))
    for shrink in SHRINKS:
        difference = matrix.copy()
        difference[at] -= shrink * block[pair]
        if is_positive_semidefinite(difference):
            break
    else:
        return None
    block = np.where(pair, shrink * block, 0.0)
    diagonal = np.einsum("gii->gi", block)
    largest = np.where(diagonal.any(axis=1), diagonal.max(axis=1), 1.0)
    padded = block.copy()
    np.einsum("gii->gi", padded)[:] = np.where(rows >= 0, diagonal, largest[:, None])
    smallest: Float = 0.5 * smallest_eigenvalues(padded)
    if not np.all(smallest > 0):
        return None
    np.einsum("gii->gi", padded)[:] -= smallest[:, None]
    if not are_positive_semidefinite(padded):
        return None
    # A saving by Schur complements is exact for a block changed by at most 4·m·γ_{3m+8} of its diagonal's size.
    loss = _loss(widest, largest, smallest)
    if np.any(loss > LOSS):
        return None
    return ClusterMinorant(first, member, np.ascontiguousarray(block), loss, smallest)


def _loss(widest: int, largest: Float, smallest: Float) -> Float:
    return np.asarray(5.0 * widest * gamma(3 * widest + 8) * largest / smallest + 2.0 * gamma(widest + 8))


def join_clusters(minorant: ClusterMinorant, parts: list[list[int]], status: np.ndarray) -> ClusterMinorant | None:
    """The same minorant with some clusters joined, without dropped inputs; None where savings would round too much.

    Parameters
    ----------
    minorant : ClusterMinorant
    parts : list of lists of int
        The clusters that make up each new one.
    status : ndarray of int8, shape (n,)
        −1 for dropped inputs.
    """
    first, member = minorant.first, minorant.member
    left = [np.flatnonzero(status[member[first[g] : first[g + 1]]] >= 0) for g in range(len(first) - 1)]
    size = [sum(len(left[g]) for g in part) for part in parts]
    block = np.zeros((len(parts), max(size), max(size)))
    members = []
    for x, part in enumerate(parts):
        at = 0
        for g in part:
            end = at + len(left[g])
            block[x, at:end, at:end] = minorant.block[g][np.ix_(left[g], left[g])]
            members.append(member[first[g] + left[g]])
            at = end
    smallest = np.array([min(minorant.smallest[g] for g in part) for part in parts])
    largest = np.einsum("gii->gi", block).max(axis=1)
    loss = _loss(max(size), np.where(largest > 0, largest, 1.0), smallest)
    if np.any(loss > LOSS):
        return None
    return ClusterMinorant(
        np.concatenate([[0], np.cumsum(size)]).astype(np.int64), np.concatenate(members), block, loss, smallest
    )


def partial_correlations(gram: Float, active: Int) -> Float | None:
    """Squared partial correlations of the active inputs, zero on the diagonal; None where H is singular."""
    factor = cholesky(np.ascontiguousarray(gram[np.ix_(active, active)]))
    if factor is None:
        return None
    inverse = symmetric_inverse(factor)
    scale = np.sqrt(np.diag(inverse))
    link: Float = (inverse / np.outer(scale, scale)) ** 2
    np.fill_diagonal(link, 0.0)
    return link


def start_clusters(gram: Float, parts: list[Int], active: Int) -> ClusterMinorant | None:
    """0.9/clusters times the Schur complements ((H⁻¹)_gg)⁻¹, each of which lies below H; None if H is singular."""
    factor = cholesky(np.ascontiguousarray(gram[np.ix_(active, active)]))
    if factor is None:
        return None
    position = np.full(len(gram), -1)
    position[active] = np.arange(len(active))
    inverse = symmetric_inverse(factor)
    widest = max(len(p) for p in parts)
    block = np.zeros((len(parts), widest, widest))
    for g, p in enumerate(parts):
        at = position[p]
        schur = inverted(inverse[np.ix_(at, at)])
        if schur is None:
            return None
        block[g, : len(p), : len(p)] = 0.9 / len(parts) * schur
    first = np.concatenate([[0], np.cumsum([len(p) for p in parts])]).astype(np.int64)
    return prove_clusters(gram, first, np.concatenate(parts), block, active, position)


def make_clusters(gram: Float, most: int, group: Int, active: Int) -> list[Int] | None:
    """Clusters of at most ``most`` inputs, merged by strong partial correlations; groups of the pattern stay together.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    most : int
    group : ndarray of int64, shape (n,)
        With more than one group, each group lies in one cluster; larger groups are clusters of their own.
    active : ndarray of int64
        Inputs to partition.

    Returns
    -------
    list of ndarray or None
        None where the Gram matrix is numerically singular.
    """
    link = partial_correlations(gram, active)
    if link is None:
        return None
    own = np.arange(len(active)) if group.max() == 0 else np.unique(group[active], return_inverse=True)[1]
    member = np.zeros((int(own.max()) + 1, len(active)))
    member[own, np.arange(len(active))] = 1.0
    link = member @ link @ member.T
    label = link_clusters(link, np.bincount(own).astype(np.int64), most)[own]
    return [active[label == x] for x in np.unique(label)]
