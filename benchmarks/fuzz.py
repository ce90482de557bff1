"""Long-running fuzz: random and degenerate layers × all kinds of problems against exact enumeration.

    python -m benchmarks.fuzz --seconds N [--channels N] [--seed S] [--jobs J] [--out FILE]
    python -m benchmarks.fuzz --seed S --case NUMBER

What is checked of every channel, and what the columns of the table mean, is in docs/fuzzing.md. The exit code is 1
where a bound, a status or weights are wrong, or an exception escaped.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path

import numpy as np

import layerbounds as lb
from benchmarks.exact import Channel, Optimum, Rows
from benchmarks.fuzz_cases import Case, make_case
from benchmarks.fuzz_certificates import wrong_certificate
from benchmarks.fuzz_oracle import best, counting_gram, feasible
from benchmarks.native_speed import machine
from layerbounds.arrays import Float
from layerbounds.proofs import OPTIMAL_ABSOLUTE, OPTIMAL_RELATIVE

#: Seconds of search per channel: a hundred times what the slowest of these small channels should need.
TIME_LIMIT = 2.0
#: Cases that a process works on before it reports.
BATCH = 4
#: Every case whose number is a multiple of this has a certificate, which is checked, too; and one that is shown alone.
CERTIFIED = 3
#: Upper bounds may exceed the exact error of their weights by so many roundings of float64, and of extended precision
#: relative to the magnitude of the terms.
ROUNDINGS, LONG_ROUNDINGS = 4, 100
#: Faults, reported one by one, in the order of the table's columns.
FAULTS = ("invalid", "exception", "status", "certificate")


@dataclass
class Outcome:
    """What became of some channels of one case.

    Attributes
    ----------
    kind : str
    traits : tuple of str
    number : int
        Of the case.
    channels : int
    lowered : int
        Intervals whose lower ends are smaller in the certificate.
    open : int
        Channels whose interval is not closed.
    indefinite : int
        Of these, channels whose stored matrix is not positive semidefinite by rounding.
    faults : list of (str, str)
        What it is, one of `FAULTS`, and one line.
    """

    kind: str
    traits: tuple[str, ...]
    number: int
    channels: int = 0
    lowered: int = 0
    open: int = 0
    indefinite: int = 0
    faults: list[tuple[str, str]] = field(default_factory=list)
    open_channels: list[str] = field(default_factory=list)


def run_case(seed: int, number: int, certified: bool | None = None) -> Outcome:
    """Solve one case and judge every channel, and its certificate: default, as its number says."""
    certified = number % CERTIFIED == 0 if certified is None else certified
    try:
        case = make_case(seed, number)
    except Exception:
        return Outcome("building the problem", (), number, faults=[("exception", _last_line())])
    outcome = Outcome(case.kind, case.traits, number)
    every = list(range(case.problem.layer.out_features))
    try:
        _judge(case, lb.solve(case.problem, time_limit=TIME_LIMIT, **case.options), outcome, certified)  # type: ignore[arg-type]
    except Exception:
        # One bad channel takes the others with it: find out which ones.
        outcome = Outcome(case.kind, case.traits, number)
        options = {name: value for name, value in case.options.items() if name != "warm_start"}
        for rows in case.problem.sets(every):
            try:
                solved = lb.solve(case.problem, channels=rows, time_limit=TIME_LIMIT, **options)  # type: ignore[arg-type]
                _judge(case, solved, outcome, certified)
            except Exception:
                outcome.channels += len(rows)
                outcome.faults.append(("exception", f"channel {rows[0]}: {_last_line()}"))
        if not outcome.faults:
            outcome.faults.append(("exception", "only when all channels are solved together"))
    return outcome


def _last_line() -> str:
    kind, error, trace = sys.exc_info()
    frames = [f for f in traceback.extract_tb(trace) if "layerbounds" in f.filename]
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{kind.__name__ if kind else ''}: {' '.join(str(error).split())[:200]}{place}"


def _judge(case: Case, solution: lb.Solution, outcome: Outcome, certified: bool = False) -> None:
    layer, gap = case.problem.layer, float(case.options.get("gap", 0.0))  # type: ignore[arg-type]
    position = {channel: i for i, channel in enumerate(solution.channels)}
    optima: list[Fraction] = []
    definite = True
    for i, rows in enumerate(solution.sets):
        outcome.channels += len(rows)
        c, energy = rows[0], float(layer.energy()[rows].sum())
        gram = counting_gram(case, c)
        channels = [Channel(gram, layer.target[row], float(layer.constant[row])) for row in rows]
        weights = solution.weights[[position[row] for row in rows]].reshape(len(rows), -1)
        lower, upper = float(solution.lower_bound[i]), float(solution.upper_bound[i])
        status = str(solution.status[i])
        optimum = best(case, channels, rows)
        wrong = list(_wrong_bounds(Rows(channels), optimum, lower, upper, weights))
        definite &= optimum.definite
        judged = Rows(channels)
        optima.append(min(optimum.value, max(judged.error(weights), judged.constant)))
        if not feasible(case, rows, weights):
            wrong.append("weights that are not allowed")
        outcome.faults += [("invalid", f"channel {c}: {text}") for text in wrong]
        closed = upper - lower <= max(OPTIMAL_RELATIVE * upper, OPTIMAL_ABSOLUTE * energy)
        done = closed or (gap > 0 and upper - lower <= gap * upper)
        for text in _wrong_status(status, closed, done, float(solution.seconds[i])):
            outcome.faults.append(("status", f"channel {c}: {text}"))
        if not done:
            outcome.open += 1
            outcome.indefinite += not optimum.definite
            note = "" if optimum.definite else " (stored matrix indefinite)"
            outcome.open_channels.append(
                f"channel {c}: {status}, lower {lower:.9g}, optimum {float(optimum.value):.9g}, upper {upper:.9g}, "
                f"energy {energy:.3g}{note}"
            )
    # A matrix that is not positive semidefinite has no certificate.
    if certified and definite:
        outcome.lowered, wrong = wrong_certificate(solution, optima)
        outcome.faults += [("certificate", text) for text in wrong]


def _wrong_bounds(channel: Rows, optimum: Optimum, lower: float, upper: float, weights: Float) -> Iterator[str]:
    error = max(channel.error(weights), channel.constant)
    smallest = min(optimum.value, error)
    if not np.isfinite([lower, upper]).all() or lower > upper:
        yield f"interval [{lower!r}, {upper!r}]"
        return
    if Fraction(lower) > smallest:
        yield f"lower bound {lower!r} exceeds {float(smallest)!r} by {float(Fraction(lower) - smallest):.2g}"
    if Fraction(upper) < error:
        yield f"upper bound {upper!r} is below the error {float(error)!r} of its weights"
    if optimum.definite and not optimum.rounded and Fraction(upper) < optimum.value:
        yield f"upper bound {upper!r} is below the optimum {float(optimum.value)!r}"
    extended = float(np.finfo(np.longdouble).eps)
    allowed = ROUNDINGS * np.finfo(np.float64).eps * float(error) + LONG_ROUNDINGS * extended * channel.magnitude(
        weights
    )
    if upper - float(error) > allowed:
        yield f"upper bound {upper!r} is {upper - float(error):.2g} above the error {float(error)!r} of its weights"


def _wrong_status(status: str, closed: bool, done: bool, seconds: float) -> Iterator[str]:
    if closed and status != "optimal":
        yield f"{status}, but the interval is closed"
    elif done and not closed and status != "gap_reached":
        yield f"{status}, but the gap is reached"
    elif not done and status in ("optimal", "gap_reached"):
        yield f"{status}, but the interval is open"
    if status in ("node_limit", "interrupted", "claimed", "relaxed", "failed"):
        yield f"{status}, which nobody asked for"
    if status == "time_limit" and seconds < 0.5 * TIME_LIMIT:
        yield f"time_limit after {seconds:.2f} s of {TIME_LIMIT:g}"


def _batch(seed: int, numbers: range) -> list[Outcome]:
    return [run_case(seed, number) for number in numbers]


class Tally:
    """Sums over the outcomes, one row for each kind.

    Parameters
    ----------
    seed : int
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rows: dict[str, Counter[str]] = {}
        self.faults: list[dict[str, object]] = []
        self.open: list[dict[str, object]] = []

    def add(self, outcome: Outcome) -> None:
        """Count an outcome."""
        row = self.rows.setdefault(outcome.kind, Counter())
        row["channels"] += outcome.channels
        row["lowered"] += outcome.lowered
        row["open"] += outcome.open
        row["indefinite"] += outcome.indefinite
        where = {"case": outcome.number, "kind": outcome.kind, "traits": list(outcome.traits)}
        for kind, text in outcome.faults:
            row[kind] += 1
            self.faults.append({**where, "fault": kind, "text": text})
            again = f"python -m benchmarks.fuzz --seed {self.seed} --case {outcome.number}"
            print(f"{kind}: {outcome.kind} ({', '.join(outcome.traits)}), {text}\n  {again}", flush=True)
        self.open += [{**where, "text": text} for text in outcome.open_channels]

    @property
    def total(self) -> Counter[str]:
        """Sums of the rows."""
        return sum(self.rows.values(), Counter())

    def table(self) -> str:
        """The table, as text."""
        columns = ("channels", *FAULTS, "lowered", "open", "indefinite")
        lines = [f"{'kind':<28}" + "".join(f"{name:>12}" for name in columns)]
        for kind, row in [*sorted(self.rows.items()), ("all", self.total)]:
            lines.append(f"{kind:<28}" + "".join(f"{row[name]:>12,}" for name in columns))
        return "\n".join(lines)


