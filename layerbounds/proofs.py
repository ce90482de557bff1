"""What a search hands over to certification: dual points, proofs of exhaustion, weights, and why it ended."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Self

import numpy as np

from layerbounds.arrays import Float, Int
from layerbounds.kernels.compilation import working_time

#: ``optimal`` means upper − lower ≤ max(RELATIVE · upper, ABSOLUTE · f(0)).
OPTIMAL_RELATIVE = 1e-6


OPTIMAL_ABSOLUTE = 1e-12


class Status(StrEnum):
    """Why the work on a channel ended.

    Examples
    --------
    >>> solution.status[0]
    <Status.OPTIMAL: 'optimal'>
    """

    OPTIMAL = "optimal"
    GAP_REACHED = "gap_reached"
    TIME_LIMIT = "time_limit"
    NODE_LIMIT = "node_limit"
    INTERRUPTED = "interrupted"
    #: The search ended by itself, but rounding or a singular Gram matrix leaves the interval open.
    UNRESOLVED = "unresolved"
    #: A foreign solver says that it has reached optimality or the gap asked for; that is not proven here.
    CLAIMED = "claimed"
    #: The backend solves a relaxation of the problem, and has.
    RELAXED = "relaxed"
    #: A foreign solver ended with an error, or contradicts itself; the interval holds nevertheless.
    FAILED = "failed"


class BoundKind(StrEnum):
    """How a lower bound was derived.

    Examples
    --------
    >>> solution.bound_kind[0]
    <BoundKind.SEARCH: 'search'>
    """

    #: Recomputed from a dual point.
    DUAL = "dual"
    #: Exhausted by the package's own branch and bound, less its rounding allowance.
    SEARCH = "search"
    #: The constant part of the error, which no weights can repair.
    TRIVIAL = "trivial"


@dataclass(frozen=True)
class TracePoint:
    """State of the interval at one moment.

    Attributes
    ----------
    seconds : float
        Since the search of the channel began.
    nodes : int
    lower, upper : float
        In the units of ``gram``.
    """

    seconds: float
    nodes: int
    lower: float
    upper: float


#: Larger coefficients of a form are refused.
LARGEST_COEFFICIENT = 2**16


@dataclass(frozen=True, eq=False)
class FormTerms:
    """Split cuts of a dual point.

    Attributes
    ----------
    forms : ndarray of shape (n, cuts)
        Integer coefficients of the codes.
    weights : ndarray of shape (cuts,)
        Nonnegative; per code².
    multipliers : ndarray of shape (cuts,)
        Per code.
    """

    forms: Float
    weights: Float
    multipliers: Float

    def scaled(self, unit: float) -> Self:
        """Of an objective that is ``unit`` times as large."""
        return replace(self, weights=self.weights * unit, multipliers=self.multipliers * unit)

    def is_valid(self, n: int) -> bool:
        """Whether shapes fit, numbers are finite, weights are not negative and coefficients are small integers."""
        shapes = self.forms.ndim == 2 and len(self.forms) == n
        if not shapes or any(part.shape != self.forms.shape[1:] for part in (self.weights, self.multipliers)):
            return False
        finite = all(np.all(np.isfinite(part)) for part in (self.forms, self.weights, self.multipliers))
        whole = bool(np.all(self.forms == np.rint(self.forms)) and np.all(np.abs(self.forms) <= LARGEST_COEFFICIENT))
        return bool(finite and whole and np.all(self.weights >= 0))


@dataclass
class Control:
    """Limits of the work on one channel and the way to stop it from outside."""

    time_limit: float
    gap: float
    node_limit: int | None
    seed: int
    threads: int
    cancel: threading.Event
    started: float = field(default_factory=working_time)
    #: The backend's own options, defaults filled in.
    options: Mapping[str, Any] = field(default_factory=dict)
    #: Called with what long work is at, such as ``points 5 of 30``.
    report: Callable[[str], None] = field(default=lambda text: None)

    def elapsed(self) -> float:
        """Seconds since the work began, without those in which kernels were compiled."""
        return working_time() - self.started

    def remaining(self) -> float:
        """Seconds left, 0 when the time is out or the run was interrupted."""
        return 0.0 if self.cancel.is_set() else max(self.time_limit - self.elapsed(), 0.0)


@dataclass(frozen=True, eq=False)
class DualPoint:
    """A point z of the real space and a diagonal d, from which certification derives a bound (docs/bounds.md).

    f(q) ≥ f(z) + Σ_i min_v [2 h_i (v − z_i) + d_i (v − z_i)²] with h = H(z − w), for every diagonal d ⪯ H, negative
    entries included. For uniform grids integer forms of the codes may join the single weights.

    Attributes
    ----------
    z, d : ndarray of shape (n,)
    split : FormTerms or None
    """

    z: Float
    d: Float
    split: FormTerms | None = None

    @property
    def minorant(self) -> object:
        """What rows whose points can be bounded together have in common, the same object."""
        return self.d

    def is_valid(self, n: int) -> bool:
        """Whether shapes fit n inputs and numbers are finite."""
        parts = self.z, self.d
        return all(_is_finite(part, (n,)) for part in parts) and (self.split is None or self.split.is_valid(n))


@dataclass(frozen=True, eq=False)
class BlockDual:
    """A point z and a block-diagonal matrix (docs/pruning-bounds.md, docs/block-relaxation.md).

    f(v) ≥ f(z) + min over allowed v of 2hᵀ(v − z) + (v − z)ᵀB(v − z) with h = H(z − w), for every B ⪯ H. For uniform
    grids integer forms of the codes may join the blocks, as in `DualPoint`.

    Attributes
    ----------
    z : ndarray of shape (n,)
    block : ndarray of int64, shape (n,)
        The block of each input. Units of a pattern lie within blocks; blocks within groups, or groups within blocks.
    matrix : ndarray of shape (n, n)
        Entries between different blocks are ignored.
    split : FormTerms or None
        Of quantization alone.
    """

    z: Float
    block: Int
    matrix: Float
    split: FormTerms | None = None

    @property
    def minorant(self) -> object:
        """As in `DualPoint`."""
        return self.matrix

    def is_valid(self, n: int) -> bool:
        """Whether shapes fit n inputs and numbers are finite."""
        parts = _is_finite(self.z, (n,)) and _is_finite(self.matrix, (n, n)) and np.shape(self.block) == (n,)
        return parts and (self.split is None or self.split.is_valid(n))


@dataclass(frozen=True, eq=False)
class ScaleMinorant:
    """A matrix diag(d) + V diag(g) Vᵀ below the Gram matrix, V integer forms (docs/scales.md).

    Attributes
    ----------
    d : ndarray of shape (n,)
        Nonnegative.
    forms : ndarray of shape (n, cuts)
        V; every form lies within one group of scales, and the codes are integers where there are forms.
    weights : ndarray of shape (cuts,)
        g, nonnegative.
    """

    d: Float
    forms: Float
    weights: Float

    def is_valid(self, n: int) -> bool:
        """Whether shapes fit, numbers are finite, weights are not negative and coefficients are small integers."""
        forms = FormTerms(self.forms, self.weights, np.zeros_like(self.weights))
        return _is_finite(self.d, (n,)) and bool(np.all(self.d >= 0)) and forms.is_valid(n)


@dataclass(frozen=True, eq=False)
class ScalePoint:
    """A dual point for some scales.

    Attributes
    ----------
    z : ndarray of shape (rows, n)
        Of each row that shares the scales.
    minorant : int
    multipliers : ndarray of shape (rows, cuts)
        Of the minorant's forms.
    """

    z: Float
    minorant: int
    multipliers: Float


@dataclass(frozen=True, eq=False)
class ScaleDual:
    """Dual points that bound the error together, whatever the scales are (docs/scales.md).

    A tree divides all scales s > 0, one for each group of inputs: node k divides at ``at[k]`` the scale of group
    ``axis[k]``, the part below is node ``child[k]``, the part above the next one. Where ``axis[k]`` is −1, point
    ``child[k]`` bounds what is left.

    Attributes
    ----------
    minorants : tuple of ScaleMinorant
    points : tuple of ScalePoint
    axis, child : ndarray of int64, shape (nodes,)
        Children come after their parents.
    at : ndarray of shape (nodes,)
    root : ndarray of int64, shape (1,) or (boxes,)
        The tree's first node: of each list of codes, or of all of them together.
    dropped : tuple of int
        With real zero points the input of each group whose code is one of the lists' zeros: points are of the others.
    """

    minorants: tuple[ScaleMinorant, ...]
    points: tuple[ScalePoint, ...]
    axis: Int
    at: Float
    child: Int
    root: Int
    dropped: tuple[int, ...] = ()

    @property
    def minorant(self) -> object:
        """As in `DualPoint`."""
        return self.minorants

    def is_valid(self, n: int) -> bool:
        """Whether shapes fit n inputs, numbers are finite and the nodes make a tree."""
        left = n - len(self.dropped)
        nodes = np.shape(self.axis)
        if len(set(self.dropped)) < len(self.dropped) or not all(0 <= i < n for i in self.dropped):
            return False
        if nodes == (0,) or np.shape(self.child) != nodes or not _is_finite(self.at, nodes) or np.ndim(self.root) != 1:
            return False
        number = np.arange(nodes[0])
        ends = self.axis < 0
        points = bool(np.all((self.child[ends] >= 0) & (self.child[ends] < len(self.points))))
        inside = bool(np.all((self.child[~ends] > number[~ends]) & (self.child[~ends] + 1 < nodes[0])))
        roots = bool(np.all((self.root >= 0) & (self.root < nodes[0]))) and len(self.root) > 0
        if not (points and inside and roots) or not all(minorant.is_valid(left) for minorant in self.minorants):
            return False
        return all(self._fits(point, left) for point in self.points)

    def _fits(self, point: ScalePoint, left: int) -> bool:
        if not 0 <= point.minorant < len(self.minorants) or np.ndim(point.z) != 2:
            return False
        rows, cuts = len(point.z), self.minorants[point.minorant].weights.size
        return _is_finite(point.z, (rows, left)) and _is_finite(point.multipliers, (rows, cuts))


@dataclass(frozen=True, eq=False)
class SharedDual:
    """Points of several rows that have one mask, and block-diagonal matrices (docs/shared-bounds.md).

    Σ_r f_r(v_r) ≥ Σ_r [f_r(z_r) + 2h_rᵀ(v_r − z_r) + (v_r − z_r)ᵀB(v_r − z_r)] with h_r = H(z_r − w_r), for every
    B ⪯ H, which may be another one in each class of rows.

    Attributes
    ----------
    points : ndarray of shape (rows, n)
        z, of each row.
    block : ndarray of int64, shape (n,)
        The block of each input. Units of a pattern lie within blocks; blocks within groups, or groups within blocks.
    matrices : ndarray of shape (classes, n, n)
        Entries between different blocks are ignored.
    row_class : ndarray of int64, shape (rows,)
        Which matrix counts for each row.
    """

    points: Float
    block: Int
    matrices: Float
    row_class: Int

    @property
    def minorant(self) -> object:
        """As in `DualPoint`."""
        return self.matrices

    def is_valid(self, n: int) -> bool:
        """Whether shapes fit n inputs, numbers are finite and every row has a matrix."""
        rows, classes = len(np.atleast_1d(self.points)), len(np.atleast_1d(self.matrices))
        fits = _is_finite(self.points, (rows, n)) and _is_finite(self.matrices, (classes, n, n))
        if not fits or np.shape(self.block) != (n,) or np.shape(self.row_class) != (rows,):
            return False
        return bool(np.all((np.asarray(self.row_class) >= 0) & (np.asarray(self.row_class) < classes)))


@dataclass(frozen=True, eq=False)
class MaskDual:
    """A point and a diagonal below the matrix of a binary quadratic form (docs/pruning-bounds.md, Masks).

    For masks of several rows, or of units of several inputs, whose matrix says more than the Gram matrix does.

    Attributes
    ----------
    z : ndarray of shape (units,)
        How much of each unit is kept.
    d : ndarray of shape (units,)
    """

    z: Float
    d: Float

    @property
    def minorant(self) -> object:
        """As in `DualPoint`."""
        return self.d

    def is_valid(self, n: int) -> bool:
        """Whether both have one length and numbers are finite; how many units there are the allowed set knows."""
        return np.ndim(self.z) == 1 and all(_is_finite(part, np.shape(self.z)) for part in (self.z, self.d))


@dataclass(frozen=True, eq=False)
class TiledDual:
    """Points, diagonals and prices of rows whose masks limit one another (docs/tiles.md).

    Σ_r f_r(v_r) ≥ Σ_r [f_r(z_r) + 2h_rᵀ(v_r − z_r) + Σ_i d_ri (v_ri − z_ri)²] + Σ prices of what is kept − the largest
    total price of an allowed mask, for every d_r ⪯ H and prices ≥ 0.

    Attributes
    ----------
    points, diagonals, prices : ndarray of shape (rows, n)
    """

    points: Float
    diagonals: Float
    prices: Float

    @property
    def minorant(self) -> object:
        """As in `DualPoint`."""
        return self.diagonals

    def is_valid(self, n: int) -> bool:
        """Whether shapes fit n inputs, numbers are finite and no price is negative."""
        shape = (len(np.atleast_1d(self.points)), n)
        fits = all(_is_finite(part, shape) for part in (self.points, self.diagonals, self.prices))
        return fits and bool(np.all(np.asarray(self.prices) >= 0))


@dataclass(frozen=True, eq=False)
class MaskBlocksDual:
    """The same as `MaskDual` with blocks in place of a diagonal, and a price of the kept units of each group.

    Attributes
    ----------
    z : ndarray of shape (units,)
    block : ndarray of int64, shape (units,)
        The block of each unit.
    matrix : ndarray of shape (units, units)
        Entries between different blocks are ignored.
    price : ndarray of shape (groups,)
        Nonnegative.
    """

    z: Float
    block: Int
    matrix: Float
    price: Float

    @property
    def minorant(self) -> object:
        """As in `DualPoint`."""
        return self.matrix

    def is_valid(self, n: int) -> bool:
        """Whether shapes fit one another and numbers are finite; how many units there are the allowed set knows."""
        units = np.size(self.z)
        fits = _is_finite(self.z, (units,)) and _is_finite(self.matrix, (units, units))
        return fits and np.shape(self.block) == (units,) and _is_finite(self.price, np.shape(self.price))


@dataclass(frozen=True, eq=False)
class FilterDual:
    """What bounds the choice of whole output channels (docs/filters.md).

    Attributes
    ----------
    rows : ndarray of shape (any number, output channels) or None
        N with NᵀN close to W H Wᵀ, where a metric binds the output channels: it is the weight of a problem of shared
        masks whose Gram matrix is the metric. None without a metric, where sorting says everything.
    dual : SharedDual or None
        Of that problem.
    """

    rows: Float | None = None
    dual: SharedDual | None = None

    @property
    def minorant(self) -> object:
        """As in `DualPoint`: nothing is shared."""
        return self

    def is_valid(self, n: int) -> bool:
        """Whether numbers are finite and shapes fit one another; how many channels there are the allowed set knows."""
        if self.rows is None or self.dual is None:
            return self.rows is None and self.dual is None
        return (
            np.ndim(self.rows) == 2
            and _is_finite(self.rows, np.shape(self.rows))
            and self.dual.is_valid(np.shape(self.rows)[1])
        )


@dataclass(frozen=True, eq=False)
class Leaf:
    """Weights that stand for all allowed ones with the same codes: what a search over scales has visited.

    Attributes
    ----------
    weights : ndarray of shape (n,) or (rows, n)
    """

    weights: Float

    @property
    def minorant(self) -> object:
        """As in `DualPoint`: nothing is shared."""
        return self

    def is_valid(self, n: int) -> bool:
        """Whether they are weights of n inputs."""
        return bool(np.shape(self.weights)[-1:] == (n,) and np.all(np.isfinite(self.weights)))


#: What a family's certified minimum is derived from.
Dual = DualPoint | BlockDual | ScaleDual | SharedDual | MaskDual | MaskBlocksDual | TiledDual | FilterDual | Leaf


def _is_finite(array: Any, shape: tuple[int, ...]) -> bool:
    values = np.asarray(array, dtype=np.float64)
    return values.shape == shape and bool(np.all(np.isfinite(values)))


@dataclass(frozen=True, eq=False)
class FormTests:
    """Integer forms of codes that a depth-first search tests, with weights for some depths.

    Attributes
    ----------
    forms : ndarray of shape (n, cuts)
        In the order of the search.
    depths : ndarray of int64, shape (rows, 2)
        From how many free inputs down to how many each row of weights serves.
    units : ndarray of shape (rows, n)
        Diagonals, as of a `DualPoint`.
    weights : ndarray of shape (rows, cuts)
        As of `FormTerms`.
    """

    forms: Float
    depths: Int
    units: Float
    weights: Float


@dataclass(frozen=True, eq=False)
class Enumeration:
    """What a depth-first search needs beside the problem, for whoever repeats it (docs/certificates.md).

    Attributes
    ----------
    order : ndarray of int64, shape (n,)
        The inputs, those fixed last first.
    point : ndarray of shape (n,)
        The point at which the root is tilted.
    minorants : ndarray of shape (n + 1, n)
        Row k: a diagonal below the Gram matrix of the first k inputs of the order.
    forms : FormTests or None
        Of the first depths.
    """

    order: Int
    point: Float
    minorants: Float
    forms: FormTests | None = None


@dataclass(frozen=True, eq=False)
class RowPrices:
    """Of rows that limit one another: with which prices they were solved, and to which ends (docs/tiles.md).

    Attributes
    ----------
    prices : ndarray of shape (rows, n)
        Not negative.
    least : ndarray of shape (rows,)
        Lower bounds of the least error of each row plus the prices of what it keeps.
    """

    prices: Float
    least: Float


@dataclass(frozen=True, eq=False)
class SearchProof:
    """The own branch and bound pruned or visited everything below ``cut``.

    Attributes
    ----------
    cut : float
        In the units of the task's Gram matrix, without the constant.
    allowance : float
        How much rounding can have hidden, same units (docs/numerics.md).
    leaves : ndarray of shape (leaves, n) or None
        With it, what was visited below ``cut`` are exactly these weights, or the sets that they stand for (`Leaf`):
        certification evaluates them one by one.
    enumeration : Enumeration or None
        Of a search that certificates can have repeated.
    rows : RowPrices or None
        Of rows that limit one another.
    boxes : DualPoint or BlockDual or None
        The root of a best-first search with integer forms that took part, for whoever grows its tree again.
    """

    cut: float
    allowance: float
    leaves: Float | None = None
    enumeration: Enumeration | None = None
    rows: RowPrices | None = None
    boxes: DualPoint | BlockDual | None = None


@dataclass(frozen=True, eq=False)
class Evidence:
    """What the lower end of a certified interval was derived from.

    Attributes
    ----------
    dual : Dual or None
        The dual point; of a search, where its root was bounded.
    proof : SearchProof or None
        Only where the lower end is that of a search.
    """

    dual: Dual | None = None
    proof: SearchProof | None = None


@dataclass(frozen=True, eq=False)
class RawSolve:
    """What a backend returns for a channel.

    Attributes
    ----------
    weights : ndarray of shape (n,) or None
        The best weights found, on the live inputs.
    termination : Status
        ``optimal`` and ``gap_reached`` are checked by certification.
    proof : SearchProof or None
        Only the native backend may return one.
    dual : DualPoint or BlockDual or None
        For pruning also the diagonal of a `BlockDual` with single inputs as blocks.
    claimed_lower_bound : float or None
        The backend's own figure, in the units of the task, constant included.
    trace : tuple of TracePoint
        In the same units; the lower bounds of a foreign backend are claims, too.
    notes : tuple of str
        What the user has to know about this result, one sentence each.
    """

    weights: Float | None
    termination: Status
    proof: SearchProof | None = None
    dual: Dual | None = None
    claimed_lower_bound: float | None = None
    nodes: int = 0
    trace: tuple[TracePoint, ...] = ()
    notes: tuple[str, ...] = ()
