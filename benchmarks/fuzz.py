"""Long-running fuzz: random and degenerate layers × all kinds of problems against exact enumeration.

    python -m benchmarks.fuzz --seconds N [--channels N] [--seed S] [--jobs J] [--out FILE]
    python -m benchmarks.fuzz --seed S --case NUMBER

What is checked of every channel, and what the columns of the table mean, is in docs/fuzzing.md. The exit code is 1
where a bound, a status or weights are wrong, or an exception escaped.
"""

from __future__ import annotations

import argparse
import itertools
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
import numpy.typing as npt

import layerbounds as lb
from benchmarks.exact import Channel, Optimum, divisions, supports, unit_groups
from benchmarks.fuzz_cases import Case, make_case
from benchmarks.native_speed import machine
from layerbounds.arrays import Float
from layerbounds.proofs import OPTIMAL_ABSOLUTE, OPTIMAL_RELATIVE

#: Seconds of search per channel: a hundred times what the slowest of these small channels should need.
TIME_LIMIT = 2.0
#: Cases that a process works on before it reports.
BATCH = 4
#: Upper bounds may exceed the exact error of their weights by so many roundings of float64, and of extended precision
#: relative to the magnitude of the terms.
ROUNDINGS, LONG_ROUNDINGS = 4, 100
#: Faults, reported one by one, in the order of the table's columns.
FAULTS = ("invalid", "exception", "status")


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
    open: int = 0
    indefinite: int = 0
    faults: list[tuple[str, str]] = field(default_factory=list)
    open_channels: list[str] = field(default_factory=list)


def run_case(seed: int, number: int) -> Outcome:
    """Solve one case and judge every channel."""
    try:
        case = make_case(seed, number)
    except Exception:
        return Outcome("building the problem", (), number, faults=[("exception", _last_line())])
    outcome = Outcome(case.kind, case.traits, number)
    every = list(range(case.problem.layer.out_features))
    try:
        _judge(case, lb.solve(case.problem, time_limit=TIME_LIMIT, **case.options), outcome)  # type: ignore[arg-type]
    except Exception:
        # One bad channel takes the others with it: find out which ones.
        outcome = Outcome(case.kind, case.traits, number)
        options = {name: value for name, value in case.options.items() if name != "warm_start"}
        for channel in every:
            try:
                solved = lb.solve(case.problem, channels=[channel], time_limit=TIME_LIMIT, **options)  # type: ignore[arg-type]
                _judge(case, solved, outcome)
            except Exception:
                outcome.channels += 1
                outcome.faults.append(("exception", f"channel {channel}: {_last_line()}"))
        if not outcome.faults:
            outcome.faults.append(("exception", "only when all channels are solved together"))
    return outcome


def _last_line() -> str:
    kind, error, trace = sys.exc_info()
    frames = [f for f in traceback.extract_tb(trace) if "layerbounds" in f.filename]
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{kind.__name__ if kind else ''}: {' '.join(str(error).split())[:200]}{place}"


def _judge(case: Case, solution: lb.Solution, outcome: Outcome) -> None:
    layer, gap = case.problem.layer, float(case.options.get("gap", 0.0))  # type: ignore[arg-type]
    energy = layer.energy()
    for i, c in enumerate(solution.channels):
        outcome.channels += 1
        channel = Channel(_counting_gram(case, c), layer.target[c], float(layer.constant[c]))
        weights = solution.weights[i].reshape(-1)
        lower, upper = float(solution.lower_bound[i]), float(solution.upper_bound[i])
        status = str(solution.status[i])
        optimum = best(case, channel, c)
        wrong = list(_wrong_bounds(channel, optimum, lower, upper, weights))
        if not _feasible(case, c, weights):
            wrong.append("weights that are not allowed")
        outcome.faults += [("invalid", f"channel {c}: {text}") for text in wrong]
        closed = upper - lower <= max(OPTIMAL_RELATIVE * upper, OPTIMAL_ABSOLUTE * energy[c])
        done = closed or (gap > 0 and upper - lower <= gap * upper)
        for text in _wrong_status(status, closed, done, float(solution.seconds[i])):
            outcome.faults.append(("status", f"channel {c}: {text}"))
        if not done:
            outcome.open += 1
            outcome.indefinite += not optimum.definite
            note = "" if optimum.definite else " (stored matrix indefinite)"
            outcome.open_channels.append(
                f"channel {c}: {status}, lower {lower:.9g}, optimum {float(optimum.value):.9g}, upper {upper:.9g}, "
                f"energy {energy[c]:.3g}{note}"
            )


