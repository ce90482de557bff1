"""The work on one layer: bounds of both methods at every compression, narrowed where a verdict is open."""

from __future__ import annotations

import bisect
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np

from layerbounds.arguments import flag, one_of, shown, whole_number
from layerbounds.contests.levels import Comparison, Level
from layerbounds.contests.match import Contender, Match
from layerbounds.contests.sample import compared_channels
from layerbounds.contests.work import Work
from layerbounds.exceptions import InputError
from layerbounds.layers.layer import Layer, as_layer
from layerbounds.problems.grids import MAX_BITS, Granularity, Range
from layerbounds.problems.patterns import Pattern, parse_pattern
from layerbounds.problems.patterns.single_rows import AXES
from layerbounds.problems.problem import Problem
from layerbounds.problems.pruning import PruningProblem, pruning_problem
from layerbounds.problems.quantization import quantization_problem
from layerbounds.problems.storage import Mask, check_mask


@dataclass(frozen=True)
class Rules:
    """What is compared and how it is computed.

    Attributes
    ----------
    granularity, range, symmetric
        Of the grids, as in `layerbounds.uniform_grid`.
    pattern : str
        A pattern that takes a density: bits/16, of its units where it counts these; or ``"N:M"`` with the letter N and
        a number M: bits·M/16 of every M inputs. Where masks count, as many as fit beside them.
    refit : bool
    backend : str
    jobs : int
        Threads.
    seed : int
    scale : {"free"} or None
        All scales instead of those of ``range``.
    zero_point : {"free", "real"} or None
        With ``scale``: as in `layerbounds.quantization_problem`.
    mask : {"none", "bitmap", "entropy", "metadata"}
        What a pattern's mask costs to store (`layerbounds.problems.storage`); pruning has what the bits leave.
    share : int, "all" or None
        How many output channels have one mask, as in `layerbounds.pruning_problem`.
    axis : {"flat", "in_channels"} or None
        Of N:M patterns.
    """

    granularity: Granularity = "channel"
    range: Range = "mse"
    symmetric: bool = True
    pattern: str = "unstructured"
    refit: bool = True
    backend: str = "auto"
    jobs: int = 1
    seed: int = 0
    scale: str | None = None
    zero_point: str | None = None
    mask: Mask = "none"
    share: int | Literal["all"] | None = None
    axis: str | None = None

    def prune(self, layer: Layer, pattern: str | Pattern, **kept: Any) -> PruningProblem:
        """A layer with a pattern; ``kept`` is its density or number."""
        problem = pruning_problem(layer, pattern=pattern, share=self.share, axis=self.axis, refit=self.refit, **kept)
        # Filters have been refused by now: they have no number of units.
        return cast(PruningProblem, problem)

    def check(self) -> None:
        """Refuse what later work would stumble over.

        Raises
        ------
        InputError
        """
        whole_number(self.seed, "seed")
        flag(self.refit, "refit")
        flag(self.symmetric, "symmetric")
        check_mask(self.mask)
        if self.axis is not None:
            one_of(self.axis, "axis", AXES)
        if not isinstance(self.pattern, str):
            raise InputError(f"pattern is {shown(self.pattern)}; pass a text such as 'N:16'.")
        if not isinstance(self.backend, str):
            raise InputError(f"backend is {shown(self.backend)}; pass a name.")


class Pair(Match):
    """Quantization and pruning at one compression.

    Parameters
    ----------
    rivals : tuple of two Contender
    bits : int
    """

    def __init__(self, rivals: tuple[Contender[Any], Contender[Any]], bits: int) -> None:
        super().__init__(rivals)
        self.bits = bits

    @property
    def quantization(self) -> Contender[Problem]:
        """The first of the rivals."""
        return self.rivals[0]

    @property
    def pruning(self) -> Contender[PruningProblem]:
        """The second."""
        return self.rivals[1]


