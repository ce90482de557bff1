"""One stage of an order, for all channels: solved exactly or by a heuristic, and what it says about f."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from layerbounds.arrays import Bool, Float
from layerbounds.certify.kept_inputs import error_interval, lower_bound_on_kept
from layerbounds.exceptions import UnsupportedProblemError
from layerbounds.layers.layer import Layer
from layerbounds.methods.registry import run_channels
from layerbounds.methods.specs import MethodSpec
from layerbounds.orders.definitions import Kind, Stage, Target
from layerbounds.orders.gap import StageRecord
from layerbounds.orders.kept import kept_inputs, rows_of
from layerbounds.orders.others import NONE, NOT_ASKED, other_levels, other_supports
from layerbounds.problems.evaluation import squared_error
from layerbounds.problems.grids import Grid
from layerbounds.problems.patterns import Pattern
from layerbounds.problems.problem import Problem
from layerbounds.problems.pruning import PruningProblem
from layerbounds.problems.quantization import QuantizationProblem
from layerbounds.proofs import Status
from layerbounds.solution import Solution
from layerbounds.solve import solve

#: How an exact stage is called; other methods by their names.
EXACT = "exact"


@dataclass(frozen=True, eq=False)
class State:
    """What the stages so far left.

    Attributes
    ----------
    weights : ndarray of shape (channels, n)
    mask : ndarray of bool, shape (channels, n), or None
        Which inputs are kept; None before any pruning.
    quantized : bool
    intervals : ndarray of shape (channels, 2)
        Of the error f of what the last stage may leave, given the weights before it.
    """

    weights: Float
    mask: Bool | None
    quantized: bool
    intervals: Float


@dataclass(frozen=True, eq=False)
class Workshop:
    """Runs stages on the chosen channels of one layer, and remembers those that orders have in common.

    Attributes
    ----------
    layer : Layer
        The chosen channels, a row each.
    channels : list of int
    limits : mapping
        Arguments for `solve`.
    jobs, seed : int
        For heuristics.
    look : bool
        Whether to look for other weights near the least error of a stage.
    memory : dict
        Results by what was solved: the same for several grids and patterns.
    """

    layer: Layer
    channels: list[int]
    limits: Mapping[str, Any]
    jobs: int
    seed: int
    look: bool
    memory: dict[tuple[str, str], tuple[StageRecord, Solution | None]] = field(default_factory=dict)

    def begin(self) -> State:
        """The dense weights."""
        count = self.layer.out_features
        return State(self.layer.matrix, None, False, np.tile([0.0, np.inf], (count, 1)))

    def run(
        self,
        stage: Stage,
        state: State,
        pattern: Pattern,
        kept: int,
        grid: Grid,
        method: MethodSpec | None,
        last: bool,
    ) -> tuple[State, StageRecord]:
        """Do a stage.

        Parameters
        ----------
        stage : Stage
        state : State
            What the stages before it left.
        pattern : Pattern
        kept : int
        grid : Grid
            For the rows of ``layer``.
        method : MethodSpec or None
            None solves the stage exactly.
        last : bool
            Whether no stage follows: then other weights of nearly the same error f would change nothing.

        Raises
        ------
        KeyboardInterrupt
            After a Ctrl-C.
        UnsupportedProblemError
            If the method cannot treat the stage.
        """
        blind = stage.target == Target.PREVIOUS
        look = self.look and (blind or not last)
        mask = state.mask
        levels: Callable[[int], Float] | None = None
        if stage.kind == Kind.QUANTIZE:
            quantized = self._quantization(state, grid, blind)
            problem: Problem = quantized
            record = self._solved(stage, problem, method, lambda s: other_levels(quantized, s, self.limits), look)
            if mask is not None:
                # What was left out is dead in the problem, which is free to give it any level.
                record = replace(record, weights=np.where(mask, record.weights, 0.0))
                levels = _levels_on(mask, quantized)
        else:
            pruned = self._pruning(stage, state, pattern, kept, blind)
            problem = pruned
            record = self._solved(stage, problem, method, lambda s: other_supports(pruned, s, self.limits), look)
            # A kept weight may be zero by chance; in a unit of several inputs it stays kept.
            mask = pruned.structure.kept_units(record.weights)[:, pruned.structure.unit]
        intervals = [
            self._interval(problem, record, method, state, row, blind, levels) for row in range(self.layer.out_features)
        ]
        on_grid = state.quantized or stage.kind == Kind.QUANTIZE
        return State(record.weights, mask, on_grid, np.array(intervals)), record

    def _pruning(self, stage: Stage, state: State, pattern: Pattern, kept: int, blind: bool) -> PruningProblem:
        layer = self.layer
        if blind:
            everything = np.ones_like(state.weights, dtype=bool)
            rows = list(range(layer.out_features))
            layer = kept_inputs(layer, rows, everything, weights=state.weights)
        elif state.quantized:
            layer = rows_of(layer, range(layer.out_features), state.weights)
        return PruningProblem(layer, pattern, kept, stage.kind == Kind.PRUNE_REFIT)

    def _quantization(self, state: State, grid: Grid, blind: bool) -> QuantizationProblem:
        layer = self.layer
        if state.mask is not None or blind:
            mask = np.ones_like(state.weights, dtype=bool) if state.mask is None else state.mask
            rows = list(range(layer.out_features))
            layer = kept_inputs(layer, rows, mask, weights=state.weights if blind else None)
        return QuantizationProblem(layer, grid)

    def _solved(
        self,
        stage: Stage,
        problem: Problem,
        method: MethodSpec | None,
        others: Callable[[Solution], list[str]],
        look: bool,
    ) -> StageRecord:
        """The stage's own problem, solved or taken from memory; ``others`` looks for other weights, if asked to."""
        key = (f"{problem.fingerprint()}/{stage}", EXACT if method is None else method.label)
        if key not in self.memory:
            done = self._exact(stage, problem) if method is None else (self._by(stage, problem, method), None)
            self.memory[key] = done
        record, solution = self.memory[key]
        if look and solution is not None and NOT_ASKED in record.others:
            record = replace(record, others=others(solution))
            self.memory[key] = record, solution
        return record

    def _exact(self, stage: Stage, problem: Problem) -> tuple[StageRecord, Solution]:
        solution = solve(problem, **self.limits)
        if solution.interrupted:
            raise KeyboardInterrupt
        record = StageRecord(
            definition=str(stage),
            towards_layer=stage.target == Target.LAYER,
            method=EXACT,
            problem=problem.label,
            lower_bound=solution.lower_bound,
            upper_bound=solution.upper_bound,
            weights=solution.weights.reshape(len(solution.channels), -1),
            proven=np.array([status == Status.OPTIMAL for status in solution.status]),
            others=[NOT_ASKED] * len(solution.channels),
        )
        return record, solution

    def _by(self, stage: Stage, problem: Problem, method: MethodSpec) -> StageRecord:
        rows = list(range(problem.layer.out_features))
        if not method.heuristic.can_treat(problem):
            raise UnsupportedProblemError(
                f"method {method.label!r} cannot treat the stage {str(stage.kind)!r} of {problem.label}; see "
                "`layerbounds heuristics`."
            )
        weights, _ = run_channels(method.heuristic, problem, rows, self.seed, method.options, self.jobs)
        layer = problem.layer
        error = np.array(
            [squared_error(problem.gram(r), weights[r] - layer.target[r]) + layer.constant[r] for r in rows]
        )
        return StageRecord(
            definition=str(stage),
            towards_layer=stage.target == Target.LAYER,
            method=method.label,
            problem=problem.label,
            lower_bound=error,
            upper_bound=error,
            weights=weights,
            proven=np.ones(len(rows), dtype=bool),
            others=[NONE] * len(rows),
        )

    def _interval(
        self,
        problem: Problem,
        record: StageRecord,
        method: MethodSpec | None,
        before: State,
        row: int,
        blind: bool,
        levels: Callable[[int], Float] | None,
    ) -> tuple[float, float]:
        """Of f, for a row: of the weights found where they are the stage's result, else of all that may be it."""
        layer = self.layer
        low, high = error_interval(layer, row, record.weights[row])
        if method is not None or (blind and record.proven[row]):
            return low, high
        if blind:
            return _triangle(layer, row, before.weights[row], float(record.upper_bound[row]))
        lower = float(record.lower_bound[row])
        if levels is not None:
            lower = lower_bound_on_kept(layer, row, problem.layer, row, lower, levels(row))
        return min(lower, high), high


def _levels_on(mask: Bool, problem: QuantizationProblem) -> Callable[[int], Float]:
    """What the weights of a row may be: levels where they are kept, zero elsewhere."""
    return lambda row: np.where(mask[row][:, None], problem.allowed(row).values, 0.0)


def _triangle(layer: Layer, row: int, given: Float, error: float) -> tuple[float, float]:
    """The error f of weights whose outputs differ from those of given ones by ``error``: √(vᵀHv) is a seminorm."""
    constant = float(layer.constant[row])
    low, high = (max(end - constant, 0.0) for end in error_interval(layer, row, given))
    near, far = math.sqrt(low) - math.sqrt(error), math.sqrt(high) + math.sqrt(error)
    # Far more than the roundings.
    return max(near, 0.0) ** 2 * (1.0 - 1e-12) + constant * (1.0 - 1e-15), (far**2 + constant) * (1.0 + 1e-12)
