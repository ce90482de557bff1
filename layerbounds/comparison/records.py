"""Run methods and the certified search on the same problems, and put the results into records."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from layerbounds.arguments import as_mapping, members, thread_count, whole_number
from layerbounds.arrays import Float
from layerbounds.comparison.rescaled import Rescaling, rescaling
from layerbounds.display import INTERVAL, METHOD, Bar, Displayed, Shape, Summary, Table, picture
from layerbounds.display.outward import ends, rounded
from layerbounds.exceptions import CertificationError, UnsupportedProblemError
from layerbounds.frames import Kind, data_frame
from layerbounds.methods.registry import run_channels
from layerbounds.methods.specs import MethodSpec, choose_methods, parse_method, tiny_like, warm_up
from layerbounds.problems.evaluation import Evaluation, evaluate, float_type
from layerbounds.problems.grids import Range
from layerbounds.problems.problem import Problem, check_channels
from layerbounds.problems.rows import noun, rows_text
from layerbounds.problems.storage import Mask, check_mask
from layerbounds.proofs import OPTIMAL_RELATIVE
from layerbounds.solution import Solution
from layerbounds.solve import solve

#: Called before each step with (steps done, steps in all).
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Record:
    """One row of a comparison; sums are over the chosen output channels.

    Attributes
    ----------
    layer : str
    channels : int
        How many output channels.
    family : {"quantization", "pruning", "joint"}
    bits_per_weight : float
        Scales not counted. Quantization: log₂ of the number of levels; pruning: 16 · density; both at once: log₂ of the
        number of levels, times the density. For patterns the mask comes on top.
    mask : str
        How the mask is counted: "none", "bitmap", "entropy" or "metadata" (docs/patterns.md).
    grid : str
        The grid or pattern that the row is about; ``lower_bound`` and ``upper_bound`` are of the same one.
    method : str
        ``certified interval``, or the method with its options.
    kind : {"certified", "heuristic", "given"}
    error : float
        Σ f, mean squared output error per calibration position; of the certified interval its upper end.
    relative_error : float or None
        Σ f / Σ f(0).
    sqnr_db : float or None
        −10·log₁₀ of the relative error.
    lower_bound, upper_bound : float or None
        Certified interval around the smallest possible error; None where it was not computed.
    best_sqnr_db : float or None
        SQNR that no weights of this grid or pattern can exceed.
    excess_percent : float or None
        100 · (error / lower_bound − 1): the error is at most so far above the optimum. None for weights that are not
        allowed, infinity where the lower bound is 0.
    seconds : float
        Of one thread, summed over the channels, without compilation; of the certified interval the search, without the
        layer's preparation.
    feasible : bool
    note : str
        What is off where weights are not allowed; how many channels, or sets of them, are proven optimal for the
        certified interval.
    fingerprint : str
        Equal for rows about the same problem.
    """

    layer: str
    channels: int
    family: str
    bits_per_weight: float
    mask: str
    grid: str
    method: str
    kind: str
    error: float
    relative_error: float | None
    sqnr_db: float | None
    lower_bound: float | None
    upper_bound: float | None
    best_sqnr_db: float | None
    excess_percent: float | None
    seconds: float
    feasible: bool
    note: str
    fingerprint: str


class MethodComparison(Displayed, list[dict[str, Any]]):
    """Methods beside certified intervals: a list of rows, each a dict with the fields of `Record`.

    Notebooks show it as a table, methods as points beside the intervals.

    Attributes
    ----------
    records : list of Record
    solutions : list of Solution
        One for each grid or pattern whose interval was computed, in their order.
    interrupted : bool
        After a Ctrl-C: the rows that were finished; bounds that were not have the value None.

    Examples
    --------
    >>> rows = lb.compare(layer, bits=2, methods=["rtn", "gptq"], channels=[0, 1], time_limit=1)
    >>> rows[0]["method"], rows.interrupted
    ('certified interval', False)
    """

    def __init__(self, records: Sequence[Record], solutions: Sequence[Solution], interrupted: bool) -> None:
        super().__init__(asdict(record) for record in records)
        self.records, self.solutions, self.interrupted = list(records), list(solutions), interrupted

    def to_frame(self) -> Any:
        """A table of the rows, with the fields of `Record`.

        Returns
        -------
        pandas.DataFrame

        Raises
        ------
        MissingExtraError
            Without pandas.

        Examples
        --------
        >>> table = lb.compare(layer, bits=2, methods=["rtn"], channels=[0], time_limit=1).to_frame()
        >>> table["method"].tolist()
        ['certified interval', 'rtn']
        """
        return data_frame(_KINDS, [asdict(record) for record in self.records])

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw SQNR against bits: certified intervals as boxes, methods as points.

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
            If there are no rows, or no picture can be written to the path.

        Examples
        --------
        >>> figure = lb.compare(layer, bits=2, methods=["rtn"], channels=[0], time_limit=1).plot("compare.svg")
        """
        return picture(self, path)

    @property
    def _problems(self) -> list[list[Record]]:
        """The records of each grid or pattern."""
        found: dict[str, list[Record]] = {}
        for record in self.records:
            found.setdefault(record.fingerprint, []).append(record)
        return list(found.values())

    def _summary(self) -> Summary:
        if not self.records:
            return Summary("nothing finished" if self.interrupted else "no rows")
        first = self.records[0]
        channels = f"{first.channels} channel{'' if first.channels == 1 else 's'}"
        facts = [_best_text(records) for records in self._problems[:_MOST_PROBLEMS]]
        if len(self._problems) > _MOST_PROBLEMS:
            facts.append(f"… {len(self._problems) - _MOST_PROBLEMS} more grids and patterns")
        return Summary(f"{first.layer} · {channels}" + (" · interrupted" if self.interrupted else ""), facts, True)

    def _tables(self) -> list[Table]:
        rows: list[list[str | Bar | None]] = []
        for records in self._problems:
            ranked = sorted(records, key=lambda record: (record.kind != "certified", record.error))
            for place, record in enumerate(ranked):
                certified = record.kind == "certified"
                span, error = _relative_span(record), _error_text(record)
                colour = INTERVAL if certified else METHOD
                bar = None if span is None else Bar(*span, f"{record.method}: {error} %", colour)
                grid = record.grid if place == 0 else ""
                bits = f"{record.bits_per_weight:.4g}" if place == 0 else ""
                excess = "" if certified else _excess_text(record)
                rows.append([grid, bits, record.method, error, bar, excess, record.note])
        kinds: dict[str, Shape] = {
            "grid or pattern": "text",
            "bits": "number",
            "method": "text",
            "error, % of f(0)": "number",
        }
        kinds |= {"interval and methods": "bar", "at most % from optimal": "number", "": "text"}
        return [Table(kinds, rows, unit="%")]


