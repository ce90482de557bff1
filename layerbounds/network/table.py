"""A run as a table: a row for each layer at each choice, the columns of data frames and of ``report.csv``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from layerbounds.contests.verdict import summed
from layerbounds.frames import Kind
from layerbounds.network.entries import Entry, MethodScore


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes
    ----------
    name : str
    kind : {"text", "whole", "real", "truth"}
    meaning : str
    value : callable
        From an entry to its value; None where there is none.
    needs_problem : bool
        Whether there is no value where the layer cannot have the compression.
    """

    name: str
    kind: Kind
    meaning: str
    value: Callable[[Entry], Any]
    needs_problem: bool = True

    def of(self, entry: Entry) -> Any:
        """The value of an entry."""
        return None if self.needs_problem and entry.refused is not None else self.value(entry)


def state(entry: Entry) -> str:
    """How far an entry is: refused, not yet, partly, first bounds, searched, proven."""
    if entry.refused is not None:
        return "refused"
    if not np.any(entry.limit >= 0):
        return "not yet"
    if not entry.visited:
        return "partly"
    if entry.closed.all():
        return "proven"
    return "searched" if np.any(entry.limit > 0) else "first bounds"


def relative(entry: Entry) -> tuple[float, float] | None:
    """The interval of the summed error divided by f(0), rounded outward; None where f(0) = 0."""
    return outward_ratio(entry.interval, entry.layer.energy)


def outward_ratio(interval: tuple[float, float], energy: float) -> tuple[float, float] | None:
    """An interval divided by an energy, rounded outward; None where the energy is 0."""
    if not energy > 0:
        return None
    low, high = (end / energy for end in interval)
    # Each quotient is rounded once; 0 and infinity are exact.
    low = low if low == 0 or interval[0] == 0 else float(np.nextafter(low, -math.inf))
    return low, high if interval[1] == 0 or math.isinf(high) else float(np.nextafter(high, math.inf))


def total_of(score: MethodScore) -> float | None:
    """The error of a method summed over all sets; None where it is not known of all."""
    total = math.fsum(score.errors) if np.all(np.isfinite(score.errors)) else math.nan
    return total if math.isfinite(total) else None


def best_method(entry: Entry) -> str | None:
    """The method with the smallest summed error, among those whose weights are allowed."""
    totals = {label: total_of(score) for label, score in entry.methods.items() if score.feasible}
    known = {label: total for label, total in totals.items() if total is not None}
    return min(known, key=lambda label: known[label], default=None)


def excess_percent(error: float | None, lower: float) -> float | None:
    """By how many per cent an error exceeds a lower end at most; infinite where that is 0, None without an error."""
    if error is None:
        return None
    if lower == 0:
        return math.inf if error > 0 else 0.0
    return 100.0 * (error / lower - 1.0)


def ratio(entry: Entry) -> float | None:
    """Lower end / upper end, 1 where both are 0; None before the first bounds."""
    low, high = entry.interval
    if not math.isfinite(high):
        return None
    return low / high if high > 0 else 1.0


def _relative(end: int) -> Callable[[Entry], float | None]:
    def value(entry: Entry) -> float | None:
        ends = relative(entry)
        return None if ends is None else ends[end]

    return value


def _decibels(end: int) -> Callable[[Entry], float | None]:
    def value(entry: Entry) -> float | None:
        ends = relative(entry)
        if ends is None:
            return None
        if ends[end] == 0:
            return math.inf
        return -10.0 * math.log10(ends[end]) if math.isfinite(ends[end]) else -math.inf

    return value


def _best(entry: Entry) -> float | None:
    label = best_method(entry)
    return None if label is None else total_of(entry.methods[label])


def _over_energy(value: float | None, entry: Entry) -> float | None:
    return value / entry.layer.energy if value is not None and entry.layer.energy > 0 else None


