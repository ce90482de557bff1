"""Leaves of a tree over units that several rows keep or drop together, with refit, bounded in float64.

With U any point, zero for what is dropped, G = H(U − W) and blocks B ⪯ H of the units, C = BU − G, the rows have at
least the error Σ U∘C − W∘G less what kept units save, ‖B⁻¹ᐟ²C‖² each. A point comes from weights 0 ≤ ζ ≤ 1 of the
units: U is zero in those of weight 0, which are dropped, and else solves (H + B(1/ζ − 1))U = HW. Units of weight 1 are
kept, and count with a millionth of their block, which leaves more to the others. What rounding can add to a bound is
derived in docs/certificates.md.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from layerbounds_verify.bounds import is_semidefinite
from layerbounds_verify.exact import RefusedError, U, fraction, integers, matrix_integers, power, product
from layerbounds_verify.grids import refit_saving
from layerbounds_verify.leaves import settle, tree, within
from layerbounds_verify.reader import Structure

#: How the blocks of kept units count: a power of four, so that nothing is rounded.
_KEPT = 2.0**-20
#: Beside numbers up to this size and down to its inverse underflow is nothing.
_LARGEST = 1e100


def over_units(gram: Any, target: Any, structure: Structure, parts: Any, claim: Fraction) -> Fraction:
    """The least bound of all leaves; those at which all is decided are computed exactly where float64 does not reach.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    target : ndarray of shape (rows, n)
    structure : Structure
    claim : Fraction
        What is to be reached.
    parts : mapping
        The tree; ``weights`` of shape (evidence, units), the ``minorant`` of each, and ``values``, of shape (minorants,
        entries): the lower triangles of a minorant's blocks, row by row.
    """
    evidence, status, _ = tree(parts, len(structure.group), 0, 0)
    zeta, use, values = parts["weights"].astype(np.float64), parts["minorant"], parts["values"].astype(np.float64)
    if np.any((evidence < 0) | (evidence >= len(zeta))) or np.any((use < 0) | (use >= len(values))):
        raise RefusedError("a leaf of its tree names evidence, or evidence a minorant, that is not there")
    if zeta.shape != (len(use), len(structure.group)) or not np.all((zeta == 0.0) | (zeta >= 1e-200) & (zeta <= 1.0)):
        raise RefusedError("its evidence has not one weight for each unit, from 0 to 1")
    settle(status, structure, [])
    order = np.argsort(structure.unit, kind="stable")
    rows = _Rows(gram[np.ix_(order, order)], target[:, order].T, structure.unit[order], values)
    bounds, many, blocks, current = [], len(structure.capacity), None, -1
    for e in sorted(np.unique(evidence), key=use.__getitem__):
        own = status[evidence == e]
        if np.any((own >= 0) & (zeta[e] == 0.0)):
            raise RefusedError("a leaf of its tree names evidence of which a unit is dropped that may be kept there")
        if use[e] != current:
            blocks, current = rows.blocks(values[use[e]]), use[e]
        value, saving, charge = rows.at(zeta[e], blocks)
        bound, possible = within(structure, own, np.full(len(own), value), np.tile(saving, (len(own), 1)))
        for leaf in np.flatnonzero(possible):
            least = Fraction(float(bound[leaf] - charge))
            kept = own[leaf] >= 0
            if least < claim and np.all(np.bincount(structure.group[kept], minlength=many) <= structure.capacity):
                least = _decided(gram, target, kept[structure.unit])
            bounds.append(least)
    return min(bounds)


def _decided(gram: Any, target: Any, kept: Any) -> Fraction:
    """The error of weights on some inputs, from below: what dropping everything costs less what these save."""
    (whole, b), a = matrix_integers(gram), power(target)
    w = integers(target, a).T
    pull = product(whole, w)
    return fraction((w * pull).sum() - refit_saving(gram, whole, pull, kept, a, b), 2 * a + b)


class _Rows:
    """H and W with inputs ordered by units."""

    def __init__(self, gram: Any, target: Any, unit: Any, values: Any) -> None:
        self.gram, self.target, self.unit = gram, target, unit
        self.pull, self.size = gram @ target, np.abs(gram)
        self.first = np.searchsorted(unit, np.arange(unit[-1] + 1))
        # Where the entries of blocks are.
        self.inside = np.tril(unit[:, None] == unit)
        sizes = [np.abs(x).ravel() for x in (np.diag(gram), 1.0 / np.diag(gram), target, values)]
        if values.shape[1:] != (np.count_nonzero(self.inside),) or not np.all(np.concatenate(sizes) < _LARGEST):
            raise RefusedError("its minorants have not one entry for each pair of inputs of a unit, or too large ones")

    def blocks(self, entries: Any) -> tuple[Any, Any, Any]:
        """B, R with B⁻¹ ⪯ RᵀR/(1 − δ), and δ of each unit, from |R B Rᵀ − I| ≤ δ."""
        matrix, root = np.zeros((2, *self.gram.shape))
        matrix[self.inside] = entries
        matrix += np.tril(matrix, -1).T
        width = np.diff([*self.first, len(self.unit)])
        delta = np.zeros(len(width))
        try:
            for size in np.unique(width):
                member = self.first[width == size, None] + np.arange(size)
                place = member[:, :, None], member[:, None, :]
                b, one = matrix[place], np.eye(size)
                r = root[place] = np.linalg.inv(np.linalg.cholesky(b))
                back = r.transpose(0, 2, 1)
                off = np.abs(r @ b @ back - one) + 3 * (size + 4) * U * (np.abs(r) @ np.abs(b) @ np.abs(back) + one)
                delta[width == size] = 1.01 * off.sum(axis=(1, 2))
        except np.linalg.LinAlgError as error:
            raise RefusedError("a block of its minorant is not positive definite") from error
        if not np.max(delta) < 0.5 or not np.max(np.abs(root)) < _LARGEST:
            raise RefusedError("a block of its minorant is too nearly singular")
        return matrix, root, delta

    def at(self, zeta: Any, blocks: Any) -> tuple[float, Any, float]:
        """The error of dropping everything, what each unit saves at most, and what both can be off by."""
        whole, root, delta = blocks
        f = np.flatnonzero((zeta > 0.0)[self.unit])
        kept = np.where(zeta == 1.0, _KEPT, 1.0)[self.unit[f]]
        place = np.ix_(f, f)
        block, back = whole[place] * kept, root[place] / np.sqrt(kept)
        rest = self.gram[place] - block
        if not is_semidefinite(rest, np.where(block != 0.0, U * np.abs(rest), 0.0)):
            raise RefusedError("a minorant of its tree is not proven to be below the Gram matrix")
        u = np.zeros_like(self.target)
        u[f] = np.linalg.solve(self.gram[place] + block * (1.0 / zeta[self.unit[f]] - 1.0), self.pull[f])
        (n, rows), step, own = u.shape, u - self.target, u[f]
        g, c = self.gram @ step, block @ own
        far, near = self.size @ np.abs(step), np.abs(block) @ np.abs(own)
        c, near = c - g[f], near + far[f]
        value = float(np.sum(own * c) - np.sum(self.target * g))
        total = float(np.sum(np.abs(own) * near) + np.sum(np.abs(self.target) * far))
        saving = (np.abs(back @ c) + np.abs(back) @ (1.1 * (2 * n + 8) * U * near)) ** 2
        units = np.zeros(len(zeta))
        np.add.at(units, self.unit[f], saving.sum(axis=1))
        units *= (1.0 + 4 * (n * rows + 8) * U) / (1.0 - delta)
        return value, units, 1.1 * (n + 2 * n * rows + len(zeta) + 16) * U * (total + float(units.sum())) + 1e-150
