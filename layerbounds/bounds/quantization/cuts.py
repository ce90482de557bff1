"""Split cuts: integer forms vᵀq beside the single variables in the separable bound of a uniform grid.

In grid units every vᵀq with an integer vector v is an integer, so that for weights d ≥ 0 of the columns v_j of V, the
unit vectors among them,

    (q − c)ᵀH(q − c) ≥ Σ_j d_j min over integers t of (t − v_jᵀc)²   wherever V diag(d) Vᵀ ⪯ H

(docs/bounds.md, split cuts). The weights come from the same barrier as a diagonal minorant's; μ(H − V diag(d) Vᵀ)⁻¹ is
its dual matrix X, and a form is worth adding where its expected squared distance to the integers exceeds vᵀXv.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csc_array, csr_array

from layerbounds.arrays import Float, Int
from layerbounds.bounds.minorants.barrier import ascend_barrier
from layerbounds.bounds.minorants.semidefinite import is_positive_semidefinite, shrink_until
from layerbounds.kernels.factorization import UNIT, cholesky, gamma, symmetric_inverse

#: Expected squared distance of a number to the nearest integer, without knowledge of it.
GENERIC = 1.0 / 12.0
#: Share of the given weights at which the barrier method starts, and its first μ over Σ a_j d_j/n.
START, FIRST_BARRIER = 0.85, 0.5
#: Largest coefficient of a form.
LARGEST_COEFFICIENT = 2
#: A form is added where vᵀXv is below this share of its expected squared distance.
VIOLATION = 0.85


@dataclass(frozen=True, eq=False)
class CutSet:
    """Integer forms with at least two variables.

    Attributes
    ----------
    forms : ndarray of shape (n, cuts)
        Column j holds the integer coefficients of form j, as float64. Sorted by the second of its variables: the forms
        that still have two of the first k variables are leading columns.
    second : ndarray of int64, shape (cuts,)
        Position of the second variable of each form, increasing.
    """

    forms: Float
    second: Int

    @property
    def size(self) -> int:
        """Number of forms."""
        return int(self.forms.shape[1])

    def active(self, k: int) -> int:
        """How many forms have two or more of the first k variables."""
        return int(np.searchsorted(self.second, k))


def make_cuts(forms: Float) -> tuple[CutSet, Int]:
    """Sort integer forms into a `CutSet`; also returns their order."""
    second = np.argmax(np.cumsum(forms != 0, axis=0) >= 2, axis=0)
    order = np.argsort(second, kind="stable")
    return CutSet(np.ascontiguousarray(forms[:, order]), second[order].astype(np.int64)), order


def is_cut_minorant(gram: Float, forms: Float, units: Float, weights: Float) -> bool:
    """Prove B + V diag(weights) Vᵀ ⪯ gram for nonnegative weights; the entries of V may be rounded.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    forms : ndarray of shape (n, cuts)
    units : ndarray of shape (n,) or (n, n)
        The diagonal of B, or all of it, symmetric.
    weights : ndarray of shape (cuts,)
    """
    columns = csr_array(forms)
    # Numbers that overflow prove nothing.
    with np.errstate(over="ignore", invalid="ignore"):
        product = weighted_square(columns, weights)
        size = weighted_square(abs(columns), weights).sum(axis=1)
        # The product's rounding is a matrix below γ·diag(row sums of |V| diag(d) |V|ᵀ).
        slack = gamma(forms.shape[1] + 8) * size + 4 * UNIT * (np.diag(gram) + np.diag(product))
        if units.ndim == 2:
            # So is that of the sum, with row sums of |B| added.
            slack += 4 * UNIT * (np.abs(units).sum(axis=1) + size)
            matrix, diagonal = gram - (product + units), slack
        else:
            matrix, diagonal = gram - product, units + slack
        matrix[np.diag_indices(len(gram))] -= diagonal
    return is_positive_semidefinite(matrix)


def by_columns(forms: Float) -> tuple[Int, Int, Float]:
    """Where each form begins, its variables and its coefficients, as kernels take them."""
    columns = csc_array(forms)
    return columns.indptr.astype(np.int64), columns.indices.astype(np.int64), columns.data.astype(np.float64)


def weighted_square(columns: csr_array, weights: Float) -> Float:
    """V diag(weights) Vᵀ."""
    return np.asarray((columns.multiply(weights[None, :]) @ columns.T).toarray())


def certified_weights(gram: Float, forms: Float, units: Float, weights: Float) -> tuple[Float, Float]:
    """Shrink a diagonal or a matrix, and weights, until they are a proven minorant; zeros in the worst case."""
    size = units.size

    def accepted(both: Float) -> bool:
        return is_cut_minorant(gram, forms, both[:size].reshape(units.shape), both[size:])

    both = shrink_until(accepted, np.concatenate([units.ravel(), weights]))
    return both[:size].reshape(units.shape), both[size:]


@dataclass(frozen=True, eq=False)
class Barrier:
    """A point of the barrier method: weights of the units and the forms, and the dual matrix X."""

    units: Float
    weights: Float
    dual: Float


def maximize_weights(
    gram: Float,
    forms: Float,
    unit_objective: Float,
    objective: Float,
    start: tuple[Float, Float],
    relative_gap: float = 0.2,
    max_steps: int = 40,
    stop: Callable[[], bool] | None = None,
) -> Barrier | None:
    """Approximately maximise Σ a_j d_j over the weights with V diag(d) Vᵀ ⪯ gram, the units among the columns.

    By the log-determinant barrier (`layerbounds.bounds.minorants.barrier`).

    Parameters
    ----------
    gram : ndarray of shape (n, n)
        Positive definite.
    forms : ndarray of shape (n, cuts)
    unit_objective : ndarray of shape (n,)
    objective : ndarray of shape (cuts,)
        Expected squared distances.
    start : tuple of ndarray
        Weights of the units and the forms; shrunk until they are strictly feasible.
    relative_gap : float
        Stop when the duality gap is below this share of the value.
    max_steps : int
    stop : callable, optional
        Asked before each Newton step whether to end with what there is.

    Returns
    -------
    Barrier or None
        Not yet proven, see `certified_weights`; None where no strictly feasible start was found.
    """
    n = len(gram)
    scale = np.sqrt(np.diag(gram))
    matrix = gram / np.outer(scale, scale)
    columns = csr_array(forms / scale[:, None])
    units_scale = scale**2
    a = np.concatenate([unit_objective * units_scale, objective])
    a = np.maximum(a, 1e-6 * float(a[:n].mean()) + np.finfo(np.float64).tiny)
    top = float(a.max())
    a = a / top
    d = np.concatenate([start[0] / units_scale, start[1]])
    d = np.maximum(d, 1e-6 * float(np.max(a * d)) / a)
    # Away from the boundary, where Newton steps are short.
    d *= START

    def factorize(d: Float) -> Float | None:
        difference = matrix - weighted_square(columns, d[n:])
        difference[np.diag_indices(n)] -= d[:n]
        return cholesky(difference)

    for _ in range(30):
        mu = FIRST_BARRIER * float(a @ d) / n
        found = ascend_barrier(a, d, mu, factorize, lambda x: _between(columns, x), relative_gap, max_steps, stop)
        if found is not None:
            dual = (found.mu * top) * symmetric_inverse(found.factor) / np.outer(scale, scale)
            return Barrier(found.d[:n] * units_scale, found.d[n:].copy(), dual)
        d *= 0.8
    return None


def _between(columns: csr_array, middle: Float) -> Float:
    """CᵀXC for the columns C of units and forms."""
    n, m = columns.shape
    result = np.empty((n + m, n + m))
    result[:n, :n] = middle
    result[n:, :n] = columns.T @ middle
    result[:n, n:] = result[n:, :n].T
    result[n:, n:] = result[n:, :n] @ columns
    return result


def separate(dual: Float, forms: Float, most: int) -> Float:
    """New forms u ± w of the units and the present forms with the smallest vᵀXv.

    Parameters
    ----------
    dual : ndarray of shape (n, n)
        X.
    forms : ndarray of shape (n, cuts)
    most : int
        Largest number of new forms.

    Returns
    -------
    ndarray of shape (n, new)
    """
    between = _between(csr_array(forms), dual)
    size = np.diag(between)
    found = []
    for sign in (1.0, -1.0):
        total = size[:, None] + size[None, :] + 2.0 * sign * between
        i, j = np.nonzero(np.triu(total < VIOLATION * GENERIC, 1))
        found.append((total[i, j], i, j, np.full(len(i), sign)))
    return _new_forms(forms, found, most)


def separate_at(dual: Float, covariance: Float, forms: Float, z: Float, most: int) -> Float:
    """New forms u ± w whose fractional product at z exceeds vᵀXv, largest excess over vᵀH⁻¹v first.

    Parameters
    ----------
    dual, covariance : ndarray of shape (n, n)
        X and H⁻¹.
    forms : ndarray of shape (n, cuts)
    z : ndarray of shape (n,)
    most : int
        Largest number of new forms.

    Returns
    -------
    ndarray of shape (n, new)
    """
    columns = csr_array(forms)
    between, norm = _between(columns, dual), _between(columns, covariance)
    y = np.concatenate([z, columns.T @ z])
    found = []
    for sign in (1.0, -1.0):
        excess = fractional_product(y[:, None] + sign * y[None, :])
        excess -= np.diag(between)[:, None] + np.diag(between)[None, :] + 2.0 * sign * between
        i, j = np.nonzero(np.triu(excess > 0.0, 1))
        length = norm[i, i] + norm[j, j] + 2.0 * sign * norm[i, j]
        found.append((-excess[i, j] / length, i, j, np.full(len(i), sign)))
    return _new_forms(forms, found, most)


def fractional_product(y: Float) -> Float:
    """Fractional part times one minus it: the squared distance that the hull of two integers leaves."""
    part = y - np.floor(y)
    return np.asarray(part * (1.0 - part))


def _new_forms(forms: Float, pairs: list[tuple[Float, Int, Int, Float]], most: int) -> Float:
    """The forms of the pairs (rank, one, other, sign) of units and forms that are not there yet, best rank first."""
    n = len(forms)
    pool = np.hstack([np.eye(n), forms])
    rank, first, other, sign = (np.concatenate(part) for part in zip(*pairs, strict=True))
    known = {_key(v) for v in pool.T}
    found: list[Float] = []
    for index in np.argsort(rank, kind="stable"):
        if len(found) >= most:
            break
        v = pool[:, first[index]] + sign[index] * pool[:, other[index]]
        key = _key(v)
        if np.abs(v).max() > LARGEST_COEFFICIENT or np.count_nonzero(v) < 2 or key in known:
            continue
        known.add(key)
        found.append(v)
    return np.array(found).reshape(-1, n).T


def _key(v: Float) -> bytes:
    """The same for v and −v."""
    small = v.astype(np.int8)
    return min(small.tobytes(), (-small).tobytes())


def first_weights(point: Barrier, new: Float) -> Float:
    """Small weights for new forms."""
    reach = np.einsum("ij,ij->j", new, point.dual @ new)
    return np.asarray(0.02 * float(np.mean(point.units * np.diag(point.dual))) / reach)


def generate_cuts(
    gram: Float, units: Float, rounds: int, stop: Callable[[], bool] | None = None
) -> tuple[CutSet, Float, Float] | None:
    """Forms for a Gram matrix in grid units, from expected distances alone: they serve every channel.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    units : ndarray of shape (n,)
        A diagonal minorant to start from.
    rounds : int
        Rounds of separation; each adds up to n forms.
    stop : callable, optional
        Asked all the time whether to end with what there is.

    Returns
    -------
    cuts : CutSet
    units, weights : ndarray of shapes (n,), (cuts,)
        Weights found last, not proven. None instead of all three where no form is worth adding.
    """
    n = len(gram)
    forms = np.zeros((n, 0))
    state: tuple[Float, Float] = (units, np.zeros(0))
    for round_number in range(rounds + 1):
        objective = np.full(forms.shape[1], GENERIC)
        found = maximize_weights(gram, forms, np.full(n, GENERIC), objective, state, stop=stop)
        if found is None:
            return None
        state = found.units, found.weights
        last = round_number == rounds or (stop is not None and stop())
        new = np.zeros((n, 0)) if last else separate(found.dual, forms, n)
        if new.shape[1] == 0:
            break
        forms = np.hstack([forms, new])
        state = found.units, np.concatenate([found.weights, first_weights(found, new)])
    if forms.shape[1] == 0:
        return None
    cuts, order = make_cuts(forms)
    return cuts, state[0], state[1][order]


def strongest(cuts: CutSet, units: Float, weights: Float, most: int) -> tuple[CutSet, Float, Float]:
    """The forms with the largest weights."""
    if cuts.size <= most:
        return cuts, units, weights
    kept = np.sort(np.argsort(-weights, kind="stable")[:most])
    return CutSet(np.ascontiguousarray(cuts.forms[:, kept]), cuts.second[kept]), units, weights[kept]


def weight_schedule(
    gram: Float,
    cuts: CutSet,
    depths: list[int],
    objectives: tuple[Float, Float],
    start: tuple[Float, Float],
) -> tuple[Float, Float]:
    """Proven weights of the units and the forms on the leading blocks.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    cuts : CutSet
    depths : list of int
        Falling; depths between restrict the next larger one.
    objectives : tuple of ndarray of shapes (n + 1, n) and (n + 1, cuts)
        Expected squared distances at every depth.
    start : tuple of ndarray of shapes (n,) and (cuts,)

    Returns
    -------
    units : ndarray of shape (n + 1, n)
    weights : ndarray of shape (n + 1, cuts)
        Zero for the forms with fewer than two of the first k variables.
    """
    n = len(gram)
    units, weights = np.zeros((n + 1, n)), np.zeros((n + 1, cuts.size))
    state = start
    for position, depth in enumerate(depths):
        m = cuts.active(depth)
        block = np.ascontiguousarray(gram[:depth, :depth])
        forms = np.ascontiguousarray(cuts.forms[:depth, :m])
        begin = fold(state[0], state[1], cuts.forms, depth, m)
        found = maximize_weights(block, forms, objectives[0][depth, :depth], objectives[1][depth, :m], begin)
        proven = begin if found is None else (found.units, found.weights)
        proven = certified_weights(block, forms, *proven)
        state = (_padded(proven[0], n), _padded(proven[1], cuts.size))
        following = depths[position + 1] if position + 1 < len(depths) else 0
        for k in range(depth, following, -1):
            active = cuts.active(k)
            units[k, :k], weights[k, :active] = fold(state[0], state[1], cuts.forms, k, active)
    return units, weights


def fold(units: Float, weights: Float, forms: Float, k: int, active: int) -> tuple[Float, Float]:
    """Weights on the first k variables; forms left with one variable are added to that variable's weight."""
    rest = forms[:k, active:]
    single = (rest * rest) @ weights[active:] if rest.shape[1] else np.zeros(k)
    # Rounded down: the sum must not exceed what was proven.
    return (units[:k] + single) * (1.0 - (forms.shape[1] + 4) * 2 * UNIT), weights[:active].copy()


def _padded(values: Float, size: int) -> Float:
    return np.concatenate([values, np.zeros(size - len(values))])
