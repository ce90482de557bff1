"""Channels with one scale each: the search over all scales, for each kind of zero point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from layerbounds.arrays import Float, Int
from layerbounds.bounds.scale.dual import rounding_charge
from layerbounds.bounds.scale.projection import counted_from, project
from layerbounds.problems.scale_nearest import snapped_zero
from layerbounds.problems.scaled import ScaledLevels
from layerbounds.problems.tasks import Task
from layerbounds.proofs import Control, RawSolve, SearchProof, Status
from layerbounds.search.quantization.cut_tests import prepare_cuts
from layerbounds.search.quantization.effort import announce
from layerbounds.search.quantization.preparation import Preparation, order_exponent, prepare
from layerbounds.search.scale.channel import CLOSE_AT_ONCE, LARGEST_TREE, Found, ScaleSearch
from layerbounds.search.scale.fixed_scale import prepare_points
from layerbounds.search.scale.tensor import TensorSearch

NO_SCALE = "no code is 0 and every scale is worse than none: the error of no weights is approached by small scales only"

SHARED_ZERO = "a real zero point that all channels share is not searched; integer ones, or one per channel, are"


@dataclass(frozen=True, eq=False)
class Shared:
    """What the channels of a group share.

    Attributes
    ----------
    prep : Preparation or None
        None where no input is left.
    gram : ndarray
        What was prepared.
    left : ndarray of int64, or None
        With real zero points: the inputs other than the one from which weights are counted.
    dropped : int
        That input.
    """

    prep: Preparation | None
    gram: Float
    left: Int | None = None
    dropped: int = 0


def prepare_shared(gram: Float, allowed: ScaledLevels) -> Shared:
    """Factorize the Gram matrix of live inputs, or what real zero points leave of it (docs/scales.md)."""
    shared = _factorize(gram, allowed.zero == "real")
    if shared.prep is not None and shared.prep.size > CLOSE_AT_ONCE and allowed.rows == 1:
        n = len(shared.gram)
        prepare_points(shared.gram, np.zeros(n, dtype=np.int64), allowed.boxes())
        if n <= LARGEST_TREE:
            prepare_cuts(shared.prep)
    return shared


def _factorize(gram: Float, real_zero: bool) -> Shared:
    if not real_zero:
        say = partial(announce, len(gram), 1)
        return Shared(prepare(gram, order_exponent(len(gram)), before=say), gram)
    group = np.zeros(len(gram), dtype=np.int64)
    (dropped,) = counted_from(gram, group)
    found = project(gram, group, (dropped,)) if len(gram) > 1 else None
    # Where rounding leaves nothing of a diagonal entry, nothing can be factorized.
    if found is None or np.any(np.diag(found[0]) <= 0.0):
        return Shared(None, gram, np.delete(np.arange(len(gram)), dropped), dropped)
    matrix, left = found
    return Shared(prepare(matrix, order_exponent(len(left))), matrix, left, dropped)


def search_one_scale(task: Task[ScaledLevels], shared: Shared, control: Control) -> RawSolve:
    """Solve a channel with one scale, of at least one live input."""
    allowed = task.allowed
    if shared.prep is None:
        # A single input and a real zero point: every weight is allowed.
        exact = task.target if len(task.target) == 1 else None
        return RawSolve(exact, Status.OPTIMAL if exact is not None else Status.UNRESOLVED)
    target, limit = task.target, allowed.limit
    dropped: tuple[int, ...] = ()
    rounding: Callable[[float], float] | None = None
    if shared.left is not None:
        # Far from zero the weights themselves are rounded more than their differences.
        rounding = partial(rounding_charge, task.gram, task.target, limit)
        target, limit, dropped = target[shared.left] - target[shared.dropped], 2.0 * limit, (shared.dropped,)
    search = ScaleSearch(
        shared.prep, shared.gram, target, dropped, allowed.boxes(), limit, allowed.powers_of_two, task.constant,
        control, (control.seed, task.channel), _starts(task, shared), rounding,
    )  # fmt: skip
    found = search.run()
    proof = None
    if found.proven > 0.0:
        leaves = None if found.leaves is None else [_weights(task, shared, leaf) for leaf in found.leaves]
        stacked = None if leaves is None else np.array(leaves).reshape(-1, len(task.target))
        proof = SearchProof(found.proven, found.allowance, stacked)
    limit_only = found.best.scale == 0.0 and not _has_zero(allowed)
    return RawSolve(
        weights=_weights(task, shared, found.best),
        termination=found.termination,
        proof=proof,
        dual=found.dual,
        nodes=found.nodes,
        trace=found.trace,
        notes=(NO_SCALE,) if limit_only else (),
    )


def _has_zero(allowed: ScaledLevels) -> bool:
    return allowed.zero != "none" or 0.0 in allowed.codes


def search_shared_scale(task: Task[ScaledLevels], shared: Shared, control: Control) -> RawSolve:
    """Solve the channels of a layer that share their scale."""
    allowed = task.allowed
    if allowed.zero == "real":
        # The shared zero point ties all channels together: nothing here searches that.
        near = allowed.rescaled(allowed.nearest(task.targets), task.gram, task.targets)
        return RawSolve(near, Status.UNRESOLVED, notes=(SHARED_ZERO,))
    assert shared.prep is not None
    search = TensorSearch(
        shared.prep, task.targets, allowed.boxes(), allowed.limit, allowed.powers_of_two, task.constant, control
    )
    found = search.run()
    weights = found.scale * found.codes + 0.0 if found.scale > 0.0 else allowed.nearest(np.zeros_like(task.targets))
    return RawSolve(
        weights=weights,
        termination=found.termination,
        proof=SearchProof(found.proven, found.allowance) if found.proven > 0.0 else None,
        nodes=found.nodes,
        trace=found.trace,
    )


def _starts(task: Task[ScaledLevels], shared: Shared) -> list[tuple[int, Float]]:
    """The box and the codes of the warm start."""
    fit = None if task.warm_start is None else task.allowed.fit(task.warm_start)
    if fit is None:
        return []
    allowed, codes, zero = task.allowed, fit.codes, float(fit.zero_point[0])
    if allowed.zero == "none":
        return [(1, 0.0 - codes)] if fit.scale[0] < 0 and len(allowed.boxes()) > 1 else [(0, codes)]
    if allowed.zero == "integer":
        return [(int(zero), codes - zero)] if 0 <= zero < len(allowed.codes) else []
    assert shared.left is not None
    own = float(codes[shared.dropped])
    return [(int(own), codes[shared.left] - own)]


def _weights(task: Task[ScaledLevels], shared: Shared, found: Found) -> Float:
    """Weights of codes at their scale, rounded once."""
    if found.scale == 0.0:
        return _smallest(task, found)
    if shared.left is None:
        return np.asarray(found.scale * found.codes) + 0.0
    codes = np.zeros(len(task.target))
    codes[shared.left] = found.codes
    ones = task.gram.sum(axis=1)
    offset = float(ones @ (task.target - found.scale * codes) / ones.sum())
    return found.scale * (codes - snapped_zero(-offset / found.scale, len(task.allowed.codes))) + 0.0


def _smallest(task: Task[ScaledLevels], found: Found) -> Float:
    """No weights, or the smallest worth writing down where no code is 0: the best scale is the limit of small ones."""
    if _has_zero(task.allowed):
        return np.zeros(len(task.target))
    size = float(np.max(np.abs(task.target)))
    tiny = 2.0 ** float(np.floor(np.log2(size if size > 0 else 1.0)) - 60.0)
    return np.asarray(tiny * found.codes) + 0.0
