"""Lower bounds from dual points: f(v) ≥ f(z) + min over the allowed v of 2hᵀ(v − z) + (v − z)ᵀB(v − z), h = H(z − w).

z is any point, and B any matrix of which B ⪯ H is proven. That proof is a factorization in float64; all else is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from layerbounds_verify.exact import RefusedError, U, floats, fraction, integers, matrix_integers, power, product
from layerbounds_verify.reader import Structure

#: Entries of a diagonal beside which underflow is nothing, and the same for overflow.
LEAST = 1e-280
#: Form coefficients may be this large.
_LARGEST_COEFFICIENT = 2**16


def is_semidefinite(matrix: Any, off: Any = None) -> bool:
    """Whether A ⪰ 0 is proven for all symmetric A with |A − matrix| ≤ off, u·|matrix| by default; or all of a stack.

    Where ``off`` has a dimension less, only the diagonals are that uncertain.

    A Cholesky factorization that is completed in float64 has a backward error of at most γ/(1 − γ)·√(a_ii a_jj) in
    each entry, γ = (n + 1)u/(1 − (n + 1)u) (Higham, Accuracy and Stability of Numerical Algorithms, theorem 10.3), and
    entries below ε_ij are a matrix below diag(s_i Σ_j ε_ij/s_j), for any s > 0, in the order of semidefinite matrices.
    With s_i = √a_ii the backward error is below nγ/(1 − γ)·diag(a), so that the diagonal is lowered by more beforehand
    (Rump, BIT 46, 2006), and by 3u of itself for the roundings of that.
    """
    n = matrix.shape[-1]
    place = np.arange(n)
    diagonal = matrix[..., place, place].copy()
    if diagonal.size and not LEAST < diagonal.min() <= diagonal.max() < 1.0 / LEAST:
        return False
    s = np.sqrt(diagonal)
    off = U * np.abs(matrix) if off is None else off
    diagonal *= 1.0 - 1.01 * (n + 1) * (n + 2) * U - 3 * U
    diagonal -= 1.01 * (off if off.ndim < matrix.ndim else s * (off @ (1.0 / s)[..., None])[..., 0])
    lowered = np.array(matrix)
    lowered[..., place, place] = diagonal
    try:
        return bool(np.all(np.isfinite(np.linalg.cholesky(lowered))))
    except np.linalg.LinAlgError:
        return False


def is_semidefinite_exactly(matrix: Any) -> bool:
    """The same for a matrix of integers, without rounding."""
    return eliminated(matrix, len(matrix)) is not None


def eliminated(matrix: Any, count: int) -> tuple[Any, int] | None:
    """The Schur complement of the first rows of a matrix of integers, times an integer, and that integer (Bareiss).

    None where the first rows, with what else is in them, are not positive semidefinite.
    """
    a, before = matrix.copy(), 1
    for k in range(count):
        pivot = a[k, k]
        if pivot < 0 or (pivot == 0 and any(a[k, k + 1 :])):
            return None
        if pivot > 0:
            a[k + 1 :, k + 1 :] = (a[k + 1 :, k + 1 :] * pivot - np.outer(a[k + 1 :, k], a[k, k + 1 :])) // before
            before = pivot
    return a[count:, count:], before


def check_positive(matrix: Any, what: str) -> None:
    """Refuse a matrix that is not positive semidefinite, up to what rounding may have left."""
    counts = np.diag(matrix) > 0.0
    live = matrix[np.ix_(counts, counts)]
    slack = len(matrix) * 2.0**-48 * np.abs(matrix).sum(axis=1).max(initial=0.0)
    if np.any(matrix != matrix.T) or np.any(matrix[~counts]) or not is_semidefinite(live + slack * np.eye(len(live))):
        raise RefusedError(f"the {what} is not positive semidefinite")


def errors(gram: Any, target: Any, weights: Any, metric: Any = None) -> Any:
    """What the weights of each row add to the error (v − w)ᵀH(v − w), or to tr(Q (v − w) H (v − w)ᵀ), as fractions."""
    (whole, b), a = matrix_integers(gram), power(target, weights)
    step = integers(weights, a) - integers(target, a)
    if metric is None:
        return [fraction(value, 2 * a + b) for value in (step * product(step, whole)).sum(axis=1)]
    q, more = matrix_integers(metric)
    between = product(product(step, whole), step.T)
    return [fraction(value, 2 * a + b + more) for value in (q * between).sum(axis=1)]


@dataclass
class Minorant:
    """B − diag(shift) + U diag(weights) Uᵀ, U = forms / scale; B is diag(d) or has the entries of its blocks.

    Attributes
    ----------
    d, shift : ndarray of shape (n,)
    parts : list of (ndarray, ndarray)
        Inputs and entries of each block, of a block-diagonal B.
    forms : ndarray of shape (n, cuts) or None
    weights : ndarray of shape (cuts,) or None
    """

    d: Any
    shift: Any
    parts: list[tuple[Any, Any]]
    forms: Any = None
    weights: Any = None


def read_minorant(tensors: Any, name: str, n: int) -> Minorant:
    """A minorant of a file, its parts checked."""
    part = {key[len(name) + 1 :]: tensors[key] for key in tensors if key.startswith(f"{name}.")}
    found = Minorant(
        part.get("d", np.zeros(n)), part.get("shift", np.zeros(n)), [], part.get("forms"), part.get("weights")
    )
    power(*part.values())
    if found.d.shape != (n,) or found.shift.shape != (n,) or np.any(found.shift < 0):
        raise RefusedError("its minorant has parts of a wrong size, or a negative shift")
    if "block" in part:
        begin = 0
        for b in np.unique(part["block"]):
            m = np.flatnonzero(part["block"] == b)
            values = part["values"][begin : begin + len(m) ** 2].reshape(len(m), len(m))
            if np.any(values != values.T) or len(part["block"]) != n:
                raise RefusedError("a block of its minorant is not symmetric, or not one of its inputs")
            found.parts.append((m, values))
            found.d[m], begin = np.diag(values), begin + len(m) ** 2
        if all(len(m) == 1 for m, _ in found.parts):
            found.parts = []
    if found.forms is not None and (
        found.forms.shape != (n, len(found.weights))
        or np.any(found.weights < 0)
        or np.any(found.forms != np.rint(found.forms))
        or np.abs(found.forms).max(initial=0.0) > _LARGEST_COEFFICIENT
    ):
        raise RefusedError("its minorant has forms that are no small integers, or a negative weight")
    return found


def prove(gram: Any, minorant: Minorant, scale: Any, exact: bool) -> None:
    """Refuse a minorant unless it is below H; with forms S(H − …)S, S the scales, is compared with V diag(g)Vᵀ."""
    everything = np.arange(len(gram))
    b = power(gram, minorant.d, minorant.shift, *[values for _, values in minorant.parts])
    parts = [(np.ix_(m, m), values) for m, values in minorant.parts] or [((everything, everything), minorant.d)]
    matrix, off = gram.copy(), np.zeros(gram.shape)
    rest = integers(gram, b) if exact or minorant.forms is not None else None
    for place, values in parts:
        part = integers(gram[place], b) - integers(values, b)
        part[np.equal(*place)] += integers(minorant.shift, b)[np.unique(place[0])]
        matrix[place] = floats(part, b)
        off[place] = U * np.abs(matrix[place])
        if rest is not None:
            rest[place] = part
    if minorant.forms is not None:
        s, more = power(scale), power(minorant.weights)
        times = integers(scale, s)
        rest = (rest * np.outer(times, times)) << more
        weights = integers(minorant.weights, more) << (b + 2 * s)
        for form, weight in zip(minorant.forms.T.astype(np.int64), weights, strict=True):
            m = np.flatnonzero(form)
            rest[np.ix_(m, m)] -= np.outer(form[m], form[m]).astype(object) * weight
        matrix = floats(rest, b + 2 * s + more)
        off = U * np.abs(matrix)
    if not (is_semidefinite_exactly(rest) if exact else is_semidefinite(matrix, off)):
        raise RefusedError("its minorant is not proven to be below the Gram matrix")


class Tangent:
    """f(z) and h = H(z − w) as integers, with what else is needed in their units.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    target, z : ndarray of shape (n,)
    minorant : Minorant
    *weights : ndarray
        Weights that have to be whole, too.
    """

    def __init__(self, gram: Any, target: Any, z: Any, minorant: Minorant, *weights: Any) -> None:
        if z.shape != target.shape:
            raise RefusedError("its dual point has a wrong shape")
        whole, b = matrix_integers(gram)
        self.a = power(target, z, *weights)
        self.b = max(b, power(minorant.d, minorant.shift, *[values for _, values in minorant.parts]))
        self.unit = 2 * self.a + self.b
        self.z = integers(z, self.a)
        deviation = self.z - integers(target, self.a)
        self.h = product(deviation[None], whole)[0] << (self.b - b)
        self.value = deviation @ self.h
        self.shift = integers(minorant.shift, self.b)
        self.d = integers(minorant.d, self.b) - self.shift

    def terms(self, values: Any) -> Any:
        """2h(v − z) + d(v − z)² for the values of each input, shape (n, values)."""
        step = integers(values, self.a) - self.z[:, None]
        return step * (2 * self.h[:, None] + self.d[:, None] * step)

    def bound(self, added: Any) -> Fraction:
        """f(z) and what is added."""
        return fraction(self.value + added, self.unit)


def over_levels(tangent: Tangent, values: Any) -> Fraction:
    """Every weight takes one of its levels, shape (n, levels)."""
    return tangent.bound(tangent.terms(values).min(axis=1).sum())


def over_support(tangent: Tangent, structure: Structure, values: Any) -> Fraction:
    """Every weight is 0 or one of its values, shape (n, values), and the units of those that are not fit a structure.

    Where ``values`` is None weights are real numbers, and keeping input i saves c²/d with c = dz − h.
    """
    drop = tangent.terms(np.zeros((len(tangent.z), 1)))[:, 0]
    if values is not None:
        saving = drop - tangent.terms(values).min(axis=1)
    else:
        c = tangent.d * tangent.z - tangent.h
        if any(d <= 0 and x for d, x in zip(tangent.d, c, strict=True)):
            raise RefusedError("its minorant is not positive, so that keeping a weight saves without a limit")
        saving = np.array([-(-x * x // d) if d > 0 else 0 for d, x in zip(tangent.d, c, strict=True)], dtype=object)
    units = np.zeros(len(structure.group), dtype=object)
    np.add.at(units, structure.unit, saving)
    kept = 0
    for group, capacity in enumerate(structure.capacity.tolist()):
        best = sorted((x for x in units[structure.group == group] if x > 0), reverse=True)
        kept += sum(best[:capacity])
    return tangent.bound(drop.sum() - kept)