def fuzz(seconds: float, channels: float, seed: int, jobs: int) -> Tally:
    """Work on cases until the time is over or so many channels are judged."""
    tally = Tally(seed)
    begin = time.perf_counter()
    numbers = iter(range(0, sys.maxsize, BATCH))
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        pending: set[Future[list[Outcome]]] = set()
        while True:
            going = time.perf_counter() - begin < seconds and tally.total["channels"] < channels
            while going and len(pending) < 2 * jobs:
                start = next(numbers)
                pending.add(pool.submit(_batch, seed, range(start, start + BATCH)))
            if not pending:
                return tally
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                for outcome in future.result():
                    tally.add(outcome)


def show_case(seed: int, number: int) -> Outcome:
    """Print one case, its intervals and what is wrong with them."""
    case = make_case(seed, number)
    print(case.describe())
    outcome = run_case(seed, number, certified=True)
    for text in outcome.open_channels:
        print(f"open: {text}")
    for kind, text in outcome.faults:
        print(f"{kind}: {text}")
    return outcome


def main() -> None:
    """Run, print the table, and end with code 1 where something is wrong."""
    parser = argparse.ArgumentParser(description="Random and degenerate small layers against exact enumeration.")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long; default: 60")
    parser.add_argument("--channels", type=float, default=float("inf"), help="end after so many channels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes; default: all cores")
    parser.add_argument("--case", type=int, help="look at one case of this seed only")
    parser.add_argument("--out", type=Path, help="a JSON file for the counts, the faults and the open intervals")
    options = parser.parse_args()
    if options.case is not None:
        raise SystemExit(int(bool(show_case(options.seed, options.case).faults)))
    begin = time.perf_counter()
    tally = fuzz(options.seconds, options.channels, options.seed, options.jobs)
    spent = time.perf_counter() - begin
    print(f"\n{machine()}\n")
    print(f"seed {options.seed}, {spent:.0f} s, {tally.total['channels'] / spent:.0f} channels/s\n\n{tally.table()}")
    if options.out is not None:
        record = {
            "seed": options.seed,
            "seconds": spent,
            "machine": machine(),
            "counts": {kind: dict(row) for kind, row in tally.rows.items()},
            "faults": tally.faults,
            "open": tally.open,
        }
        options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    raise SystemExit(int(bool(tally.faults)))


if __name__ == "__main__":
    main()