#: Of every table; those of methods and yardsticks follow.
COLUMNS: tuple[Column, ...] = (
    Column("layer", "text", "name", lambda e: e.layer.name, False),
    Column("compression", "text", "what is asked of the layer", lambda e: e.choice.name, False),
    Column("status", "text", "refused, not yet, partly, first bounds, searched or proven", state, False),
    Column("refused", "text", "why the layer cannot have it", lambda e: e.refused, False),
    Column("problem", "text", "what is allowed", lambda e: e.label),
    Column("family", "text", "quantization, pruning or joint", lambda e: e.family),
    Column("shape", "text", "of the weight", lambda e: "x".join(map(str, e.layer.shape)), False),
    Column("weights", "whole", "how many", lambda e: e.layer.weights, False),
    Column("inputs", "whole", "of an output channel", lambda e: e.layer.inputs, False),
    Column("dead_inputs", "whole", "without energy, of all groups", lambda e: e.layer.dead, False),
    Column("samples", "whole", "calibration positions", lambda e: e.layer.samples, False),
    Column("out_channels", "whole", "of the layer", lambda e: e.layer.shape[0], False),
    Column("channels", "whole", "that the numbers are about", lambda e: len(e.layer.channels), False),
    Column("storage_bits", "whole", "of the whole layer", lambda e: e.storage),
    Column("bits_per_weight", "real", "storage_bits / weights", lambda e: e.bits_per_weight),
    Column("energy", "real", "f(0) of these channels", lambda e: e.layer.energy, False),
    Column("lower_bound", "real", "no allowed weights have a smaller error", lambda e: e.interval[0]),
    Column("upper_bound", "real", "the error of weights that were found", lambda e: e.interval[1]),
    Column("relative_lower_bound", "real", "lower_bound / energy, rounded down", _relative(0)),
    Column("relative_upper_bound", "real", "upper_bound / energy, rounded up", _relative(1)),
    Column("sqnr_db", "real", "−10·log₁₀ relative_upper_bound: reached", _decibels(1)),
    Column("best_sqnr_db", "real", "−10·log₁₀ relative_lower_bound: no weights exceed it", _decibels(0)),
    Column("lower_over_upper", "real", "1 where nothing is left open", ratio),
    Column("sets", "whole", "channels, or sets of them, with an interval each", lambda e: len(e.sets)),
    Column("bounded", "whole", "of these with first bounds", lambda e: int(np.count_nonzero(e.limit >= 0))),
    Column("optimal", "whole", "of these proven optimal", lambda e: int(np.count_nonzero(e.closed))),
    Column("best_method", "text", "with the smallest error among allowed weights", best_method),
    Column("best_method_error", "real", "relative error of it", lambda e: _over_energy(_best(e), e)),
    Column(
        "best_method_excess_percent", "real", "100·(error / lower_bound − 1)",
        lambda e: excess_percent(_best(e), e.interval[0]),
    ),
    Column("seconds", "real", "of search, in all sets", lambda e: math.fsum(e.seconds)),
    Column("longest_search", "real", "seconds that a set has had at most", lambda e: max(0.0, *e.limit, 0.0)),
    Column("fingerprint", "text", "of the problem", lambda e: e.fingerprint),
    Column("layer_digest", "text", "SHA-256 of the layer", lambda e: e.layer.digest, False),
)  # fmt: skip


def columns(entries: Sequence[Entry]) -> list[Column]:
    """The columns of a table of these entries: `COLUMNS`, and those of their methods and yardsticks."""
    methods = list(dict.fromkeys(label for entry in entries for label in entry.methods))
    yardsticks = list(dict.fromkeys(name for entry in entries for name in entry.yardsticks))
    found = list(COLUMNS)
    for label in methods:
        found.append(Column(f"error[{label}]", "real", "relative error of these weights", _method_error(label)))
        found.append(Column(f"allowed[{label}]", "truth", "whether they are allowed", _allowed(label)))
    found += [Column(f"yardstick[{name}]", "real", "relative; no certificate", _yardstick(name)) for name in yardsticks]
    return found


def rows(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """A row for each entry."""
    described = columns(entries)
    return [{column.name: column.of(entry) for column in described} for entry in entries]


def _method_error(label: str) -> Callable[[Entry], float | None]:
    def value(entry: Entry) -> float | None:
        score = entry.methods.get(label)
        return None if score is None else _over_energy(total_of(score), entry)

    return value


def _allowed(label: str) -> Callable[[Entry], bool | None]:
    def value(entry: Entry) -> bool | None:
        score = entry.methods.get(label)
        return None if score is None or total_of(score) is None else score.feasible

    return value


def _yardstick(name: str) -> Callable[[Entry], float | None]:
    return lambda entry: _over_energy(entry.yardsticks.get(name), entry)


def relative_sum(entries: Sequence[Entry]) -> tuple[float, float]:
    """Interval of the sum of relative errors of several entries, rounded outward; those with f(0) = 0 count nothing."""
    ends = [pair for pair in map(relative, entries) if pair is not None]
    return summed(np.array(ends)) if ends else (0.0, 0.0)


def weighted_sum(entries: Sequence[Entry]) -> tuple[float, float] | None:
    """Interval of the summed error over the summed f(0), rounded outward; None where that is 0."""
    total = summed(np.array([entry.interval for entry in entries]).reshape(-1, 2))
    return outward_ratio(total, math.fsum(entry.layer.energy for entry in entries))
