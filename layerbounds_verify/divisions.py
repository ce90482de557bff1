"""Free codebooks of few inputs: every division of the inputs into blocks of equal weights is tried.

In float64 first; those whose bound does not reach the claim are eliminated in integers (docs/certificates.md).
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from layerbounds_verify.bounds import Tangent, eliminated, is_semidefinite
from layerbounds_verify.exact import RefusedError, U, below, integers, matrix_integers, power

#: Divisions that are tried, together, and in integers.
_MOST, _TOGETHER, _EXACT = 200_000, 2_048, 10_000


def over_divisions(gram: Any, target: Any, count: int, d: Any, claim: Fraction) -> Fraction:
    """The claim, if no division into so many blocks has a smaller least error.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    target, d : ndarray of shape (n,)
        A diagonal; of use where it is positive and below the Gram matrix.
    count : int
    claim : Fraction
        Without the constant.
    """
    (whole, b), a, count = matrix_integers(gram), power(target), min(count, len(target))
    pull = whole @ integers(target, a)
    energy = integers(target, a) @ pull
    useful = d.shape == target.shape and bool(np.all(d > 0)) and is_semidefinite(gram - np.diag(d))
    labels, tried = _divisions(len(target), count), 0
    for begin in range(0, len(labels), _TOGETHER):
        part = labels[begin : begin + _TOGETHER]
        near = _bounds(gram, target, part, count, d) < -below(-claim) if useful else np.ones(len(part), dtype=bool)
        tried += int(near.sum())
        if tried > _EXACT:
            raise RefusedError("too many divisions of its inputs have bounds below the lower end that it claims")
        for row in part[near]:
            member = (row[:, None] == np.arange(count)).astype(object)
            bordered = np.empty((count + 1, count + 1), dtype=object)
            bordered[:count, :count], bordered[count, count] = member.T @ whole @ member, energy
            bordered[:count, count] = bordered[count, :count] = member.T @ pull
            found = eliminated(bordered, count)
            if found is None or Fraction(int(found[0][0, 0]), found[1] << (2 * a + b)) < claim:
                raise RefusedError("a division of its inputs has a smaller error than it claims")
    return claim


def _divisions(size: int, count: int) -> Any:
    """The block of each input in each division into at most so many blocks, which are numbered as they come."""
    labels = np.zeros((1, 1), dtype=np.int8)
    for i in range(1, size):
        # Merging blocks never lowers the least error, so that those that cannot fill all any more are left out.
        used = labels.max(axis=1) + 1
        rows = [
            np.column_stack([labels[fits], np.full(int(fits.sum()), label, dtype=np.int8)])
            for label in range(min(i + 1, count))
            for fits in [(label <= used) & (count - np.maximum(used, label + 1) <= size - 1 - i)]
        ]
        labels = np.vstack(rows)
        if len(labels) > _MOST:
            raise RefusedError("its inputs have too many divisions")
    return labels


def _bounds(gram: Any, target: Any, labels: Any, count: int, d: Any) -> Any:
    """A lower bound on the least error of each division: at weights near the best, less what the slopes allow."""
    inside = labels[:, :, None] == np.arange(count)
    member, n = inside.astype(np.float64), len(target)
    matrix = np.swapaxes(member, 1, 2) @ (gram @ member)
    right = np.swapaxes(member, 1, 2) @ (gram @ target)
    scale = np.sqrt(np.einsum("pkk->pk", matrix))
    scaled = matrix / (scale[:, :, None] * scale[:, None, :]) + 1e-15 * np.eye(count)
    best = np.linalg.solve(scaled, (right / scale)[:, :, None])[:, :, 0] / scale
    deviation = np.take_along_axis(best, labels.astype(np.int64), axis=1) - target
    slope, size = deviation @ gram, np.abs(deviation) @ np.abs(gram)
    charge = 4 * (n + 8) * U
    steep = np.abs(np.einsum("pn,pnk->pk", slope, member)) + charge * np.einsum("pn,pnk->pk", size, member)
    lost = np.sum(steep**2 / np.einsum("n,pnk->pk", d, member), axis=1)
    value = np.sum(deviation * slope, axis=1) - charge * np.sum(np.abs(deviation) * size, axis=1)
    return np.nan_to_num(value - lost * (1 + charge), nan=-np.inf)


def over_values(tangent: Tangent, count: int) -> Fraction:
    """The weights take at most so many different values, which may be any.

    With c = dz − h the terms are dv² − 2cv + dz² − 2hz, and inputs of one value in common save (Σc)²/Σd beside 0. Given
    the values, each input takes the one nearest to c/d: the best sets are consecutive in the order of c/d.
    """
    n = len(tangent.z)
    if any(d <= 0 for d in tangent.d):
        raise RefusedError("its minorant is not positive, so that nothing bounds weights of any value")
    c = tangent.d * tangent.z - tangent.h
    order = sorted(range(n), key=lambda i: Fraction(c[i], tangent.d[i]))
    sums, weights = [0, *np.cumsum(c[order])], [0, *np.cumsum(tangent.d[order])]
    gains = [[-(-((sums[j] - sums[i]) ** 2) // (weights[j] - weights[i])) for i in range(j)] for j in range(n + 1)]
    best = [0] + [gains[j][0] for j in range(1, n + 1)]
    for _ in range(1, min(count, n)):
        best = [0] + [max(best[i] + gains[j][i] for i in range(j)) for j in range(1, n + 1)]
    return tangent.bound((tangent.d * tangent.z**2 - 2 * tangent.h * tangent.z).sum() - best[n])
