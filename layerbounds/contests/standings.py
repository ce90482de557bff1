"""The outcome of several contenders: intervals, storage, and what each pair of intervals proves."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations
from typing import Any

from layerbounds.arguments import flag
from layerbounds.arrays import Float
from layerbounds.contests.levels import ENDS, interval_record
from layerbounds.contests.verdict import Verdict, decide, decide_all, grouped, summed
from layerbounds.display import INTERVAL, JOINT, METHOD, PRUNING, Bar, Displayed, Shape, Summary, Table, picture
from layerbounds.display.outward import ends
from layerbounds.frames import Kind, data_frame
from layerbounds.problems.rows import common_sets, noun, rows_text, sets_within


class Rank(StrEnum):
    """How the best error of one contender compares with that of another.

    Examples
    --------
    >>> standings = lb.contest(layer, [2, 3], channels=[0], time_limit=1)
    >>> standings.rank(1, 0) is lb.Rank.BETTER
    True
    """

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


@dataclass(frozen=True, eq=False, repr=False)
class Entrant(Displayed):
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

    def _summary(self) -> Summary:
        return Summary(self.name, [f"{self.storage:.4g} bits per weight", f"error {ends(self.total)}"])


@dataclass(frozen=True, eq=False, repr=False)
class Standings(Displayed):
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

    Examples
    --------
    >>> standings = lb.contest(layer, [2, 3], channels=[0], time_limit=1)
    >>> [entrant.name for entrant in standings.entrants]
    ['INT2', 'INT3']
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
        """How the summed error of one entrant compares with that of another.

        Examples
        --------
        >>> standings = lb.contest(layer, [2, 3], channels=[0], time_limit=1)
        >>> standings.rank(1, 0)
        <Rank.BETTER: 'better'>
        """
        return _RANK[decide(self.entrants[first].total, self.entrants[second].total)]

    def units(self, first: int, second: int) -> list[list[int]]:
        """What two entrants are compared in: single channels, or the sets of channels that neither of them divides.

        Examples
        --------
        >>> standings = lb.contest(layer, [2, 3], channels=[0], time_limit=1)
        >>> standings.units(0, 1)
        [[0]]
        """
        common = common_sets(self.entrants[first].sets, self.entrants[second].sets)
        return [[self.channels[row] for row in rows] for rows in common]

    def ranks(self, first: int, second: int) -> list[Rank]:
        """The ranks of the two entrants' errors, summed over each of their units.

        Examples
        --------
        >>> standings = lb.contest(layer, [2, 3], channels=[0], time_limit=1)
        >>> standings.ranks(1, 0)
        [<Rank.BETTER: 'better'>]
        """
        pair = self.entrants[first], self.entrants[second]
        common = common_sets(*(entrant.sets for entrant in pair))
        bounds = [grouped(entrant.bounds, sets_within(entrant.sets, common)) for entrant in pair]
        return [_RANK[v] for v in decide_all(*bounds)]

    def count(self, first: int, second: int) -> Counter[Rank]:
        """How many units have each rank.

        Examples
        --------
        >>> standings = lb.contest(layer, [2, 3], channels=[0], time_limit=1)
        >>> standings.count(0, 1)
        Counter({<Rank.WORSE: 'worse'>: 1})
        """
        return Counter(self.ranks(first, second))

    def statement(self, pairs: Sequence[tuple[int, int]] | None = None) -> str:
        """One sentence for each pair, or for the pairs given.

        Examples
        --------
        >>> standings = lb.contest(layer, [2, 3], channels=[0], time_limit=1)
        >>> print(standings.statement([(0, 1)]))
        conv1 (1 of 16 channels): INT2 (2 bits) is worse than INT3 (3 bits); better in 0 channels, worse in 1, open in 0
        """
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
        """Everything, ready for JSON: infinite and undefined numbers become None.

        Examples
        --------
        >>> standings = lb.contest(layer, [2, 3], channels=[0], time_limit=1)
        >>> standings.to_dict()["channels"]
        [0]
        """
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

    def to_frame(self, *, channels: bool = False) -> Any:
        """A table with a row for each contender, or for each set of channels of each contender.

        Parameters
        ----------
        channels : bool
            Whether channels have rows of their own; otherwise their errors are summed.

        Returns
        -------
        pandas.DataFrame
            ``layer``, ``contender``, ``problem``, ``family``, ``storage``, ``channels`` (such as ``3`` or ``0:24``),
            the ends of the interval, the same relative to f(0), ``seconds`` of the whole search, and ``fingerprint``.

        Raises
        ------
        MissingExtraError
            Without pandas.

        Examples
        --------
        >>> standings = lb.contest(layer, [4, "2:4"], channels=[0], time_limit=1)
        >>> standings.to_frame()["storage"].is_monotonic_increasing
        True
        """
        by_channel = flag(channels, "channels")
        kinds: dict[str, Kind] = dict.fromkeys(("layer", "contender", "problem", "family"), "text")
        kinds |= {"storage": "real", "channels": "text"}
        kinds |= dict.fromkeys(ENDS, "real")
        kinds |= {"seconds": "real", "fingerprint": "text"}
        rows = []
        for entrant in self.to_dict()["contenders"]:
            parts = entrant["channels"] if by_channel else [{**entrant, "rows": sorted(self.channels)}]
            for part in parts:
                row = {**entrant, "layer": self.layer, "contender": entrant["name"], **{end: part[end] for end in ENDS}}
                rows.append({**row, "channels": rows_text(part["rows"])})
        return data_frame(kinds, rows)

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw the certified interval of each contender, the one with the smallest storage first.

        Parameters
        ----------
        path : path-like, optional
            A file for the picture that ends in .svg, .png or .pdf.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        MissingExtraError
            Without matplotlib.
        InputError
            If no picture can be written to the path.

        Examples
        --------
        >>> figure = lb.contest(layer, [4, "2:4"], channels=[0], time_limit=1).plot("contest.svg")
        """
        return picture(self, path)

    def _summary(self) -> Summary:
        part = f"{len(self.channels)} of {self.out_features} channels" if self.sampled else "all channels"
        energy = math.fsum(self.energy)
        facts = [
            f"{e.name}: {e.storage:.4g} bits, error {ends(_ratio(e.total, energy), 4, 2)} %" for e in self.entrants
        ]
        return Summary(f"{self.layer} · {part}" + (" · interrupted" if self.interrupted else ""), facts, True)

    def _tables(self) -> list[Table]:
        energy = math.fsum(self.energy)
        count = len(self.entrants)
        rows: list[list[str | Bar | None]] = []
        for i, entrant in enumerate(self.entrants):
            span = _ratio(entrant.total, energy)
            words = ends(span, 4, 2)
            bar = (
                None if span is None else Bar(*span, f"{entrant.name}: {words} %", _COLOUR.get(entrant.family, METHOD))
            )
            better = [f"#{j + 1}" for j in range(count) if j != i and self.rank(i, j) == Rank.BETTER]
            rows.append([f"#{i + 1}", entrant.name, f"{entrant.storage:.4g}", words, bar, ", ".join(better)])
        kinds: dict[str, Shape] = {"": "text", "contender": "text", "bits": "number", "error, % of f(0)": "number"}
        kinds |= {"certified interval": "bar", "proven better than": "text"}
        return [Table(kinds, rows, note=f"mask: {self.mask}", unit="%")]

    def _record(self, positions: list[int], bounds: Float) -> dict[str, Any]:
        rows = [self.channels[i] for i in positions]
        channel = rows[0] if len(rows) == 1 else None
        return {"channel": channel, "rows": rows, **interval_record(bounds, math.fsum(self.energy[positions]))}


_COLOUR = {"quantization": INTERVAL, "pruning": PRUNING, "joint": JOINT}


def _ratio(span: tuple[float, float], energy: float) -> tuple[float, float] | None:
    return (span[0] / energy, span[1] / energy) if energy > 0 else None


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