#: Grids and patterns of which `repr` has a line each.
_MOST_PROBLEMS = 6
_KINDS: dict[str, Kind] = {
    "layer": "text",
    "channels": "whole",
    "family": "text",
    "bits_per_weight": "real",
    "mask": "text",
    "grid": "text",
    "method": "text",
    "kind": "text",
    "error": "real",
    "relative_error": "real",
    "sqnr_db": "real",
    "lower_bound": "real",
    "upper_bound": "real",
    "best_sqnr_db": "real",
    "excess_percent": "real",
    "seconds": "real",
    "feasible": "truth",
    "note": "text",
    "fingerprint": "text",
}


def _relative_span(record: Record) -> tuple[float, float] | None:
    """The interval of the least error relative to f(0), or the error of a method; None where f(0) = 0."""
    if record.relative_error is None:
        return None
    low = record.relative_error
    if record.kind == "certified" and record.lower_bound is not None and record.error > 0:
        low *= record.lower_bound / record.error
    return low, record.relative_error


def _excess_text(record: Record) -> str:
    """How far from optimal at most, in per cent, rounded up; 0 within the tolerance of ``optimal``."""
    value = record.excess_percent
    return rounded(None if value is None else max(value - 100.0 * OPTIMAL_RELATIVE, 0.0), True, 3)


def _error_text(record: Record) -> str:
    """What is known of an error, in per cent of f(0)."""
    if record.kind != "certified":
        return rounded(record.relative_error, True, 4, 2)
    return ends(_relative_span(record), 4, 2)


def _best_text(records: Sequence[Record]) -> str:
    """One line on a grid or pattern: the interval, and the best method with allowed weights."""
    certified = [record for record in records if record.kind == "certified"]
    methods = [record for record in records if record.kind != "certified" and record.feasible]
    least = f"least error {_error_text(certified[0])} %" if certified else "no bounds yet"
    best = min(methods, key=lambda record: record.error, default=None)
    return f"{records[0].grid}: {least}" + (f", {best.method} {_error_text(best)} %" if best is not None else "")


