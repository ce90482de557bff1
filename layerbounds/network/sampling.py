"""Which output channels of a layer are compared, and what may be said about the others.

Sets of channels are drawn with probabilities proportional to their energy f(0), with replacement (Hansen and Hurwitz,
1943): the mean of lower/energy over the draws then estimates Σ lower/Σ energy of the layer without bias, from numbers
in [0, 1]. What is said of the sets drawn is certified; what is said of all channels holds with a confidence over the
draw.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from layerbounds.arguments import whole_number
from layerbounds.arrays import as_float64
from layerbounds.exceptions import InputError
from layerbounds.problems.problem import Problem
from layerbounds.problems.rows import noun, rows_text, sets_within
from layerbounds.theory.bounded_means import check_confidence, mean_at_least, mean_at_most


@dataclass(frozen=True)
class Sample:
    """Sets of output channels of a layer, drawn by their energy.

    Attributes
    ----------
    sets : tuple of tuple of int
        The different sets, by rising first rows.
    counts : tuple of int
        How often each was drawn; 0 where all sets are taken without a draw.
    energy : tuple of float
        f(0) of each.
    whole_energy : float
        f(0) of all sets of the layer.
    out : int
        Output channels of the layer.
    seed : int
    """

    sets: tuple[tuple[int, ...], ...]
    counts: tuple[int, ...]
    energy: tuple[float, ...]
    whole_energy: float
    out: int
    seed: int

    @property
    def channels(self) -> list[int]:
        """The output channels of the sets, in rising order."""
        return sorted(row for rows in self.sets for row in rows)

    @property
    def draws(self) -> int:
        """How many draws there were; 0 where all sets are taken."""
        return sum(self.counts)

    @property
    def whole(self) -> bool:
        """Whether these are all channels, so that nothing has to be said of others."""
        return len(self.channels) == self.out

    @property
    def share(self) -> float:
        """The sets' share of the layer's energy, rounded down; 1 of a layer without energy."""
        if self.whole or self.whole_energy <= 0.0:
            return 1.0
        return min(max(float(np.nextafter(math.fsum(self.energy) / self.whole_energy, 0.0)), 0.0), 1.0)

    def to_dict(self) -> dict[str, Any]:
        """For files; `from_dict` reads it."""
        lists = {"sets": [list(rows) for rows in self.sets], "counts": list(self.counts), "energy": list(self.energy)}
        return {**asdict(self), **lists}

    @classmethod
    def from_dict(cls, about: Mapping[str, Any]) -> Sample:
        """The sample that `to_dict` has described."""
        return cls(
            tuple(tuple(rows) for rows in about["sets"]),
            tuple(about["counts"]),
            tuple(about["energy"]),
            float(about["whole_energy"]),
            int(about["out"]),
            int(about["seed"]),
        )


@dataclass(frozen=True)
class Statement:
    """What is known of a layer some of whose channels are compared; errors are relative to the energy of the layer.

    Attributes
    ----------
    sample : Sample
    certified : tuple of float
        Ends of the interval that all channels' least error is in by proof alone: nothing is assumed of those that were
        not drawn, but that errors are ≥ 0 and, where zero is allowed, at most their energy. The upper end is infinite
        where zero is not.
    drawn : tuple of float
        The certified interval of the sets drawn, relative to the energy of these.
    likely : tuple of float
        Ends of the interval that all channels' least error is in with the confidence; both hold together.
    confidence : float
        A probability over the draw.
    """

    sample: Sample
    certified: tuple[float, float]
    drawn: tuple[float, float]
    likely: tuple[float, float]
    confidence: float

    def __str__(self) -> str:
        rows = self.sample.channels
        lower, upper = self.drawn
        text = (
            f"certified: {'channel' if len(rows) == 1 else 'channels'} {rows_text(rows)} of {self.sample.out}, "
            f"which {'holds' if len(rows) == 1 else 'hold'} {percent(self.sample.share, down=True)} of the energy: "
            f"{interval_text(lower, upper)} of theirs"
        )
        if self.sample.whole:
            return text
        return (
            f"{text}, so all channels: {interval_text(*self.certified)}; with {self.confidence * 100:g} % confidence "
            f"over the draw of {self.sample.draws} {noun(self.sample.sets, self.sample.draws)}, all channels: "
            f"{interval_text(*self.likely)} (no certificate)"
        )

    def to_dict(self) -> dict[str, Any]:
        """For files; infinite ends are None."""
        ends = {
            name: [end if math.isfinite(end) else None for end in getattr(self, name)]
            for name in ("certified", "drawn", "likely")
        }
        return {**ends, "share": self.sample.share, "draws": self.sample.draws, "confidence": self.confidence}


def draw(
    sets: Sequence[Sequence[int]], energy: ArrayLike, count: int, seed: int, name: str, out: int | None = None
) -> Sample:
    """Draw sets of output channels, each with a probability proportional to its energy, with replacement.

    The draws of a layer depend on the seed and its name alone, and those of a smaller number are the first of a larger.
    Where so many draws could take every set, all are taken. A layer without energy has no probabilities: its first sets
    are taken.

    Parameters
    ----------
    sets : sequence of sequence of int
        All sets of rows of the layer: single ones, or what its problems bind together
        (`layerbounds.problems.rows.common_sets`).
    energy : array_like of shape (sets,)
        f(0) of each.
    count : int
        Number of draws.
    seed : int
    name : str
        Of the layer.
    out : int, optional
        Output channels of the layer; default: those of the sets.

    Returns
    -------
    Sample

    Raises
    ------
    InputError
    """
    whole_number(count, "the sample of channels", 1)
    whole_number(seed, "seed")
    values = as_float64(energy, "energy")
    peak = float(values.max(initial=0.0))
    if not len(sets) or values.shape != (len(sets),) or np.any(values < 0.0) or peak > sys.float_info.max / len(sets):
        raise InputError(f"energy of shape {values.shape} is unusable; pass a number ≥ 0 for each of {len(sets)} sets.")
    counts = np.zeros(len(sets), dtype=np.int64)
    if count >= len(sets):
        chosen = np.arange(len(sets))
    elif peak == 0.0:
        chosen = np.arange(count)
    else:
        ends = np.cumsum(values / peak)
        points = ends[-1] * _random(seed, name).random(count)
        # A point on an end belongs to the next set, so that a set without energy is never met.
        places = np.minimum(np.searchsorted(ends, points, side="right"), int(np.flatnonzero(values)[-1]))
        counts = np.bincount(places, minlength=len(sets))
        chosen = np.flatnonzero(counts)
    return Sample(
        tuple(tuple(int(row) for row in sets[i]) for i in chosen.tolist()),
        tuple(counts[chosen].tolist()),
        tuple(values[chosen].tolist()),
        math.fsum(values),
        sum(len(rows) for rows in sets) if out is None else out,
        int(seed),
    )


def state(
    sample: Sample,
    sets: Sequence[Sequence[int]],
    lower: ArrayLike,
    upper: ArrayLike,
    *,
    zero: bool,
    confidence: float = 0.95,
) -> Statement:
    """What certified intervals of the sets drawn say about all channels of the layer.

    Half of what may fail is given to each end. An end is infinite, or 0, where nothing can be said.

    Parameters
    ----------
    sample : Sample
    sets : sequence of sequence of int
        The sets that the intervals are of: parts of those drawn, all of them.
    lower, upper : array_like of shape (sets,)
        In the units of the sample's energy; how they were found, and for how long, does not matter.
    zero : bool
        Whether zero weights are allowed in every channel (`allows_zero`): their error is the energy. Without that, the
        errors of channels that were not drawn have no bound from above.
    confidence : float

    Returns
    -------
    Statement

    Raises
    ------
    InputError
        If the intervals are not those of the sample's sets.
    """
    check_confidence(confidence)
    ends = [np.asarray(end, dtype=np.float64) for end in (lower, upper)]
    if any(end.shape != (len(sets),) for end in ends) or not np.all((ends[0] >= 0.0) & (ends[0] <= ends[1])):
        raise InputError(
            f"lower and upper are no {len(sets)} intervals of errors; pass 0 ≤ lower ≤ upper for each set."
        )
    if sorted(row for rows in sets for row in rows) != sample.channels:
        raise InputError("the intervals are of other channels than those of the sample; pass one for each of its sets.")
    within = sets_within(sets, sample.sets)
    energy = np.array(sample.energy)
    low = np.array([_sum(ends[0][part], down=True) for part in within])
    high = np.array([_sum(ends[1][part], down=False) for part in within])
    if zero:
        # Rounding may put the energy below what was proven.
        high = np.maximum(np.minimum(high, energy), low)
    drawn = (_ratio(_sum(low, True), _sum(energy, False), True), _ratio(_sum(high, False), _sum(energy, True), False))
    if sample.whole:
        return Statement(sample, drawn, drawn, drawn, confidence)
    rest = max(float(Fraction(sample.whole_energy) - sum(map(Fraction, sample.energy))), 0.0)
    certified = (
        _ratio(_sum(low, True), sample.whole_energy, True),
        _ratio(_sum([*high, rest], False), sample.whole_energy, False) if zero else math.inf,
    )
    likely = certified
    if sample.draws:
        each = 1.0 - 0.5 * (1.0 - confidence) if zero else confidence
        repeat = np.array(sample.counts)
        # Beyond 1 a lower end may say more, but the bound holds for less, too.
        ratios = np.array([_ratio(a, e, True) for a, e in zip(low, energy, strict=True)])
        likely = (max(likely[0], mean_at_least(np.repeat(np.minimum(ratios, 1.0), repeat), each)), likely[1])
        if zero:
            ratios = np.array([_ratio(b, e, False) for b, e in zip(high, energy, strict=True)])
            likely = (likely[0], min(likely[1], mean_at_most(np.repeat(np.minimum(ratios, 1.0), repeat), each)))
    return Statement(sample, certified, drawn, likely, confidence)


def allows_zero(problem: Problem) -> bool:
    """Whether zero weights are allowed in every output channel.

    Parameters
    ----------
    problem : Problem
    """
    parts = problem.parts
    if parts is not None and parts.structure is None:
        return parts.zero
    layer = problem.layer
    zeros = np.zeros((layer.out_features, layer.in_features))
    return not np.any(problem.violation(zeros, range(layer.out_features)))


def percent(value: float, down: bool) -> str:
    """A share in per cent, three digits, rounded down or up."""
    if not math.isfinite(value):
        return "∞"
    scaled = Decimal(value) * 100
    digits = min(max(2 - scaled.adjusted(), 0), 4) if value else 0
    rounding = ROUND_FLOOR if down else ROUND_CEILING
    return f"{scaled.quantize(Decimal(1).scaleb(-digits), rounding):f} %"


def interval_text(lower: float, upper: float) -> str:
    """An interval of shares, rounded outward."""
    if math.isinf(upper):
        return f"at least {percent(lower, down=True)}"
    return f"{percent(lower, down=True)} to {percent(upper, down=False)}"


def _random(seed: int, name: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


def _sum(values: ArrayLike, down: bool) -> float:
    """The sum, rounded down or up by no more than a step."""
    terms = [float(value) for value in np.asarray(values, dtype=np.float64).ravel()]
    total = math.fsum(terms)
    if len(terms) < 2 or total == 0.0 or math.isinf(total):
        return total
    return float(np.nextafter(total, -math.inf if down else math.inf))


def _ratio(numerator: float, denominator: float, down: bool) -> float:
    """A quotient, rounded down or up; of nothing nothing is known but that it is ≥ 0."""
    if denominator <= 0.0:
        return 0.0 if down or numerator == 0.0 else math.inf
    value = numerator / denominator
    return value if value in (0.0, math.inf) else float(np.nextafter(value, 0.0 if down else math.inf))
