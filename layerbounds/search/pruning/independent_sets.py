"""Pruning with refit where the Gram matrix is singular but the supports are not: every support is tried.

With more inputs than directions no minorant is positive, and relaxations prove nothing before most inputs are dropped.
Supports of fewer inputs than directions are well-conditioned all the same; see docs/pruning-bounds.md.
"""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np

from layerbounds.arrays import Float, Int
from layerbounds.kernels import exact
from layerbounds.kernels.factorization import UNIT, gamma
from layerbounds.kernels.pruning.independent_sets import independent_sets
from layerbounds.problems.support import Support
from layerbounds.problems.tasks import Task
from layerbounds.proofs import OPTIMAL_ABSOLUTE, OPTIMAL_RELATIVE, Control, RawSolve, SearchProof, Status, TracePoint
from layerbounds.search.pruning.circuits import is_dependent, share_below, slope
from layerbounds.search.pruning.exact_sets import ExactSets, number_of_choices
from layerbounds.search.pruning.subset_search import SubsetSearch

#: Supports that are tried at most, and units of inputs.
MOST_SETS, MOST_UNITS = 10**8, 64
#: Supports that one thread tries in a second, at least.
SETS_PER_SECOND = 2e6
#: A support counts as dependent below this product of its pivots, relative to the diagonal.
LEAST = 1e-10
#: Supports that come near the cut, and begun ones with a dependent input: at a time, and of the latter in all.
FOUND, APART, MOST_APART = 1024, 4096, 5_000
#: Inputs by which the work is divided.
SPLIT = 2

_LONG = np.longdouble
_UNIT_LONG = float(np.finfo(_LONG).eps)


def applies(task: Task[Support], control: Control) -> bool:
    """Whether a problem has refit, single inputs, and so few supports that the limits allow to try them all."""
    n = len(task.target)
    if (
        not task.allowed.refit
        or len(task.allowed.structure.group) != n
        or n > MOST_UNITS
        or not task.allowed.structure.capacity.sum()
    ):
        return False
    most = min(MOST_SETS, SETS_PER_SECOND * control.remaining() * control.threads)
    return number_of_choices(task.allowed.structure, True) <= (
        most if control.node_limit is None else control.node_limit
    )


class SupportSearch:
    """All supports of one channel that keep as many inputs as they may.

    Parameters
    ----------
    search : SubsetSearch
        Its incumbent gives the cut.
    """

    def __init__(self, search: SubsetSearch) -> None:
        self.search = search
        task = search.task
        self.exact = ExactSets(task, search.control)
        self.order = self._order(task.gram, search.group)
        self.gram = np.ascontiguousarray(search.gram[np.ix_(self.order, self.order)])
        self.b = search.b[self.order]
        counts = np.bincount(search.group, minlength=len(search.capacity))
        first = np.cumsum(counts) - counts
        begin, last = [], []
        for group, capacity in enumerate(search.capacity.tolist()):
            for j in range(capacity):
                begin.append(first[group] + j)
                last.append(first[group] + counts[group] - capacity + j)
        self.begin, self.last = np.array(begin), np.array(last)
        self.lowest = 1.0
        self.visited = 0
        self.found: list[Int] = []
        #: The inputs that count, then the one that does not.
        self.apart: set[tuple[int, ...]] = set()

    @staticmethod
    def _order(gram: Float, group: Int) -> Int:
        """Inputs group by group, those with the strongest correlations first: dependence shows early on a path."""
        norm = np.sqrt(np.diag(gram))
        link = np.abs(gram / np.outer(norm, norm))
        np.fill_diagonal(link, 0.0)
        return np.lexsort((-link.max(axis=1), group))

    def run(self, threshold: float, margin: float) -> bool:
        """Try all supports; False where the time or the room for what is set apart is used up."""
        control = self.search.control
        given_up = threading.Event()

        def work(fixed: Int) -> tuple[int, float, Int, Int] | None:
            if given_up.is_set() or control.remaining() <= 0:
                return None
            found = np.empty((FOUND, len(self.begin)), np.int64)
            apart = np.empty((APART, len(self.begin)), np.int64)
            lowest = np.ones(1)
            visited, many, dependent = independent_sets(
                self.gram, self.b, self.begin, self.last, fixed, threshold, margin, LEAST, found, apart, lowest
            )
            if visited < 0:
                given_up.set()
                return None
            return visited, float(lowest[0]), found[:many].copy(), apart[:dependent].copy()

        with ThreadPoolExecutor(max_workers=max(control.threads, 1)) as pool:
            # Threads only return what they found: sums and minima are taken here.
            for part in pool.map(work, self._prefixes()):
                if part is None:
                    given_up.set()
                    continue
                self.visited += part[0]
                self.lowest = min(self.lowest, part[1])
                self.found += [row[row >= 0] for row in part[2]]
                self.apart.update(tuple(row[row >= 0].tolist()) for row in part[3])
                if len(self.apart) > MOST_APART:
                    given_up.set()
        return not given_up.is_set()

    def _prefixes(self) -> list[Int]:
        """Positions of the first inputs of a set, for every one of their choices."""
        prefixes: list[list[int]] = [[]]
        for q in range(min(SPLIT, len(self.begin) - 1)):
            prefixes = [
                [*p, t]
                for p in prefixes
                for t in range(max(int(self.begin[q]), p[-1] + 1 if p else 0), int(self.last[q]) + 1)
            ]
        return [np.array(p, dtype=np.int64) for p in prefixes]

    def hidden(self) -> float:
        """What the inputs that were passed over can save; infinite where that is unknown."""
        if not self.apart:
            return 0.0
        if not exact.is_positive_semidefinite(self.search.task.gram):
            return math.inf
        circuits = [(self.order[list(row[:-1])].tolist(), int(self.order[row[-1]])) for row in sorted(self.apart)]
        ambiguous = [c for c in circuits if not is_dependent(self.exact.rows, *c)]
        if not ambiguous:
            return 0.0
        share = share_below(self.search.task.gram)
        if share is None:
            return math.inf
        search = self.search
        size = float(search.norm @ np.abs(search.target))
        size += math.sqrt(len(self.begin) * search.energy * 3.0 / self.lowest)
        try:
            steepest = max(slope(search.gram, *c) for c in ambiguous) * size
        except np.linalg.LinAlgError:
            return math.inf
        return len(self.begin) * steepest**2 / share * (1.0 + 1e-9)