def compare_problems(
    problems: Sequence[Problem],
    *,
    methods: Iterable[str] | None = None,
    weights: Mapping[str, ArrayLike] | None = None,
    channels: Sequence[int] | None = None,
    jobs: int | None = None,
    seed: int = 0,
    limits: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    ranges: Sequence[Range] = (),
    dtypes: Mapping[str, str] | None = None,
    mask: Mask = "none",
) -> MethodComparison:
    """Compare on given problems of one layer; Ctrl-C keeps what is finished.

    Parameters
    ----------
    problems : sequence of Problem
    methods, weights, channels, jobs, seed
        As in `compare`.
    limits : mapping, optional
        Arguments for `solve`.
    progress : callable, optional
        Called before each method and each search with (steps done, steps in all).
    ranges : sequence of str
        Where scales are free: the ranges at whose scales the methods start; default: all that fit.
    dtypes : mapping of name to str, optional
        Where scales are free: the types to which ``weights`` were rounded; default: those of the arrays.
    mask : {"none", "bitmap", "entropy", "metadata"}
        As in `compare`.
    """
    check_mask(mask)
    specs = None if methods is None else [parse_method(m) for m in members(methods, "methods")]
    chosen = check_channels(problems[0], channels)
    free = [rescaling(problem, ranges) for problem in problems]
    plans = [choose_methods(p if r is None else r.starts[0], specs) for p, r in zip(problems, free, strict=True)]
    unused = [s.label for s in specs or () if not any(s in plan for plan in plans)]
    if unused:
        raise UnsupportedProblemError(
            f"method {unused[0]!r} can treat none of the grids and patterns compared; see `layerbounds heuristics`."
        )
    layer = problems[0].layer
    given = {
        name: (layer.channel_weights(value, chosen, f"weights {name!r}"), float_type(value, (dtypes or {}).get(name)))
        for name, value in as_mapping(weights, "weights").items()
    }
    threads = thread_count(jobs)
    whole_number(seed, "seed")
    # Limits that `solve` refuses must not cost the work of the methods; this also compiles the search.
    for kind in {problem.requirement: problem for problem in problems}.values():
        solve(tiny_like(kind), jobs=1, **dict(limits or {}))
    records: list[Record] = []
    solutions: list[Solution] = []
    interrupted = False
    total = sum(len(plan) + 1 for plan in plans)
    done = 0

    def advance() -> None:
        nonlocal done
        if progress is not None:
            progress(done, total)
        done += 1

    for problem, plan, scales in zip(problems, plans, free, strict=True):
        rows = _Rows(problem, chosen, scales, mask)
        try:
            for name, (value, dtype) in given.items():
                rows.add_given(name, value, dtype)
            for spec in plan:
                advance()
                rows.run(spec, threads, seed, optional=specs is None)
            advance()
            solution = solve(
                problem, channels=chosen, jobs=threads, seed=seed, warm_start=rows.best(), **dict(limits or {})
            )
        except KeyboardInterrupt:
            interrupted = True
            records.extend(rows.records(None))
            break
        solutions.append(solution)
        records.extend(rows.records(solution))
        if solution.interrupted:
            interrupted = True
            break
    return MethodComparison(records, solutions, interrupted)


@dataclass(frozen=True, eq=False)
class _Row:
    method: str
    kind: str
    weights: Float
    score: Evaluation
    seconds: float


