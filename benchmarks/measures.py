"""Measures over benchmark records: times, gaps, shifted geometric means, performance profiles, agreement."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

Record = dict[str, Any]

#: Channels count as closed at this relative gap; two solvers must agree on their optima as closely.
CLOSED = 1e-6
#: Seconds added in geometric means and in ratios: shorter times are not told apart.
SHIFT = 0.01
#: Peers are compared on instances that took them longer than this many seconds, and by the number of inputs from which
#: an instance counts as large.
LONG, LARGE = 1.0, 32
#: Free solvers that any user can run on any size: the best of them is the yardstick of `closed_ratio`.
FREE = ("scip", "highs")


def lower_of(record: Record) -> float:
    """The certified bound of the native backend, the claim of any other: it is judged by its own figure."""
    if record["backend"].startswith("native"):
        return float(record["lower_bound"])
    return 0.0 if record["claimed_lower_bound"] is None else float(record["claimed_lower_bound"])


def gap(lower: float, upper: float) -> float:
    """(upper − lower)/upper in [0, 1]."""
    return 0.0 if upper <= 0 else float(np.clip((upper - lower) / upper, 0.0, 1.0))


def closed(record: Record) -> bool:
    """Whether a solver proves, or claims, that its weights are optimal."""
    return not record["error"] and (record["status"] in ("optimal", "claimed"))


def seconds_of(record: Record) -> float:
    """Time to close; the time limit where that was not reached."""
    return min(float(record["seconds"]), record["time_limit"]) if closed(record) else float(record["time_limit"])


def time_text(record: Record) -> str:
    """`seconds_of` as text: milliseconds below one second."""
    value = seconds_of(record)
    return f"{value:.3f} s" if value < 1.0 else f"{value:.2f} s"


def gap_after(record: Record, seconds: float) -> float:
    """The (claimed) gap at a moment, from the trace; the final one after the last point."""
    if record["error"]:
        return 1.0
    if record["seconds"] <= seconds:
        return gap(lower_of(record), record["upper_bound"])
    lower, upper = 0.0, np.inf
    for moment, low, high in record["trace"]:
        if moment <= seconds:
            lower, upper = max(lower, low or 0.0), min(upper, high)
    return gap(lower, upper) if np.isfinite(upper) else 1.0


def shifted_geometric_mean(values: Sequence[float], shift: float = SHIFT) -> float:
    """exp(mean(log(v + shift))) − shift; NaN of nothing."""
    return float(np.exp(np.mean(np.log(np.asarray(values) + shift))) - shift) if len(values) else float("nan")


def by_instance(records: Sequence[Record]) -> dict[str, dict[str, Record]]:
    """Instance → backend → record."""
    table: dict[str, dict[str, Record]] = defaultdict(dict)
    for record in records:
        table[record["name"]][record["backend"]] = record
    return dict(table)


@dataclass(frozen=True)
class Comparison:
    """A peer and the native backend on the instances that took the peer longer than `LONG`.

    Attributes
    ----------
    instances : int
        Those that the peer took on; what it refused counts nowhere, a crash or a kill counts at the limit.
    long : int
        How many of them took it longer than `LONG`, or were not closed: those count at the limit.
    theirs, own : float
        Shifted geometric means of the seconds on these, NaN where there are none.
    """

    instances: int
    long: int
    theirs: float
    own: float

    @property
    def ratio(self) -> float:
        """(theirs + shift)/(own + shift)."""
        return (self.theirs + SHIFT) / (self.own + SHIFT)


def compare(records: Sequence[Record], peer: str, own: str = "native") -> Comparison:
    """Times of a peer and of the native backend where the peer needed more than `LONG` seconds."""
    pairs = [
        (seconds_of(row[peer]), closed(row[peer]), seconds_of(row[own]))
        for row in by_instance(records).values()
        if peer in row and own in row and row[peer]["error"] != "refused"
    ]
    long = [(theirs, mine) for theirs, done, mine in pairs if theirs > LONG or not done]
    return Comparison(
        len(pairs),
        len(long),
        shifted_geometric_mean([theirs for theirs, _ in long]),
        shifted_geometric_mean([mine for _, mine in long]),
    )


def closed_large(records: Sequence[Record]) -> dict[str, int]:
    """How many instances of at least `LARGE` inputs each backend closes; what it refuses it does not close."""
    counts = {record["backend"]: 0 for record in records}
    for record in records:
        counts[record["backend"]] += record["inputs"] >= LARGE and closed(record)
    return counts


def closed_ratio(records: Sequence[Record]) -> float:
    """Large instances closed by the native backend / by the best of `FREE`; infinite where these close none.

    Only instances that the native backend and all of `FREE` that ran at all have records of are counted, so that a run
    cut short, or a backend that cannot treat a kind of problem at all, does not count against anyone.
    """
    present = {record["backend"] for record in records} & {"native", *FREE}
    if "native" not in present or len(present) == 1:
        return float("nan")
    rows = [row for row in by_instance(records).values() if present <= row.keys()]
    counts = closed_large([record for row in rows for record in row.values()])
    best = max(counts.get(name, 0) for name in FREE)
    return counts.get("native", 0) / best if best else float("inf")


def missed(records: Sequence[Record], own: str = "native") -> list[str]:
    """Instances that another backend closes and the native one does not."""
    return [
        name
        for name, row in by_instance(records).items()
        if own in row and not closed(row[own]) and any(closed(record) for record in row.values())
    ]


def profile(records: Sequence[Record], kinds: Sequence[str]) -> dict[str, list[float]]:
    """Performance profile (Dolan & Moré, Math. Programming 91, 2002): ratios to the fastest backend, infinite if open.

    Times are raised by `SHIFT`. Instances that no backend closes are left out.
    """
    ratios: dict[str, list[float]] = defaultdict(list)
    for row in by_instance([r for r in records if r["kind"] in kinds]).values():
        times = {b: seconds_of(r) + SHIFT if closed(r) else np.inf for b, r in row.items()}
        best = min(times.values())
        if np.isfinite(best):
            for backend, value in times.items():
                ratios[backend].append(value / best)
    return dict(ratios)


def disagreements(records: Sequence[Record]) -> tuple[int, int, list[str]]:
    """Pairs of backends that both close an instance: their number, that of instances, and who differs by how much."""
    pairs, instances, wrong = 0, 0, []
    for name, row in by_instance(records).items():
        finished = {b: r["upper_bound"] for b, r in row.items() if closed(r)}
        instances += len(finished) > 1
        for (a, first), (b, second) in combinations(finished.items(), 2):
            pairs += 1
            if abs(first - second) > CLOSED * max(first, second):
                wrong.append(f"{name}: {a} {first:.9g}, {b} {second:.9g}")
    return pairs, instances, wrong


def losses(records: Sequence[Record], other: str = "native") -> list[tuple[str, str, str]]:
    """Where a backend beats the native one: it closes more, or faster by more than `SHIFT`, or ends nearer."""
    rows = []
    for name, row in by_instance(records).items():
        own = row.get(other)
        if own is None:
            continue
        for backend, record in row.items():
            if backend == other or record["error"]:
                continue
            if closed(record) and seconds_of(record) + SHIFT < seconds_of(own):
                rows.append((name, backend, f"{time_text(record)}, native {_outcome(own)}"))
            elif not own["error"] and not closed(own) and not closed(record):
                best = min(own["upper_bound"], record["upper_bound"])
                mine, theirs = gap(own["lower_bound"], best), gap(lower_of(record), best)
                if theirs < mine:
                    rows.append((name, backend, f"claims a gap of {100 * theirs:.0f} %, native {100 * mine:.0f} %"))
    return rows


def _outcome(record: Record) -> str:
    if record["error"]:
        return str(record["error"])
    if closed(record):
        return time_text(record)
    return f"{100 * gap(record['lower_bound'], record['upper_bound']):.0f} % open at the limit"
