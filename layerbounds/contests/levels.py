"""The outcome: intervals and verdicts of one layer at several compressions."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from layerbounds.arguments import flag
from layerbounds.arrays import Float
from layerbounds.contests.verdict import Verdict, decide, decide_all, summed
from layerbounds.display import INTERVAL, PRUNING, Bar, Displayed, Shape, Summary, Table, picture
from layerbounds.display.outward import ends
from layerbounds.frames import Kind, data_frame
from layerbounds.problems.rows import rows_text


@dataclass(frozen=True, eq=False, repr=False)
class Level(Displayed):
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

    def _summary(self) -> Summary:
        return Summary(f"{self.bits} bits", [self.statement()])

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


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Displayed):
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

    Examples
    --------
    >>> comparison = lb.versus(layer, bits=[3], channels=[0], time_limit=1)
    >>> [(level.bits, str(level.verdicts[0])) for level in comparison.levels]
    [(3, 'quantization')]
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
        """One sentence for each compression.

        Examples
        --------
        >>> lb.versus(layer, bits=[2], channels=[0], time_limit=1).statement().partition(": its")[0]
        'conv1 (1 of 16 channels), 2 bits: quantization is better'
        """
        part = f"{len(self.channels)} of {self.out_features} channels" if self.sampled else "all channels"
        return "\n".join(f"{self.layer} ({part}), {lev.bits} bits: {lev.statement()}" for lev in self.levels)

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON: infinite and undefined numbers become None.

        Examples
        --------
        >>> lb.versus(layer, bits=[2], channels=[0], time_limit=1).to_dict()["layer"]
        'conv1'
        """
        return {
            "layer": self.layer,
            "inputs": self.inputs,
            "out_features": self.out_features,
            "channels": self.channels,
            "interrupted": self.interrupted,
            "compressions": [self._level_dict(level) for level in self.levels],
        }

    def to_frame(self, *, channels: bool = False) -> Any:
        """A table with a row for each compression, or for each of ``sets`` at each compression.

        Parameters
        ----------
        channels : bool
            Whether channels have rows of their own; otherwise their errors are summed.

        Returns
        -------
        pandas.DataFrame
            ``layer``, ``bits``, ``density``, ``channels`` (such as ``3`` or ``0:24``), ``verdict``, the ends of both
            intervals and the same relative to ``energy``.

        Raises
        ------
        MissingExtraError
            Without pandas.

        Examples
        --------
        >>> lb.versus(layer, bits=[2, 3], channels=[0], time_limit=1).to_frame()["bits"].tolist()
        [2, 3]
        """
        by_channel = flag(channels, "channels")
        kinds: dict[str, Kind] = {"layer": "text", "bits": "whole", "density": "real", "channels": "text"}
        kinds |= {"verdict": "text", "energy": "real"}
        kinds |= {f"{side}_{end}": "real" for side in ("quantization", "pruning") for end in ENDS}
        rows = []
        for level in self.levels:
            record = self._level_dict(level)
            parts = record["channels"] if by_channel else [{**record, "rows": sorted(self.channels)}]
            for part in parts:
                row = {"layer": self.layer, "bits": level.bits, "density": level.density}
                row |= {"channels": rows_text(part["rows"]), "verdict": part["verdict"], "energy": part["energy"]}
                for side in ("quantization", "pruning"):
                    row |= {f"{side}_{end}": value for end, value in part[side].items()}
                rows.append(row)
        return data_frame(kinds, rows)

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw both certified intervals at each compression.

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
        >>> figure = lb.versus(layer, bits=[2], channels=[0], time_limit=1).plot("versus.svg")
        """
        return picture(self, path)

    def _summary(self) -> Summary:
        part = f"{len(self.channels)} of {self.out_features} channels" if self.sampled else "all channels"
        facts = [f"{level.bits} bits: {_WORDS[level.verdict]}" for level in self.levels]
        return Summary(f"{self.layer} · {part}" + (" · interrupted" if self.interrupted else ""), facts, True)

    def _tables(self) -> list[Table]:
        rows: list[list[str | Bar | None]] = []
        for level in self.levels:
            energy = math.fsum(level.energy)
            for side, (name, colour) in enumerate((("quantization", INTERVAL), ("pruning", PRUNING))):
                low, high = level.totals[side]
                span = (low / energy, high / energy) if energy > 0 else None
                words = ends(span, 4, 2)
                bar = None if span is None else Bar(*span, f"{name}: {words} %", colour)
                first = [str(level.bits), f"{100.0 * (1.0 - level.density):.4g}"] if side == 0 else ["", ""]
                rows.append([*first, name, words, bar, "" if side else _WORDS[level.verdict]])
        kinds: dict[str, Shape] = {"bits": "number", "sparsity, %": "number", "": "text", "error, % of f(0)": "number"}
        return [Table({**kinds, "certified interval": "bar", "verdict": "text"}, rows, unit="%")]

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


#: Of the records of intervals.
ENDS = ("lower_bound", "upper_bound", "relative_lower_bound", "relative_upper_bound")
_WORDS = {
    Verdict.QUANTIZATION: "quantization is better",
    Verdict.PRUNING: "pruning is better",
    Verdict.EQUAL: "equal",
    Verdict.OPEN: "open",
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
