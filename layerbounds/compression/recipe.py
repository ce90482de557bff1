"""How each layer of a model is compressed: the problem, the method, and the interval beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from layerbounds.arguments import flag, real_number, shown, whole_number
from layerbounds.arrays import Float
from layerbounds.exceptions import InputError
from layerbounds.layers.bias import Bias
from layerbounds.layers.layer import Layer
from layerbounds.methods.options import resolve_options
from layerbounds.methods.registry import find_heuristic, run_heuristic
from layerbounds.problems.grids import MAX_BITS, Granularity, Grid, Range, granularity_size
from layerbounds.problems.joint import JointProblem, joint_problem
from layerbounds.problems.problem import Problem
from layerbounds.problems.pruning import pruning_problem
from layerbounds.problems.quantization import QuantizationProblem, quantization_problem
from layerbounds.problems.ranges.registry import find_range
from layerbounds.solve import solve
from layerbounds.suggestions import did_you_mean

#: In place of a heuristic's name: the weights that reach the upper ends of the intervals.
SOLVE = "solve"
#: What quantizes, prunes, and does both where no method is named.
QUANTIZE, PRUNE, BOTH = "gptq", "obs", "obc"


@dataclass(frozen=True)
class Found:
    """Weights for a problem, and the certified interval beside them if one was asked for."""

    weights: Float
    lower_bound: Float | None = None
    upper_bound: Float | None = None
    interrupted: bool = False


@dataclass(frozen=True)
class Recipe:
    """The arguments of `compress` that are about a layer; ``chosen`` is the method, named or not.

    ``rounding`` turns a fitted grid into one that a format can store, before the weights are chosen.

    Raises
    ------
    InputError
        If they contradict each other.
    """

    method: str | None
    bits: int | None
    density: float | None
    pattern: str | None
    share: int | Literal["all"] | None
    axis: str | None
    granularity: Granularity | None
    symmetric: bool | None
    range: Range | None
    refit: bool
    bias: Bias
    intervals: bool
    time_limit: float
    jobs: int | None
    seed: int
    options: Mapping[str, Any]
    rounding: Callable[[Grid], Grid] | None = None

    def __post_init__(self) -> None:
        if self.bits is None and not self.prunes:
            raise InputError("pass bits to quantize, density or pattern to prune, or both of them.")
        if self.bits is None and not (self.granularity is None and self.symmetric is None and self.range is None):
            raise InputError("granularity, symmetric and range are about grids; leave them out without bits.")
        if not self.prunes and not (self.share is None and self.axis is None):
            raise InputError("share and axis are about patterns; leave them out without density and pattern.")
        if self.bits is not None and self.share is not None:
            raise InputError("quantized weights have a mask for each output channel; leave out share, or bits.")
        if self.bits is not None and not self.refit:
            raise InputError("refit=False is for pruning alone; leave it out with bits.")
        if self.bits is not None:
            self._check_grid()
        if self.method is not None and not isinstance(self.method, str):
            raise InputError(f"method is {shown(self.method)}; pass the name of a heuristic, or 'solve'.")
        limit = real_number(self.time_limit, "time_limit", 0.0, unit="number of seconds")
        if limit and not self.intervals and self.chosen != SOLVE:
            raise InputError("time_limit is for the search for intervals; leave it out with intervals=False.")
        if self.chosen == SOLVE and self.options:
            option = next(iter(self.options))
            hint = did_you_mean(option, ("time_limit", "jobs", "seed"))
            raise InputError(f"method 'solve' has no option {option!r}; {hint}pass time_limit, jobs or seed.")
        if self.chosen != SOLVE:
            # A mistyped name must not cost a run of the model.
            resolve_options(find_heuristic(self.chosen), self.options)

    def _check_grid(self) -> None:
        """Refuse what no layer can have, before the model runs."""
        whole_number(self.bits, "bits", 1, MAX_BITS)
        if self.granularity is not None:
            granularity_size(self.granularity, 1)
        if self.symmetric is not None:
            flag(self.symmetric, "symmetric")
        if self.range is not None:
            find_range(self.range)

    @property
    def chosen(self) -> str:
        """The method that was named, or the one that treats such problems."""
        if self.method is not None:
            return self.method
        return QUANTIZE if not self.prunes else PRUNE if self.bits is None else BOTH

    @property
    def prunes(self) -> bool:
        """Whether weights are pruned."""
        return self.density is not None or self.pattern is not None

    def problem(self, layer: Layer) -> Problem:
        """What is asked of the weights of a layer."""
        pattern = "unstructured" if self.pattern is None else self.pattern
        if self.bits is None:
            return pruning_problem(
                layer, density=self.density, pattern=pattern, share=self.share, axis=self.axis, refit=self.refit,
                bias=self.bias,
            )  # fmt: skip
        grid: dict[str, Any] = {
            "symmetric": self.symmetric, "granularity": self.granularity, "range": self.range, "bias": self.bias
        }  # fmt: skip
        problem: Problem
        if self.prunes:
            problem = joint_problem(layer, self.bits, density=self.density, pattern=pattern, axis=self.axis, **grid)
        else:
            problem = quantization_problem(layer, self.bits, **grid)
        if self.rounding is None:
            return problem
        assert isinstance(problem, (QuantizationProblem, JointProblem))
        return replace(problem, grid=self.rounding(problem.grid))

    def apply(self, problem: Problem) -> Found:
        """Weights of the method, and the interval, whose search starts from them."""
        weights = None
        if self.chosen != SOLVE:
            weights = run_heuristic(self.chosen, problem, seed=self.seed, **self.options)
            if not self.intervals:
                return Found(weights)
        solution = solve(problem, time_limit=self.time_limit, jobs=self.jobs, seed=self.seed, warm_start=weights)
        return Found(
            solution.weights if weights is None else weights,
            solution.lower_bound,
            solution.upper_bound,
            solution.interrupted,
        )
