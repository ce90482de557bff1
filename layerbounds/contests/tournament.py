"""Several contenders on one layer, each against each."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from layerbounds.contests.contenders import contender_problems
from layerbounds.contests.contest import Rules
from layerbounds.contests.inclusion import Inclusion
from layerbounds.contests.match import Contender, Match
from layerbounds.contests.sample import compared_channels
from layerbounds.contests.standings import Entrant, Standings
from layerbounds.contests.work import Work
from layerbounds.layers.layer import Layer, as_layer
from layerbounds.problems.parts import contains
from layerbounds.problems.problem import Problem


class Tournament(Work[Standings]):
    """Contenders of one layer, sorted by their storage.

    Parameters
    ----------
    layer : Layer
    contenders : sequence of str, int or Problem
    channels : sequence of int or None
    rules : Rules
    sample : int, optional
        As in `layerbounds.contests.versus_layers`.
    """

    def __init__(
        self,
        layer: Layer,
        contenders: Sequence[object],
        channels: Sequence[int] | None,
        rules: Rules,
        sample: int | None = None,
    ) -> None:
        rules.check()
        named = contender_problems(as_layer(layer), contenders, rules)
        named.sort(key=lambda entry: entry[1].storage(rules.mask))
        chosen = compared_channels([problem for _, problem in named], channels, sample)
        super().__init__(layer, chosen, rules.backend, rules.jobs, rules.seed)
        self.rules = rules
        self.names = [name for name, _ in named]
        self.contenders: list[Contender[Problem]] = [Contender.start(problem, chosen) for _, problem in named]
        self._matches = [Match(pair) for pair in combinations(self.contenders, 2)]
        self._contained = [
            Inclusion(inner, outer, chosen)
            for inner in self.contenders
            for outer in self.contenders
            if inner is not outer and contains(outer.problem.parts, inner.problem.parts)
        ]

    @property
    def matches(self) -> Sequence[Match]:
        """Each against each."""
        return self._matches

    def sections(self) -> list[tuple[dict[str, Any], dict[str, Contender[Any]]]]:
        """One for each contender."""
        return [
            ({"name": name}, {"interval": contender})
            for name, contender in zip(self.names, self.contenders, strict=True)
        ]

    def carry(self) -> None:
        """Weights that one contender allows are allowed by those that allow more; lower bounds go the other way."""
        for inclusion in self._contained:
            inclusion.carry()

    def result(self) -> Standings:
        """What is known now."""
        entrants = tuple(
            Entrant(
                name,
                contender.problem.label,
                contender.problem.family,
                contender.problem.storage(self.rules.mask),
                contender.sets,
                contender.bounds.copy(),
                float(contender.seconds.sum()),
                contender.problem.fingerprint(),
            )
            for name, contender in zip(self.names, self.contenders, strict=True)
        )
        return Standings(
            self.layer.name,
            self.layer.in_features,
            self.layer.out_features,
            list(self.channels),
            entrants,
            self.energy,
            self.rules.mask,
            self.interrupted,
        )