def _counting_gram(case: Case, c: int) -> Float:
    """The matrix that counts: for weights that may take any value with what rounding took off its diagonal."""
    layer = case.problem.layer
    gram = np.array(layer.channel_gram(c))
    if case.problem.allowed(c).free:
        np.fill_diagonal(gram, np.diag(gram) * (1.0 + layer.gram_reports[layer.group_of(c)].raised))
    return gram


def best(case: Case, channel: Channel, c: int) -> Optimum:
    """The exact optimum of a channel of a case."""
    problem, n = case.problem, channel.size
    if isinstance(problem, lb.QuantizationProblem):
        levels = problem.grid.levels(c)
        # Inputs without energy add nothing, whatever their level.
        live = np.diag(channel.gram) > 0
        count = np.where(live, levels.shape[1], 1)
        return channel.best_point(levels, np.indices(tuple(count)).reshape(n, -1).T)
    if isinstance(problem, lb.JointProblem):
        levels = problem.grid.levels(c)
        values = np.concatenate([np.zeros((n, 1)), levels], axis=1)
        # Dropping inputs without energy costs nothing.
        count = np.where(np.diag(channel.gram) > 0, values.shape[1], 1)
        choices = np.indices(tuple(count)).reshape(n, -1).T
        return channel.best_point(values, choices[_fits(case, values[np.arange(n), choices] != 0.0)])
    if isinstance(problem, lb.FreeCodebookProblem):
        live = np.flatnonzero(np.diag(channel.gram) > 0)
        core = Channel(channel.gram[np.ix_(live, live)], channel.target[live], float(channel.constant))
        return core.best_division(divisions(len(live), problem.count))
    if isinstance(problem, lb.FreeScaleProblem):
        live = np.flatnonzero(np.diag(channel.gram) > 0)
        core = Channel(channel.gram[np.ix_(live, live)], channel.target[live], float(channel.constant))
        allowed = problem.allowed(c)
        lists = [problem.codes] if allowed.zero == "real" else allowed.boxes()
        choices = itertools.chain.from_iterable(itertools.product(codes.tolist(), repeat=len(live)) for codes in lists)
        return core.best_ray(choices, allowed.limit, allowed.zero == "real")
    if problem.refit:
        return channel.best_support(list(supports(case.pattern, n, problem.kept, True)))
    kept = list(supports(case.pattern, n, problem.kept, False))
    masks = np.zeros((len(kept), n), dtype=np.int64)
    for mask, support in zip(masks, kept, strict=True):
        mask[support] = 1
    return channel.best_point(np.stack([np.zeros(n), problem.layer.matrix[c]], axis=1), masks)


def _fits(case: Case, kept: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Which sets of kept inputs, shape (sets, n), a case's pattern allows."""
    fits = np.ones(len(kept), dtype=bool)
    for units, room in unit_groups(case.pattern, kept.shape[1], case.problem.kept):  # type: ignore[union-attr]
        fits &= sum(kept[:, unit].any(axis=1).astype(np.int64) for unit in units) <= room
    return fits


def _wrong_bounds(channel: Channel, optimum: Optimum, lower: float, upper: float, weights: Float) -> Iterator[str]:
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


def _feasible(case: Case, c: int, weights: Float) -> bool:
    problem, n = case.problem, len(weights)
    if isinstance(problem, lb.QuantizationProblem):
        return bool(np.all(np.any(problem.grid.levels(c) == weights[:, None], axis=1)))
    if isinstance(problem, lb.JointProblem):
        values = np.concatenate([np.zeros((n, 1)), problem.grid.levels(c)], axis=1)
        return bool(np.all(np.any(values == weights[:, None], axis=1)) and _fits(case, weights[None] != 0.0)[0])
    if isinstance(problem, lb.FreeCodebookProblem):
        return len(np.unique(weights)) <= problem.count
    if isinstance(problem, lb.FreeScaleProblem):
        # Whether one rounding of s·q explains weights is decided in rational arithmetic.
        return bool(lb.evaluate(problem, weights[None], channels=[c]).feasible[0])
    if not problem.refit and not np.all((weights == 0.0) | (weights == problem.layer.matrix[c])):
        return False
    kept = set(np.flatnonzero(weights).tolist())
    return any(kept <= set(support) for support in supports(case.pattern, n, problem.kept, True))


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
        columns = ("channels", *FAULTS, "open", "indefinite")
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
    outcome = run_case(seed, number)
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