class _Rows:
    """Scored weights for one problem."""

    def __init__(self, problem: Problem, channels: list[int], scales: Rescaling | None, mask: Mask) -> None:
        self._problem, self._channels, self._scales, self._mask = problem, channels, scales, mask
        self._rows: list[_Row] = []

    def add_given(self, name: str, matrix: Float, dtype: str) -> None:
        """Score weights from elsewhere, shape (channels, n), and where not allowed the nearest ones that are."""
        channels = self._channels
        score = evaluate(self._problem, matrix, channels, dtype=dtype)
        if self._scales is not None and dtype != "float64" and score.feasible.all():
            # The bounds are about s·q itself, from which a coarse type differs.
            matrix = self._problem.rounded_to(dtype).judged(matrix, channels).snapped
            score, name = dataclasses.replace(score, error=score.snapped_error), f"{name}, without its rounding"
        self._rows.append(_Row(name, "given", matrix, score, 0.0))
        if not score.feasible.all():
            nearest = self._problem.project(matrix, channels)
            label = f"{name}, {self._problem.adjusted}"
            self._rows.append(_Row(label, "given", nearest, evaluate(self._problem, nearest, channels), 0.0))

    def run(self, spec: MethodSpec, threads: int, seed: int, optional: bool) -> None:
        """Run a method on all channels, several side by side."""
        problem = self._problem
        try:
            if self._scales is not None:
                warm_up(spec, self._scales.starts[0])
                weights, seconds = self._scales.run(spec, self._channels, seed, threads)
            else:
                warm_up(spec, problem)
                weights, seconds = run_channels(spec.heuristic, problem, self._channels, seed, spec.options, threads)
        except UnsupportedProblemError:
            if optional:
                return
            raise
        score = evaluate(problem, weights, self._channels)
        self._rows.append(_Row(spec.label, "heuristic", weights, score, seconds))

    def best(self) -> Float | None:
        """The best allowed weights of each channel."""
        if not self._rows:
            return None
        errors = np.array([np.where(row.score.feasible, row.score.error, np.inf) for row in self._rows])
        pick = np.argmin(errors, axis=0)
        best = np.empty_like(self._rows[0].weights)
        position = {channel: row for row, channel in enumerate(self._channels)}
        for index, channels in enumerate(self._problem.sets(self._channels)):
            members = [position[channel] for channel in channels]
            best[members] = self._rows[pick[index]].weights[members]
            if np.isinf(errors[:, index].min()):
                best[members] = self._problem.project(best[members], channels)
        return best

    def records(self, solution: Solution | None) -> list[Record]:
        """The certified interval, if there is one, and a record for each row."""
        records = []
        if solution is not None:
            totals = solution.totals()
            note = f"{totals['optimal']} of {totals['sets']} {noun(solution.sets, totals['sets'])} proven optimal"
            error = _sum(solution.upper_bound, math.inf)
            searched = float(totals["seconds"])
            records.append(self._record("certified interval", "certified", error, searched, True, note, solution))
        for row in self._rows:
            if solution is not None:
                self._check(row, solution)
            feasible = bool(row.score.feasible.all())
            note = "" if feasible else row.score.describe()
            error = float(np.sum(row.score.error))
            records.append(self._record(row.method, row.kind, error, row.seconds, feasible, note, solution))
        return records

    def _check(self, row: _Row, solution: Solution) -> None:
        below = row.score.feasible & (row.score.error < solution.lower_bound * (1.0 - 1e-9))
        if below.any():
            raise CertificationError(
                f"method {row.method!r} found allowed weights below the certified lower bound of channel "
                f"{rows_text(solution.sets[int(np.argmax(below))])}; please report this with the layer file."
            )

    def _record(
        self, method: str, kind: str, error: float, seconds: float, feasible: bool, note: str, solution: Solution | None
    ) -> Record:
        problem = self._problem
        energy = float(np.sum(problem.energy()[self._channels]))
        lower = None if solution is None else _sum(solution.lower_bound, 0.0)
        upper = None if solution is None else _sum(solution.upper_bound, math.inf)
        excess = None
        if lower is not None and feasible:
            excess = 100.0 * (error / lower - 1.0) if lower > 0 else (math.inf if error > 0 else 0.0)
            excess = max(excess, 0.0)
        return Record(
            layer=problem.layer.name,
            channels=len(self._channels),
            family=problem.family,
            bits_per_weight=problem.storage(self._mask),
            mask=self._mask,
            grid=problem.label,
            method=method,
            kind=kind,
            error=error,
            relative_error=error / energy if energy > 0 else None,
            sqnr_db=_decibel(error, energy),
            lower_bound=lower,
            upper_bound=upper,
            best_sqnr_db=None if lower is None else _decibel(lower, energy),
            excess_percent=excess,
            seconds=seconds,
            feasible=feasible,
            note=note,
            fingerprint=problem.fingerprint(),
        )


def _sum(values: Float, towards: float) -> float:
    """Sum of bounds, rounded towards 0 for lower and towards infinity for upper ones."""
    total = math.fsum(values)
    return total if len(values) == 1 else math.nextafter(total, towards)


def _decibel(error: float, energy: float) -> float | None:
    if not energy > 0:
        return None
    return -10.0 * (math.log10(error) - math.log10(energy)) if error > 0 else math.inf