def margin_of(search: SubsetSearch, size: int) -> float:
    """What rounding can hide of the saving of a set of so many inputs, times the product of its relative pivots."""
    energy = max(search.energy, 0.0)
    loss = 15.0 * size * gamma(3 * size + 8) * energy
    spread = (search.size + 8) * _UNIT_LONG * float(search.norm @ np.abs(search.target)) + UNIT * math.sqrt(energy)
    off = 2.0 * math.sqrt(size) * spread
    return 2.0 * (loss + 3.5 * math.sqrt(energy) * off + 3.0 * off**2) + 64.0 * UNIT * energy


def search_supports(task: Task[Support], control: Control) -> RawSolve | None:
    """Solve one channel by trying every support; None where that proves nothing. See `applies`."""
    search = SubsetSearch(task, control)
    search.first_incumbents()
    every = SupportSearch(search)
    start = np.flatnonzero(search.incumbent.weights).tolist()
    every.exact.error_on(start)
    weights = every.exact.weights()
    upper = exact.quadratic_form(task.gram, task.target, weights)
    if upper <= OPTIMAL_ABSOLUTE * task.energy:
        end = TracePoint(control.elapsed(), 1, task.constant, float(upper) + task.constant)
        return RawSolve(weights, Status.OPTIMAL, nodes=1, trace=(end,))
    cut = float(upper) * (1.0 - 0.4 * OPTIMAL_RELATIVE)
    threshold = search.low_energy - cut * search.factor**2
    if not cut > 0.0 or not every.run(threshold, margin_of(search, len(every.begin))):
        return None
    hidden = every.hidden() * search.factor**-2
    least = Fraction(cut)
    for row in every.found:
        least = min(least, every.exact.error_on(every.order[row].tolist()))
    if not hidden < float(least):
        return None
    better = every.exact.weights()
    if exact.quadratic_form(task.gram, task.target, better) < upper:
        weights = better
    value = float(exact.quadratic_form(task.gram, task.target, weights)) + task.constant
    lower = exact.float_below(least)
    point = TracePoint(control.elapsed(), every.visited, min(lower + task.constant, value), value)
    return RawSolve(
        weights=weights,
        termination=Status.GAP_REACHED if control.gap > 0 else Status.OPTIMAL,
        proof=SearchProof(lower, hidden * (1.0 + 1e-9)),
        nodes=every.visited,
        trace=(point,),
    )
