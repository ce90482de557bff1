"""What a search hands over to certification: dual points, proofs of exhaustion, weights, and why it ended."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np

from layerbounds.arrays import Float, Int
from layerbounds.kernels.compilation import working_time

#: ``optimal`` means upper − lower ≤ max(RELATIVE · upper, ABSOLUTE · f(0)).
OPTIMAL_RELATIVE = 1e-6


OPTIMAL_ABSOLUTE = 1e-12


class Status(StrEnum):
    """Why the work on a channel ended."""

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
    """How a lower bound was derived."""

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

    f(v) ≥ f(z) + min over allowed v of 2hᵀ(v − z) + (v − z)ᵀB(v − z) with h = H(z − w), for every B ⪯ H.

    Attributes
    ----------
    z : ndarray of shape (n,)
    block : ndarray of int64, shape (n,)
        The block of each input. Units of a pattern lie within blocks; blocks within groups, or groups within blocks.
    matrix : ndarray of shape (n, n)
        Entries between different blocks are ignored.
    """

    z: Float
    block: Int
    matrix: Float

    @property
    def minorant(self) -> object:
        """As in `DualPoint`."""
        return self.matrix

    def is_valid(self, n: int) -> bool:
        """Whether shapes fit n inputs and numbers are finite."""
        return _is_finite(self.z, (n,)) and _is_finite(self.matrix, (n, n)) and np.shape(self.block) == (n,)


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
Dual = DualPoint | BlockDual | ScaleDual | Leaf


def _is_finite(array: Any, shape: tuple[int, ...]) -> bool:
    values = np.asarray(array, dtype=np.float64)
    return values.shape == shape and bool(np.all(np.isfinite(values)))


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
    """

    cut: float
    allowance: float
    leaves: Float | None = None


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
