"""Certification: the only code that sets bounds.

Whatever a backend says, the error of its weights is recomputed here and the lower bound is derived from the proof or
the dual point that it returned; both are rounded outward (docs/numerics.md). What a foreign solver merely claims is
kept apart, and refused where it contradicts feasible weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from layerbounds.arrays import Float
from layerbounds.bounds.least import has_leaves, least
from layerbounds.bounds.objective import EXACT_INPUTS, metric_interval, objective_interval
from layerbounds.exceptions import CertificationError, NotAllowedError
from layerbounds.problems.allowed import AllowedSet
from layerbounds.problems.tasks import Task
from layerbounds.proofs import (
    OPTIMAL_ABSOLUTE,
    OPTIMAL_RELATIVE,
    BoundKind,
    Dual,
    Evidence,
    Leaf,
    RawSolve,
    Status,
    TracePoint,
)

#: Solvers work with tolerances: a claim that exceeds a feasible error by no more than this, relative to the error and
#: to f(0), is lowered to it; any other is refused.
CLAIM_RELATIVE, CLAIM_ABSOLUTE = 1e-5, 1e-9
#: The error of one of many points is computed exactly up to so many inputs.
FEW_INPUTS = 8


#: From feasible weights, or None, to a dual point.
Derive = Callable[[Float | None], Dual | None]


@dataclass(frozen=True, eq=False)
class CertifiedChannel:
    """A channel's certified interval.

    Attributes
    ----------
    lower, upper : float
        Rounded outward, the constant included.
    weights : ndarray of shape (n,)
        On the live inputs; they reach ``upper``.
    evidence : Evidence
        What ``lower`` was derived from.
    """

    lower: float
    upper: float
    weights: Float
    status: Status
    bound_kind: BoundKind
    claimed_lower: float
    trace: tuple[TracePoint, ...] = ()
    notes: tuple[str, ...] = ()
    evidence: Evidence = field(default_factory=Evidence)


def certify(task: Task[AllowedSet], raw: RawSolve, gap: float) -> CertifiedChannel:
    """Turn what a backend returned into a certified interval.

    Raises
    ------
    CertificationError
        If the weights are not allowed, or the derived lower bound exceeds the error of feasible weights.
    """
    weights = feasible_weights(task, raw.weights)
    high = task_error(task, weights)[1]
    derived = None if raw.dual is None else dual_bound(task, raw.dual)
    return conclude(task, raw, gap, weights, high, derived)


def conclude(
    task: Task[AllowedSet], raw: RawSolve, gap: float, weights: Float, high: float, derived: float | None
) -> CertifiedChannel:
    """The interval that follows from allowed weights, their error and what the dual point proves.

    Parameters
    ----------
    task : Task
    raw : RawSolve
    gap : float
    weights : ndarray of the target's shape
        Exactly allowed.
    high : float
        At least their error, without the constant.
    derived : float or None
        The bound of the dual point, without the constant.

    Raises
    ------
    CertificationError
        If the lower bound exceeds the error of the weights.
    """
    # Exactly 0 deviations (and an empty channel) have the exact error `constant`.
    upper = _up(high + task.constant_above) if high > 0.0 else task.constant_above
    lower, kind = dual_end(task, derived)
    if raw.proof is not None:
        proven = _down(raw.proof.cut - raw.proof.allowance)
        for leaf in raw.proof.leaves if raw.proof.leaves is not None else ():
            proven = min(proven, _leaf_error(task, leaf))
        if proven > 0 and _down(proven + task.constant) > lower:
            lower, kind = _down(proven + task.constant), BoundKind.SEARCH
    if lower > upper:
        raise CertificationError(
            f"channel {task.channel}: the derived lower bound {lower:.17g} exceeds the error {upper:.17g} of feasible "
            "weights; please report this problem with its data."
        )
    status = settled(lower, upper, gap, task.energy, raw.termination)
    claimed = np.nan if raw.claimed_lower_bound is None else float(raw.claimed_lower_bound)
    evidence = Evidence(
        None if kind == BoundKind.TRIVIAL else raw.dual, raw.proof if kind == BoundKind.SEARCH else None
    )
    return CertifiedChannel(lower, upper, weights, status, kind, claimed, raw.trace, raw.notes, evidence)


def dual_end(task: Task[AllowedSet], derived: float | None) -> tuple[float, BoundKind]:
    """The lower end that follows from what a dual point proves, without the constant; None: from nothing."""
    if derived is not None and derived > 0 and _down(derived + task.constant) > task.constant:
        return _down(derived + task.constant), BoundKind.DUAL
    return task.constant, BoundKind.TRIVIAL


def intersection(first: CertifiedChannel, second: CertifiedChannel, gap: float, energy: float) -> CertifiedChannel:
    """What two certified intervals of one channel say together; where neither is better, the first one's ends.

    Parameters
    ----------
    first, second : CertifiedChannel
        The second one's status is kept unless the interval is closed; notes of both are.
    gap : float
    energy : float
        f(0).

    Raises
    ------
    CertificationError
        If the two contradict each other.
    """
    low = second if second.lower > first.lower else first
    high = second if second.upper < first.upper else first
    if low.lower > high.upper:
        raise CertificationError(
            f"two certified intervals contradict each other: a lower bound {low.lower:.17g} exceeds the error "
            f"{high.upper:.17g} of feasible weights; please report this problem with its data."
        )
    return replace(
        second,
        lower=low.lower,
        upper=high.upper,
        weights=high.weights,
        status=settled(low.lower, high.upper, gap, energy, second.status),
        bound_kind=low.bound_kind,
        evidence=low.evidence,
        notes=tuple(dict.fromkeys((*first.notes, *second.notes))),
    )


def settled(lower: float, upper: float, gap: float, energy: float, ended: Status) -> Status:
    """The status of an interval; ``ended`` is how the work on it did, and ``energy`` f(0)."""
    width = upper - lower
    # An error that overflows is infinite, and no share of it says anything.
    finite = width < np.inf
    if finite and width <= max(OPTIMAL_RELATIVE * upper, OPTIMAL_ABSOLUTE * energy):
        return Status.OPTIMAL
    if finite and gap > 0 and width <= gap * upper:
        return Status.GAP_REACHED
    # Where the backend believes itself done, what can be proven is wider.
    return Status.UNRESOLVED if ended in (Status.OPTIMAL, Status.GAP_REACHED) else ended


def certify_foreign(
    task: Task[AllowedSet], raw: RawSolve, gap: float, derive: Derive | None = None
) -> CertifiedChannel:
    """The same for a solver that is not the package's own: what contradicts the problem is refused, with a note.

    Only the package's own search may hand over a proof, so the lower bound comes from a dual point. Weights that are
    not allowed are replaced by the warm start or the nearest allowed ones. The status is ``claimed`` where the solver
    says that it is done and its claim agrees with the error of its weights, and ``failed`` where the two disagree.

    Parameters
    ----------
    task : Task
    raw : RawSolve
    gap : float
    derive : callable, optional
        Called with feasible weights, or None, for a dual point where the solver returned no valid one.
    """
    notes = list(raw.notes)
    weights, dual, claim = raw.weights, raw.dual, raw.claimed_lower_bound
    if raw.proof is not None:
        notes.append("refused a proof, which only the native search may hand over")
    try:
        feasible_weights(task, weights)
    except (CertificationError, TypeError, ValueError) as error:
        notes.append(f"refused the weights: {_reason(task, error)}")
        weights = None
    if weights is None:
        weights = task.warm_start
    if dual is not None:
        try:
            dual_bound(task, dual)
        except (CertificationError, TypeError, ValueError, IndexError) as error:
            notes.append(f"refused the dual point: {_reason(task, error)}")
            dual = None
    if dual is None and derive is not None:
        dual = derive(weights)
    termination = raw.termination if raw.termination in set(Status) else Status.FAILED
    clean = replace(raw, weights=weights, dual=dual, proof=None, claimed_lower_bound=None, termination=termination)
    result = certify(task, clean, gap)
    accepted = _accepted_claim(task, claim, result.upper)
    if claim is not None and np.isnan(accepted):
        notes.append(
            f"refused the claimed lower bound {_figure(claim)}, as feasible weights have the error {result.upper:.6g}"
        )
    trace = tuple(p for p in raw.trace if not np.isnan(_accepted_claim(task, p.lower, result.upper)))
    if len(trace) < len(raw.trace) and not np.isnan(accepted):
        notes.append("refused claimed lower bounds of the trace that exceed the error of feasible weights")
    status = result.status
    if status not in (Status.OPTIMAL, Status.GAP_REACHED) and termination in (
        Status.OPTIMAL, Status.GAP_REACHED, Status.CLAIMED,
    ):  # fmt: skip
        goal = max(OPTIMAL_RELATIVE, gap) * (1 + 1e-6) * result.upper + OPTIMAL_ABSOLUTE * task.energy
        status = Status.CLAIMED if result.upper - accepted <= goal else Status.FAILED
        if status == Status.FAILED:
            notes.append("the solver calls the channel solved, but its weights and its bound do not agree")
    return replace(result, status=status, claimed_lower=accepted, trace=trace, notes=tuple(notes))


def _leaf_error(task: Task[AllowedSet], leaf: Float) -> float:
    """The least error of what a visited point stands for, from below."""
    if has_leaves(task.allowed):
        return dual_bound(task, Leaf(leaf))
    return task_error(task, task.allowed.exact(leaf), FEW_INPUTS)[0]


def task_error(task: Task[AllowedSet], weights: Float, most: int = EXACT_INPUTS) -> tuple[float, float]:
    """Enclosure of the error of weights, without the constant; exactly where visible, up to ``most`` inputs."""
    if task.metric is not None:
        return metric_interval(task.gram, task.metric, task.target, weights)
    return objective_interval(task.gram, task.target, weights, most)


def _accepted_claim(task: Task[AllowedSet], claim: Any, upper: float) -> float:
    """The claim, lowered to the error of feasible weights where solver tolerances explain the rest; else NaN."""
    try:
        value = float(claim)
    except (TypeError, ValueError):
        return np.nan
    if value == -np.inf:
        return task.constant
    if not np.isfinite(value) or value > upper + CLAIM_RELATIVE * upper + CLAIM_ABSOLUTE * task.energy:
        return np.nan
    return max(min(value, upper), task.constant)


def _reason(task: Task[AllowedSet], error: Exception) -> str:
    return str(error).removeprefix(f"channel {task.channel}: ").rstrip(".")


def _figure(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, (int, float)) else repr(value)


def dual_bound(task: Task[AllowedSet], dual: Dual) -> float:
    """Lower bound on (v − w)ᵀH(v − w) over the allowed weights, from a dual point.

    Raises
    ------
    CertificationError
        If the dual point is malformed or of the wrong kind.
    """
    try:
        return least(task.gram, task.target, task.allowed, dual, task.metric)
    except CertificationError as error:
        raise CertificationError(f"channel {task.channel}: {error}") from error


def feasible_weights(task: Task[AllowedSet], weights: Float | None) -> Float:
    """The exactly allowed weights that a backend means; those nearest to the target where it has none.

    Raises
    ------
    CertificationError
        If they are not allowed.
    """
    if weights is None:
        return task.allowed.nearest(task.target)
    v = np.asarray(weights, dtype=np.float64)
    if v.shape != task.target.shape or not np.all(np.isfinite(v)):
        raise CertificationError(f"channel {task.channel}: the backend returned weights of a wrong shape or NaN.")
    try:
        return task.allowed.exact(v)
    except NotAllowedError as error:
        raise CertificationError(f"channel {task.channel}: the backend returned {error}.") from error


def _down(value: float) -> float:
    return float(np.nextafter(value, -np.inf))


def _up(value: float) -> float:
    return float(np.nextafter(value, np.inf))
