"""The outcome of several contenders: intervals, storage, and what each pair of intervals proves."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations
from typing import Any

from layerbounds.arrays import Float
from layerbounds.contests.levels import interval_record
from layerbounds.contests.verdict import Verdict, decide, decide_all, grouped, summed
from layerbounds.problems.rows import common_sets, noun, sets_within


class Rank(StrEnum):
    """How the best error of one contender compares with that of another."""

    #: Its upper bound lies below the other's lower bound.
    BETTER = "better"
    #: The other way round.
    WORSE = "worse"
    #: Both optima are proven to be the same number.
    EQUAL = "equal"
    #: The intervals overlap.
    OPEN = "open"


_RANK = {
    Verdict.QUANTIZATION: Rank.BETTER,
    Verdict.PRUNING: Rank.WORSE,
    Verdict.EQUAL: Rank.EQUAL,
    Verdict.OPEN: Rank.OPEN,
}


@dataclass(frozen=True, eq=False)
class Entrant:
    """One contender.

    Attributes
    ----------
    name : str
        ``INT4 + 2:4``, say.
    problem : str
        The grid and the pattern that the interval is about.
    family : str
    storage : float
        Bits per weight with the mask, scales not counted.
    sets : list of list of int
        The channels that it binds to one another, by their positions among those compared.
    bounds : ndarray of shape (sets, 2)
        Lower and upper bound of the smallest error of each of them.
    seconds : float
        Search time.
    fingerprint : str
    """

    name: str
    problem: str
    family: str
    storage: float
    sets: list[list[int]]
    bounds: Float
    seconds: float
    fingerprint: str

    @property
    def total(self) -> tuple[float, float]:
        """Interval of the summed error."""
        return summed(self.bounds)


@dataclass(frozen=True, eq=False)
class Standings:
    """Several ways to compress a layer, and which of them can be better.

    Attributes
    ----------
    layer : str
    inputs : int
        n.
    out_features : int
        Output channels of the layer.
    channels : list of int
        Those that were compared; sums are over these.
    entrants : tuple of Entrant
        By storage, the smallest first.
    energy : ndarray of shape (channels,)
        f(0).
    mask : str
        How masks count in the storage.
    interrupted : bool
    """

    layer: str
    inputs: int
    out_features: int
    channels: list[int]
    entrants: tuple[Entrant, ...]
    energy: Float
    mask: str
    interrupted: bool = False

    @property
    def sampled(self) -> bool:
        """Whether channels of the layer were left out."""
        return len(self.channels) < self.out_features

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """All pairs of entrants, by their positions."""
        return list(combinations(range(len(self.entrants)), 2))

    def rank(self, first: int, second: int) -> Rank:
        """How the summed error of one entrant compares with that of another."""
        return _RANK[decide(self.entrants[first].total, self.entrants[second].total)]

    def units(self, first: int, second: int) -> list[list[int]]:
        """What two entrants are compared in: single channels, or the sets of channels that neither of them divides."""
        common = common_sets(self.entrants[first].sets, self.entrants[second].sets)
        return [[self.channels[row] for row in rows] for rows in common]

    def ranks(self, first: int, second: int) -> list[Rank]:
        """The ranks of the two entrants' errors, summed over each of their units."""
        pair = self.entrants[first], self.entrants[second]
        common = common_sets(*(entrant.sets for entrant in pair))
        bounds = [grouped(entrant.bounds, sets_within(entrant.sets, common)) for entrant in pair]
        return [_RANK[v] for v in decide_all(*bounds)]

    def count(self, first: int, second: int) -> Counter[Rank]:
        """How many units have each rank."""
        return Counter(self.ranks(first, second))

    def statement(self, pairs: Sequence[tuple[int, int]] | None = None) -> str:
        """One sentence for each pair, or for the pairs given."""
        part = f"{len(self.channels)} of {self.out_features} channels" if self.sampled else "all channels"
        chosen = self.pairs if pairs is None else pairs
        return "\n".join(f"{self.layer} ({part}): {self._sentence(i, j)}" for i, j in chosen)

    @property
    def equal_pairs(self) -> list[tuple[int, int]]:
        """The pairs whose storage differs by less than 1 %."""
        size = [entrant.storage for entrant in self.entrants]
        return [(i, j) for i, j in self.pairs if abs(size[i] - size[j]) < 0.01 * max(size[i], size[j])]

    def _sentence(self, first: int, second: int) -> str:
        count, rank = self.count(first, second), self.rank(first, second)
        one, other = (f"{e.name} ({e.storage:.4g} bits)" for e in (self.entrants[first], self.entrants[second]))
        verdict = {
            Rank.BETTER: f"{one} is better than {other}",
            Rank.WORSE: f"{one} is worse than {other}",
            Rank.EQUAL: f"{one} is as good as {other}",
            Rank.OPEN: f"{one} against {other} is open",
        }[rank]
        equal = f", equal in {count[Rank.EQUAL]}" if count[Rank.EQUAL] else ""
        better = f"better in {count[Rank.BETTER]} {noun(self.units(first, second), count[Rank.BETTER])}"
        return f"{verdict}; {better}, worse in {count[Rank.WORSE]}{equal}, open in {count[Rank.OPEN]}"

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON: infinite and undefined numbers become None."""
        energy = math.fsum(self.energy)
        return {
            "layer": self.layer,
            "inputs": self.inputs,
            "out_features": self.out_features,
            "channels": self.channels,
            "mask": self.mask,
            "energy": energy,
            "interrupted": self.interrupted,
            "contenders": [
                {
                    "name": entrant.name,
                    "problem": entrant.problem,
                    "family": entrant.family,
                    "storage": entrant.storage,
                    "fingerprint": entrant.fingerprint,
                    "seconds": entrant.seconds,
                    **interval_record(entrant.total, energy),
                    "channels": [
                        self._record(rows, bounds) for rows, bounds in zip(entrant.sets, entrant.bounds, strict=True)
                    ],
                }
                for entrant in self.entrants
            ],
            "pairs": [
                {
                    "first": self.entrants[i].name,
                    "second": self.entrants[j].name,
                    "rank": str(self.rank(i, j)),
                    "count": {str(rank): self.count(i, j)[rank] for rank in Rank},
                    "channels": [str(rank) for rank in self.ranks(i, j)],
                    "rows": self.units(i, j),
                }
                for i, j in self.pairs
            ],
        }

    def _record(self, positions: list[int], bounds: Float) -> dict[str, Any]:
        rows = [self.channels[i] for i in positions]
        channel = rows[0] if len(rows) == 1 else None
        return {"channel": channel, "rows": rows, **interval_record(bounds, math.fsum(self.energy[positions]))}


def named_pairs(standings: Sequence[Standings]) -> list[tuple[str, str]]:
    """The pairs of all layers by their names, in the order of the first layer that has them."""
    found = [(s.entrants[i].name, s.entrants[j].name) for s in standings for i, j in s.pairs]
    kept: dict[frozenset[str], tuple[str, str]] = {}
    for pair in found:
        kept.setdefault(frozenset(pair), pair)
    return list(kept.values())


def ranks_of(standings: Standings, pair: tuple[str, str]) -> tuple[Rank, list[Rank]] | None:
    """The rank of the sum and those of the units for a pair of names; None where the layer has no such pair."""
    place = {entrant.name: i for i, entrant in enumerate(standings.entrants)}
    if not place.keys() >= set(pair):
        return None
    first, second = (place[name] for name in pair)
    return standings.rank(first, second), standings.ranks(first, second)