class Contest(Work[Comparison]):
    """Quantization against pruning of one layer.

    Parameters
    ----------
    layer : Layer
    bits : sequence of int
    channels : sequence of int or None
    rules : Rules
    sample : int, optional
        As in `layerbounds.contests.versus_layers`.
    """

    def __init__(
        self,
        layer: Layer,
        bits: Sequence[int],
        channels: Sequence[int] | None,
        rules: Rules,
        sample: int | None = None,
    ) -> None:
        as_layer(layer)
        bits = [whole_number(b, "bits", 1, MAX_BITS) for b in bits]
        if not bits or len(set(bits)) != len(bits):
            raise InputError(f"bits are {shown(bits)}; pass at least one number of bits, and each once.")
        rules.check()
        self.rules = rules
        problems = [(quantization(layer, b, rules), _pruning(layer, b, rules)) for b in bits]
        chosen = compared_channels(problems[0], channels, sample)
        self.pairs = [
            Pair((Contender.start(quantized, chosen), Contender.start(pruned, chosen)), int(b))
            for b, (quantized, pruned) in zip(bits, problems, strict=True)
        ]
        super().__init__(layer, chosen, rules.backend, rules.jobs, rules.seed)

    @property
    def matches(self) -> Sequence[Match]:
        """One at every compression."""
        return self.pairs

    def sections(self) -> list[tuple[dict[str, Any], dict[str, Contender[Any]]]]:
        """Both contenders at every compression."""
        return [({"bits": p.bits}, {"quantization": p.quantization, "pruning": p.pruning}) for p in self.pairs]

    def carry(self) -> None:
        """What is kept of fewer inputs is allowed for more: upper bounds carry up, lower bounds carry down."""
        ordered = sorted((pair.pruning for pair in self.pairs), key=_kept)
        for fewer, more in itertools.pairwise(ordered):
            for index, (_, high) in enumerate(fewer.bounds.tolist()):
                more.merge(index, -np.inf, high, fewer.best(index))
        for fewer, more in reversed(list(itertools.pairwise(ordered))):
            for index, (low, _) in enumerate(more.bounds.tolist()):
                fewer.merge(index, low, np.inf, None)

    def result(self) -> Comparison:
        """What is known now."""
        levels = tuple(
            Level(
                bits=pair.bits,
                kept=_kept(pair.pruning),
                quantization_problem=pair.quantization.problem.label,
                pruning_problem=pair.pruning.problem.label,
                quantization=pair.bounds(0),
                pruning=pair.bounds(1),
                energy=np.array([math.fsum(self.energy[unit]) for unit in pair.units]),
                seconds=float(pair.quantization.seconds.sum() + pair.pruning.seconds.sum()),
                scales="fixed" if self.rules.scale is None else "free",
                mask=self.rules.mask,
                share=pair.bits / 16.0 if self.rules.mask == "none" else _kept(pair.pruning) / _total(pair.pruning),
            )
            for pair in self.pairs
        )
        return Comparison(
            self.layer.name,
            self.layer.in_features,
            self.layer.out_features,
            list(self.channels),
            levels,
            self.interrupted,
            [[self.channels[row] for row in unit] for unit in self.pairs[0].units],
        )


def quantization(layer: Layer, bits: int, rules: Rules) -> Problem:
    """Quantization on a fitted grid, or over all scales."""
    if rules.scale is None:
        if rules.zero_point is not None:
            raise InputError("zero_point is for free scales; pass scale='free' with it.")
        return quantization_problem(
            layer, bits, symmetric=rules.symmetric, granularity=rules.granularity, range=rules.range
        )
    if not isinstance(rules.scale, str) or rules.scale != "free":
        raise InputError(f"scale is {shown(rules.scale)}; pass 'free', or leave it out for fitted scales.")
    if rules.range != "mse":
        raise InputError("free scales are not fitted; leave out range, or scale='free'.")
    return quantization_problem(
        layer,
        bits,
        scale="free",
        zero_point=rules.zero_point,
        symmetric=None if rules.symmetric else False,
        granularity=rules.granularity,
    )


def _pruning(layer: Layer, bits: int, rules: Rules) -> PruningProblem:
    """Pruning at the density of equal bits."""
    if rules.mask != "none":
        return pruning_within(layer, bits, rules)
    size = _letter(rules.pattern)
    if size is None:
        if parse_pattern(rules.pattern).counts_units:
            # Units may have different sizes: what counts is what the largest hold.
            return pruning_within(layer, bits, rules)
        return rules.prune(layer, rules.pattern, density=bits / 16.0)
    if bits * size % 16:
        raise InputError(
            f"pattern {rules.pattern!r} keeps {bits * size / 16:g} of {size} inputs at {bits} bits, which is no whole "
            "number; choose N:16, or only bits that fit."
        )
    return rules.prune(layer, f"{bits * size // 16}:{size}")


def pruning_within(layer: Layer, budget: float, rules: Rules) -> PruningProblem:
    """The pruning that keeps most of what takes at most ``budget`` bits per weight with its mask.

    Raises
    ------
    InputError
        If the mask alone takes more.
    """
    size = _letter(rules.pattern)
    total = parse_pattern(rules.pattern).total(layer.weight.shape[1:]) if size is None else size

    def keeping(count: int) -> PruningProblem:
        if size is None:
            return rules.prune(layer, rules.pattern, k=count)
        return rules.prune(layer, f"{count}:{size}")

    def fits(count: int) -> bool:
        return keeping(count).storage(rules.mask) <= budget * (1 + 1e-12)

    counts = range(total + 1) if size is None else range(1, total)
    # More kept weights never take less, so that those that fit come first.
    count = bisect.bisect_left(counts, True, key=lambda c: not fits(c)) - 1
    if count < 0:
        raise InputError(
            f"pattern {rules.pattern!r} does not fit into {budget:g} bits per weight with mask {rules.mask!r}; choose "
            "more bits or another mask."
        )
    return keeping(counts[count])


def _letter(pattern: str) -> int | None:
    """The M of a pattern N:M with the letter N; None for the patterns that take a density."""
    match = re.fullmatch(r"[nN]:(\d+)", pattern.strip())
    if match is not None and int(match[1]) > 0:
        return int(match[1])
    if match is not None or not parse_pattern(pattern).needs_count:
        raise InputError(
            f"pattern {pattern!r} keeps as many inputs at any number of bits; write N:16, with the letter N, which "
            "stands for the bits."
        )
    return None


def _kept(contender: Contender[PruningProblem]) -> int:
    return contender.problem.kept


def _total(contender: Contender[PruningProblem]) -> int:
    return contender.problem.pattern.total(contender.problem.layer.weight.shape[1:])
