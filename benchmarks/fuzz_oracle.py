"""What the fuzz judges results by: the exact optimum of a case, and whether weights are allowed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

import layerbounds as lb
from benchmarks.exact import Channel, Optimum, Rows, divisions, supports, unit_groups
from benchmarks.fuzz_cases import Case
from layerbounds.arrays import Float


def counting_gram(case: Case, c: int) -> Float:
    """The matrix that counts: for weights that may take any value with what rounding took off its diagonal."""
    layer = case.problem.layer
    gram = np.array(layer.channel_gram(c))
    if case.problem.allowed(c).free:
        np.fill_diagonal(gram, np.diag(gram) * (1.0 + layer.gram_reports[layer.group_of(c)].raised))
    return gram


def best(case: Case, channels: Sequence[Channel], rows: Sequence[int]) -> Optimum:
    """The exact optimum of a set of channels of a case."""
    return _best_shared(case, Rows(channels), rows) if coupled(case) else _best_channel(case, channels[0], rows[0])


def feasible(case: Case, rows: Sequence[int], weights: Float) -> bool:
    """Whether weights of a set of channels, shape (rows, n), are allowed."""
    return _feasible_rows(case, rows, weights) if coupled(case) else _feasible_channel(case, rows[0], weights[0])


def coupled(case: Case) -> bool:
    """Whether output channels share their mask."""
    return isinstance(case.problem, lb.PruningProblem) and case.problem.share != 1


def _best_shared(case: Case, channels: Rows, rows: Sequence[int]) -> Optimum:
    problem = case.problem
    assert isinstance(problem, lb.PruningProblem)
    allowed = list(supports(case.pattern, problem.layer.in_features, problem.kept, problem.refit))
    return channels.best_support(allowed) if problem.refit else channels.best_mask(problem.layer.matrix[rows], allowed)


def _feasible_rows(case: Case, rows: Sequence[int], weights: Float) -> bool:
    problem = case.problem
    assert isinstance(problem, lb.PruningProblem)
    used = np.any(weights != 0.0, axis=0)
    for units, room in unit_groups(case.pattern, len(used), problem.kept):
        kept = [unit for unit in units if used[unit].any()]
        if len(kept) > room:
            return False
        live = [i for unit in kept for i in unit if problem.layer.live(problem.layer.group_of(rows[0]))[i]]
        if not problem.refit and not np.array_equal(weights[:, live], problem.layer.matrix[rows][:, live]):
            return False
    return True


def _best_channel(case: Case, channel: Channel, c: int) -> Optimum:
    problem, n = case.problem, channel.size
    if isinstance(problem, lb.QuantizationProblem):
        levels = problem.grid.levels(c)
        # Inputs without energy add nothing, whatever their level.
        live = np.diag(channel.gram) > 0
        count = np.where(live, levels.shape[1], 1)
        return channel.best_point(levels, np.indices(tuple(count)).reshape(n, -1).T)
    if isinstance(problem, lb.JointProblem):
        levels = problem.grid.levels(c)
        values = np.concatenate([np.zeros((n, 1)), levels], axis=1)
        # Dropping inputs without energy costs nothing.
        count = np.where(np.diag(channel.gram) > 0, values.shape[1], 1)
        choices = np.indices(tuple(count)).reshape(n, -1).T
        return channel.best_point(values, choices[_fits(case, values[np.arange(n), choices] != 0.0)])
    if isinstance(problem, lb.FreeCodebookProblem):
        live = np.flatnonzero(np.diag(channel.gram) > 0)
        core = Channel(channel.gram[np.ix_(live, live)], channel.target[live], float(channel.constant))
        return core.best_division(divisions(len(live), problem.count))
    if isinstance(problem, lb.FreeScaleProblem):
        live = np.flatnonzero(np.diag(channel.gram) > 0)
        core = Channel(channel.gram[np.ix_(live, live)], channel.target[live], float(channel.constant))
        allowed = problem.allowed(c)
        lists = [problem.codes] if allowed.zero == "real" else allowed.boxes()
        choices = itertools.chain.from_iterable(itertools.product(codes.tolist(), repeat=len(live)) for codes in lists)
        return core.best_ray(choices, allowed.limit, allowed.zero == "real")
    if problem.refit:
        return channel.best_support(list(supports(case.pattern, n, problem.kept, True)))
    kept = list(supports(case.pattern, n, problem.kept, False))
    masks = np.zeros((len(kept), n), dtype=np.int64)
    for mask, support in zip(masks, kept, strict=True):
        mask[support] = 1
    return channel.best_point(np.stack([np.zeros(n), problem.layer.matrix[c]], axis=1), masks)


def _fits(case: Case, kept: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Which sets of kept inputs, shape (sets, n), a case's pattern allows."""
    fits = np.ones(len(kept), dtype=bool)
    for units, room in unit_groups(case.pattern, kept.shape[1], case.problem.kept):  # type: ignore[union-attr]
        fits &= sum(kept[:, unit].any(axis=1).astype(np.int64) for unit in units) <= room
    return fits


def _feasible_channel(case: Case, c: int, weights: Float) -> bool:
    problem, n = case.problem, len(weights)
    if isinstance(problem, lb.QuantizationProblem):
        return bool(np.all(np.any(problem.grid.levels(c) == weights[:, None], axis=1)))
    if isinstance(problem, lb.JointProblem):
        values = np.concatenate([np.zeros((n, 1)), problem.grid.levels(c)], axis=1)
        return bool(np.all(np.any(values == weights[:, None], axis=1)) and _fits(case, weights[None] != 0.0)[0])
    if isinstance(problem, lb.FreeCodebookProblem):
        return len(np.unique(weights)) <= problem.count
    if isinstance(problem, lb.FreeScaleProblem):
        # Whether one rounding of s·q explains weights is decided in rational arithmetic.
        return bool(lb.evaluate(problem, weights[None], channels=[c]).feasible[0])
    if not problem.refit and not np.all((weights == 0.0) | (weights == problem.layer.matrix[c])):
        return False
    kept = set(np.flatnonzero(weights).tolist())
    return any(kept <= set(support) for support in supports(case.pattern, n, problem.kept, True))
