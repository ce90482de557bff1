"""Methods that need given scales, on problems that leave them free: each scale rule is a start, then both alternate."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from layerbounds.arrays import Float
from layerbounds.exceptions import InputError
from layerbounds.methods.registry import run_channels
from layerbounds.methods.specs import MethodSpec
from layerbounds.problems.evaluation import evaluate
from layerbounds.problems.free_scale import FreeScaleProblem
from layerbounds.problems.gram_range import fitted_grid, fitting_ranges
from layerbounds.problems.grids import Range
from layerbounds.problems.problem import Problem
from layerbounds.problems.quantization import QuantizationProblem

#: Runs of a method at scales that its last weights want, and the relative gain that is worth another one.
_TURNS, _GAIN = 6, 1e-4
#: The same for methods with a time limit.
_LONG_TURNS = 2


@dataclasses.dataclass(frozen=True, eq=False)
class Rescaling:
    """A problem over all scales, and the same at the scales of some ranges.

    Attributes
    ----------
    problem : FreeScaleProblem
    starts : list of QuantizationProblem
    """

    problem: FreeScaleProblem
    starts: list[QuantizationProblem]

    def run(self, spec: MethodSpec, channels: Sequence[int], seed: int, threads: int) -> tuple[Float, float]:
        """What `run_rescaled` finds."""
        return run_rescaled(spec, self.problem, self.starts, channels, seed, threads)


@functools.singledispatch
def rescaling(problem: Problem, ranges: Sequence[Range]) -> Rescaling | None:
    """How methods that need given scales treat a problem that leaves them free; None where nothing is left free."""
    return None


@rescaling.register
def _(problem: FreeScaleProblem, ranges: Sequence[Range]) -> Rescaling:
    return Rescaling(problem, starting_grids(problem, ranges))


def starting_grids(problem: FreeScaleProblem, ranges: Sequence[Range]) -> list[QuantizationProblem]:
    """The problem at the scales of each range, by their names; all that fit it where none are named."""
    if problem.granularity is None:
        raise InputError("scale groups given as g_idx are fitted by no range; pass granularity instead.")
    count = len(problem.codes)
    bits = count.bit_length() - 1 if problem.uniform and count == 2 ** (count.bit_length() - 1) else None
    codebook = None if bits is not None else (problem.name if problem.powers_of_two else problem.codes)
    symmetric = None if bits is None else problem.zero == "none"
    named = list(ranges) or fitting_ranges(bits, codebook, symmetric)
    grids = [
        fitted_grid(
            problem.layer, bits, codebook=codebook, symmetric=symmetric, granularity=problem.granularity, range=name
        )
        for name in named
    ]
    return [QuantizationProblem(problem.layer, grid) for grid in grids]


def run_rescaled(
    spec: MethodSpec,
    problem: FreeScaleProblem,
    starts: Sequence[QuantizationProblem],
    channels: Sequence[int],
    seed: int,
    threads: int,
) -> tuple[Float, float]:
    """The best weights, shape (channels, n), that a method finds from any start, and the seconds that it worked.

    From each start the method and the best scales for its codes alternate until no channel gains.
    """
    options, turns = spec.options, 1 if problem.powers_of_two else _TURNS
    if "time_limit" in spec.heuristic.options:
        # What takes as long as it may divides its time among the starts.
        given = options.get("time_limit", spec.heuristic.options["time_limit"])
        options, turns = {**options, "time_limit": given / len(starts)}, min(turns, _LONG_TURNS)
    sets, position = problem.sets(channels), {channel: row for row, channel in enumerate(channels)}
    best, least, seconds = np.zeros((len(channels), problem.layer.in_features)), np.full(len(sets), np.inf), 0.0
    for start in starts:
        grid, reached = start.grid, np.full(len(sets), np.inf)
        for _ in range(turns):
            at_scales = QuantizationProblem(problem.layer, grid)
            found, its_seconds = run_channels(spec.heuristic, at_scales, channels, seed, options, threads)
            seconds += its_seconds
            weights = problem.rescaled(found, channels)
            error = evaluate(problem, weights, channels).error
            for index in np.flatnonzero(error < least):
                rows = [position[c] for c in sets[index]]
                best[rows], least[index] = weights[rows], error[index]
            if not np.any(error < reached * (1 - _GAIN)):
                break
            reached = np.minimum(reached, error)
            scale, zero = grid.scale.copy(), grid.zero_point.copy()
            scale[list(channels)], zero[list(channels)] = problem.scales(weights, channels)
            grid = dataclasses.replace(grid, scale=scale, zero_point=zero)
    return best, seconds
