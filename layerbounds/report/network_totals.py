"""What a run says of the network as a whole, for each compression, and which compressions are opponents."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from layerbounds.contests.verdict import Verdict, decide, decide_all
from layerbounds.network.entries import Entry
from layerbounds.network.pairs import KEPT_BITS, equal_bits
from layerbounds.network.result import NetworkRun
from layerbounds.network.table import relative_sum, weighted_sum


@dataclass(frozen=True)
class Total:
    """One compression, over all layers that can have it.

    Attributes
    ----------
    choice : str
    layers, refused : int
        How many can have it, and how many cannot.
    sets, bounded, optimal : int
        Channels (or sets of them) with an interval each: in all, with first bounds, and proven optimal.
    bits_per_weight : float or None
        Storage of these layers over their weights.
    relative : tuple of float
        Interval of the sum of the layers' relative errors.
    weighted : tuple of float or None
        Interval of the summed error over the summed f(0).
    seconds : float
        Of search.
    """

    choice: str
    layers: int
    refused: int
    sets: int
    bounded: int
    optimal: int
    bits_per_weight: float | None
    relative: tuple[float, float]
    weighted: tuple[float, float] | None
    seconds: float


def totals(run: NetworkRun) -> list[Total]:
    """One for each compression, in the run's order."""
    found = []
    for place, choice in enumerate(run.choices):
        column = [of_layer[place] for of_layer in run.grid]
        able = [entry for entry in column if entry.refused is None]
        weights = sum(entry.layer.weights for entry in able)
        found.append(
            Total(
                choice=choice.name,
                layers=len(able),
                refused=len(column) - len(able),
                sets=sum(len(entry.sets) for entry in able),
                bounded=sum(int(np.count_nonzero(entry.limit >= 0)) for entry in able),
                optimal=sum(int(np.count_nonzero(entry.closed)) for entry in able),
                bits_per_weight=sum(entry.storage for entry in able) / weights if weights else None,
                relative=relative_sum(able),
                weighted=weighted_sum(able),
                seconds=math.fsum(second for entry in able for second in entry.seconds),
            )
        )
    return found


@dataclass(frozen=True)
class Coverage:
    """How much of a network a run is about, and how much of that is known.

    Attributes
    ----------
    layers, weights, channels, out_channels : int
        Layers, their weights, the channels compared, and all channels.
    energy : float or None
        Share of f(0) of all channels that the compared ones have.
    sets, bounded, optimal : int
        Intervals over all compressions: in all, with first bounds, proven optimal.
    refused : int
        Layers times compressions that cannot be had.
    complete : bool
        Whether every layer has its first bounds at every compression that it can have.
    interrupted : bool
    """

    layers: int
    weights: int
    channels: int
    out_channels: int
    energy: float | None
    sets: int
    bounded: int
    optimal: int
    refused: int
    complete: bool
    interrupted: bool


def coverage(run: NetworkRun) -> Coverage:
    """Of a run."""
    whole = math.fsum(layer.whole_energy for layer in run.layers)
    compared = math.fsum(layer.energy for layer in run.layers)
    by_choice = totals(run)
    return Coverage(
        layers=len(run.layers),
        weights=sum(layer.weights for layer in run.layers),
        channels=sum(len(layer.channels) for layer in run.layers),
        out_channels=sum(layer.shape[0] for layer in run.layers),
        energy=min(compared / whole, 1.0) if whole > 0 else None,
        sets=sum(total.sets for total in by_choice),
        bounded=sum(total.bounded for total in by_choice),
        optimal=sum(total.optimal for total in by_choice),
        refused=sum(total.refused for total in by_choice),
        complete=run.complete,
        interrupted=run.interrupted,
    )


@dataclass(frozen=True)
class Duel:
    """Quantization against pruning in one layer.

    Attributes
    ----------
    quantized, pruned : Entry
    verdict : Verdict
        On the summed errors of the layer.
    sets : Counter of Verdict or None
        On its channels; None where the two do not have the same sets of them.
    """

    quantized: Entry
    pruned: Entry
    verdict: Verdict
    sets: Counter[Verdict] | None


@dataclass(frozen=True)
class Pair:
    """Two compressions that take equal bits.

    Attributes
    ----------
    quantization, pruning : str
        Names of the choices.
    rule : str
        Why they are opponents, to be read after "at".
    duels : list of Duel
        One for each layer in which both have first bounds.
    """

    quantization: str
    pruning: str
    rule: str
    duels: list[Duel]

    def count(self) -> Counter[Verdict]:
        """Verdicts of layers."""
        return Counter(duel.verdict for duel in self.duels)


def pairs(run: NetworkRun) -> list[Pair]:
    """The pairs of a quantization and a pruning at equal bits, and their verdicts."""
    found = []
    for first in range(len(run.choices)):
        for second in range(len(run.choices)):
            rule = _rule(run, first, second)
            if rule is not None:
                both = [(of_layer[first], of_layer[second]) for of_layer in run.grid]
                duels = [_duel(q, p) for q, p in both if _known(q) and _known(p)]
                found.append(Pair(run.choices[first].name, run.choices[second].name, rule, duels))
    return found


def _rule(run: NetworkRun, first: int, second: int) -> str | None:
    """Why one choice, a quantization, and another, a pruning, take equal bits; None if they do not."""
    both = [(of_layer[first], of_layer[second]) for of_layer in run.grid]
    both = [(q, p) for q, p in both if q.refused is None and p.refused is None]
    if not both or any((q.family, p.family) != ("quantization", "pruning") for q, p in both):
        return None
    if all(q.storage == p.storage for q, p in both):
        return "equal storage"
    if any((first, second) in equal_bits(of_layer) for of_layer in run.grid):
        bits = run.choices[first].spec["bits"]
        return f"{bits} bits and density {bits}/{KEPT_BITS}, scales and masks not counted"
    return None


def _known(entry: Entry) -> bool:
    return entry.refused is None and entry.visited


def _duel(quantized: Entry, pruned: Entry) -> Duel:
    sets = None
    if quantized.sets == pruned.sets:
        ends = [np.stack([entry.lower, entry.upper], axis=1) for entry in (quantized, pruned)]
        sets = Counter(decide_all(*ends))
    return Duel(quantized, pruned, decide(quantized.interval, pruned.interval), sets)


def summary(run: NetworkRun) -> dict[str, Any]:
    """For JSON."""
    return {
        "coverage": asdict(coverage(run)),
        "compressions": [asdict(total) for total in totals(run)],
        "verdicts": [
            {
                "quantization": pair.quantization,
                "pruning": pair.pruning,
                "at": pair.rule,
                "layers": {duel.quantized.layer.name: str(duel.verdict) for duel in pair.duels},
            }
            for pair in pairs(run)
        ],
    }
