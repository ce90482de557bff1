"""What is known of a run, in numbers: layers, choices, and the intervals of each layer at each choice."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from layerbounds.arrays import Float
from layerbounds.contests.verdict import summed
from layerbounds.display import Displayed, Summary
from layerbounds.display.outward import ends
from layerbounds.proofs import Status


@dataclass(frozen=True)
class LayerInfo:
    """A layer, without its arrays.

    Attributes
    ----------
    name : str
    shape : tuple of int
        Of the weight.
    inputs : int
        n, of an output channel.
    weights : int
        How many the layer has.
    channels : list of int
        The output channels that the run is about.
    energy : float
        f(0), summed over these.
    whole_energy : float
        f(0), summed over all channels.
    samples : int or None
        Calibration positions.
    dead : int
        Inputs without energy, of all groups.
    digest : str
        SHA-256 of weights, Gram matrices, targets and constants.
    sample : dict or None
        How ``channels`` were drawn, as `layerbounds.network.sampling.Sample` writes it; None where they were chosen.
    """

    name: str
    shape: tuple[int, ...]
    inputs: int
    weights: int
    channels: list[int]
    energy: float
    whole_energy: float
    samples: int | None
    dead: int
    digest: str
    sample: dict[str, Any] | None = None


@dataclass(frozen=True)
class ChoiceInfo:
    """A compression that was asked of every layer.

    Attributes
    ----------
    name : str
    spec, rules : dict
        The fields of `layerbounds.contests.contenders.Spec` and `layerbounds.contests.contest.Rules`.
    """

    name: str
    spec: dict[str, Any]
    rules: dict[str, Any]


@dataclass(frozen=True)
class MethodScore:
    """Weights of a method, or from elsewhere, at one choice.

    Attributes
    ----------
    errors : ndarray of shape (sets,)
        NaN where not known yet.
    feasible : bool
        Whether they are allowed.
    seconds : float
    given : bool
        Whether they came from elsewhere.
    """

    errors: Float
    feasible: bool
    seconds: float
    given: bool = False


@dataclass(eq=False, repr=False)
class Entry(Displayed):
    """A layer at a choice; arrays have one number for each set of rows.

    Attributes
    ----------
    layer : LayerInfo
    choice : ChoiceInfo
    number : tuple of int
        Of the layer and of the choice.
    label, family, fingerprint : str
        Of the problem.
    storage : int
        Bits of the whole layer, with scales and masks.
    zero : bool
        Whether zero weights are allowed in every channel.
    refused : str or None
        Why the layer cannot have it; arrays are then empty.
    sets : list of list of int
        Output channels.
    energy : ndarray
        f(0).
    chunks : list of tuple of int
        First and last+1 set of what is worked on and recorded together.
    lower, upper : ndarray
        The certified interval; 0 and infinity before the first bounds.
    limit : ndarray
        Seconds of the longest search that a set has had; -1 before the first bounds.
    methods : dict of str to MethodScore
    yardsticks : dict of str to float or None
        Figures that are no certificates, summed over the sets; none before all of them have their first bounds.
    """

    layer: LayerInfo
    choice: ChoiceInfo
    number: tuple[int, int]
    label: str
    family: str
    fingerprint: str
    storage: int
    zero: bool
    refused: str | None
    sets: list[list[int]]
    energy: Float
    chunks: list[tuple[int, int]]
    lower: Float = field(init=False)
    upper: Float = field(init=False)
    limit: Float = field(init=False)
    seconds: Float = field(init=False)
    status: list[str] = field(init=False)
    bound_kind: list[str] = field(init=False)
    methods: dict[str, MethodScore] = field(default_factory=dict)
    yardsticks: dict[str, float | None] = field(default_factory=dict)
    _scores: dict[int, Mapping[str, Any]] = field(default_factory=dict, init=False, repr=False)
    _marks: dict[int, Mapping[str, float | None]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        count = len(self.sets)
        self.lower, self.upper = np.zeros(count), np.full(count, np.inf)
        self.limit, self.seconds = np.full(count, -1.0), np.zeros(count)
        self.status, self.bound_kind = [""] * count, [""] * count

    @property
    def bits_per_weight(self) -> float:
        """Storage, divided by the number of weights."""
        return self.storage / self.layer.weights

    @property
    def interval(self) -> tuple[float, float]:
        """Of the error summed over all sets, rounded outward."""
        return summed(np.stack([self.lower, self.upper], axis=1))

    @property
    def visited(self) -> bool:
        """Whether every set has its first bounds."""
        return bool(np.all(self.limit >= 0))

    @property
    def closed(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which sets are proven optimal."""
        return np.array([status == Status.OPTIMAL for status in self.status], dtype=bool)

    def _summary(self) -> Summary:
        title = f"{self.layer.name} · {self.choice.name}"
        return Summary(title, [self.refused or (f"error {ends(self.interval)}" if self.visited else "no bounds yet")])

    def absorb(self, record: Mapping[str, Any], first: int) -> None:
        """Take over what a record says of the sets from ``first`` on.

        Parameters
        ----------
        record : mapping
            As `layerbounds.network.records.read_record` gives it.
        first : int
        """
        where = slice(first, first + len(record["lower"]))
        self.lower[where], self.upper[where] = record["lower"], record["upper"]
        self.limit[where], self.seconds[where] = record["limit"], record["seconds"]
        self.status[where], self.bound_kind[where] = record["status"], record["bound_kind"]
        self._scores[first] = record["methods"]
        for label, score in record["methods"].items():
            known = self.methods.get(label)
            errors = np.full(len(self.sets), np.nan) if known is None else known.errors.copy()
            errors[where] = score["errors"]
            parts = [scores[label] for scores in self._scores.values() if label in scores]
            self.methods[label] = MethodScore(
                errors,
                feasible=all(part["feasible"] for part in parts),
                seconds=sum(part["seconds"] for part in parts),
                given=score["given"] is not None,
            )
        self._marks[first] = record["yardsticks"]
        self.yardsticks = _summed(list(self._marks.values())) if len(self._marks) == len(self.chunks) else {}


def _summed(chunks: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """Figures of all chunks together; None where some chunk has none."""
    sums: dict[str, float | None] = {}
    for name in chunks[0]:
        parts = [chunk.get(name) for chunk in chunks]
        known = [part for part in parts if part is not None]
        sums[name] = math.fsum(known) if len(known) == len(parts) else None
    return sums


def find_entry(entries: Sequence[Entry], layer: str, choice: str) -> Entry:
    """The entry of a layer at a choice, by their names.

    Raises
    ------
    KeyError
    """
    return next(e for e in entries if (e.layer.name, e.choice.name) == (layer, choice))
