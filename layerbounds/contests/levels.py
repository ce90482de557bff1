"""The outcome: intervals and verdicts of one layer at several compressions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from layerbounds.arrays import Float
from layerbounds.contests.verdict import Verdict, decide, decide_all, summed


@dataclass(frozen=True, eq=False)
class Level:
    """Both certified intervals at one compression.

    Attributes
    ----------
    bits : int
        Bits per weight.
    kept : int
        Inputs that pruning may keep in a channel; units, where its pattern counts these.
    quantization_problem, pruning_problem : str
        The grid and the pattern that the intervals are about.
    quantization, pruning : ndarray of shape (sets, 2)
        Lower and upper bound of the smallest error of each channel, or summed over each set of channels that one of
        them binds; an upper bound is infinite before the first work.
    energy : ndarray of shape (sets,)
        f(0).
    seconds : float
        Search time, summed over channels and methods.
    scales : {"fixed", "free"}
        Whether the grid's scales are fixed, or the best ones count.
    mask : str
        What of the mask's storage counts.
    share : float, optional
        Kept fraction at equal storage; default: bits/16, where the mask is free.
    """

    bits: int
    kept: int
    quantization_problem: str
    pruning_problem: str
    quantization: Float
    pruning: Float
    energy: Float
    seconds: float
    scales: str = "fixed"
    mask: str = "none"
    share: float | None = None

    @property
    def density(self) -> float:
        """Kept fraction at equal storage."""
        return self.bits / 16.0 if self.share is None else self.share

    @property
    def verdicts(self) -> list[Verdict]:
        """One for each channel, or each set of channels that are bound to one another."""
        return decide_all(self.quantization, self.pruning)

    @property
    def totals(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Intervals of the summed errors: of quantization, of pruning."""
        return summed(self.quantization), summed(self.pruning)

    @property
    def verdict(self) -> Verdict:
        """That of the summed errors."""
        return decide(*self.totals)

    def count(self) -> Counter[Verdict]:
        """How many of them have each verdict."""
        return Counter(self.verdicts)

    def statement(self) -> str:
        """The verdict as a sentence that names what it is about."""
        (q_low, q_high), (p_low, p_high) = self.totals
        grid = self.quantization_problem + (", scales fixed" if self.scales == "fixed" else "")
        rule = f"{grid}, against {self.pruning_problem}"
        if self.verdict == Verdict.QUANTIZATION:
            return (
                f"quantization is better: its smallest error is at most {q_high:.4g}, that of pruning at least "
                f"{p_low:.4g} ({rule})"
            )
        if self.verdict == Verdict.PRUNING:
            return (
                f"pruning is better: its smallest error is at most {p_high:.4g}, that of quantization at least "
                f"{q_low:.4g} ({rule})"
            )
        if self.verdict == Verdict.EQUAL:
            return f"both have the same smallest error, {q_high:.4g} ({rule})"
        return (
            f"open: quantization in [{q_low:.4g}, {q_high:.4g}], pruning in [{p_low:.4g}, {p_high:.4g}]; more time can "
            f"close it ({rule})"
        )


@dataclass(frozen=True, eq=False)
class Comparison:
    """Quantization against pruning of one layer.

    Attributes
    ----------
    layer : str
    inputs : int
        n.
    out_features : int
        Output channels of the layer.
    channels : list of int
        Those that were compared; sums and the verdicts of the layer are over these.
    levels : tuple of Level
        One for each compression, in the order asked for.
    interrupted : bool
    sets : list of list of int
        The channels of each verdict.
    """

    layer: str
    inputs: int
    out_features: int
    channels: list[int]
    levels: tuple[Level, ...]
    interrupted: bool = False
    sets: list[list[int]] = field(default_factory=list)

    @property
    def sampled(self) -> bool:
        """Whether channels of the layer were left out."""
        return len(self.channels) < self.out_features

    def statement(self) -> str:
        """One sentence for each compression."""
        part = f"{len(self.channels)} of {self.out_features} channels" if self.sampled else "all channels"
        return "\n".join(f"{self.layer} ({part}), {lev.bits} bits: {lev.statement()}" for lev in self.levels)

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON: infinite and undefined numbers become None."""
        return {
            "layer": self.layer,
            "inputs": self.inputs,
            "out_features": self.out_features,
            "channels": self.channels,
            "interrupted": self.interrupted,
            "compressions": [self._level_dict(level) for level in self.levels],
        }

    def _level_dict(self, level: Level) -> dict[str, Any]:
        verdicts = level.verdicts
        total_q, total_p = level.totals
        energy = math.fsum(level.energy)
        return {
            "bits": level.bits,
            "density": level.density,
            "kept": level.kept,
            "mask": level.mask,
            "quantization_problem": level.quantization_problem,
            "pruning_problem": level.pruning_problem,
            "scales": level.scales,
            "verdict": str(level.verdict),
            "statement": level.statement(),
            "quantization": interval_record(total_q, energy),
            "pruning": interval_record(total_p, energy),
            "energy": energy,
            "count": {str(v): sum(w == v for w in verdicts) for v in Verdict},
            "seconds": level.seconds,
            "channels": [
                {
                    "channel": rows[0] if len(rows) == 1 else None,
                    "rows": rows,
                    "verdict": str(verdicts[i]),
                    "quantization": interval_record(level.quantization[i], float(level.energy[i])),
                    "pruning": interval_record(level.pruning[i], float(level.energy[i])),
                    "energy": float(level.energy[i]),
                }
                for i, rows in enumerate(self.sets)
            ],
        }


def interval_record(bounds: Iterable[float], energy: float) -> dict[str, Any]:
    """An interval as files hold it: infinite and undefined numbers become None."""
    low, high = (float(b) if np.isfinite(b) else None for b in bounds)
    relative = [b / energy if b is not None and energy > 0 else None for b in (low, high)]
    return {
        "lower_bound": low,
        "upper_bound": high,
        "relative_lower_bound": relative[0],
        "relative_upper_bound": relative[1],
    }
