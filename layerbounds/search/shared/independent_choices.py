"""All choices of units by what they save, singular Gram matrices included (docs/shared-sets.md)."""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from layerbounds.arrays import Bool, Int
from layerbounds.kernels import exact
from layerbounds.kernels.factorization import UNIT, gamma
from layerbounds.kernels.shared.elimination import COUNTS, PASSED
from layerbounds.kernels.shared.enumeration import every_set
from layerbounds.proofs import Control
from layerbounds.search.pruning.circuits import is_dependent, share_below, slope
from layerbounds.search.shared.selection import Selection

#: Inputs whose relative pivots are not above this are passed over.
LEAST = 1e-10
#: Sets that come near the cut, and circuits: at a time, and of the latter in all.
FOUND, APART, MOST_APART = 1024, 4096, 5_000
#: Inputs up to which the dependence of an input is decided exactly.
MOST_EXACT = 64

Flags = npt.NDArray[np.int8]


@dataclass(eq=False)
class Enumerated:
    """What was met.

    Attributes
    ----------
    found : list of ndarray of bool
        Choices that may lie below the cut, flags of the units.
    circuits : set of tuple of int
        Inputs that count, then one that was passed over after them.
    lowest : float
        The smallest product of relative pivots.
    visited : int
    """

    found: list[Bool] = field(default_factory=list)
    circuits: set[tuple[int, ...]] = field(default_factory=set)
    lowest: float = 1.0
    visited: int = 0


class ChoiceEnumeration:
    """The matrices of a selection, with an addition to M that makes up for rounding.

    Parameters
    ----------
    selection : Selection
    """

    def __init__(self, selection: Selection) -> None:
        self.selection = selection
        structure, gram = selection.structure, selection.gram
        norm = np.sqrt(np.diag(gram))
        link = np.abs(gram / norm[:, None] / norm[None, :])
        np.fill_diagonal(link, 0.0)
        strength = np.zeros(len(structure.group))
        np.maximum.at(strength, structure.unit, link.max(axis=1, initial=0.0))
        # Group by group, strongly correlated units first: dependence shows early on a path.
        self.units = np.lexsort((-strength, structure.group))
        members = [selection.members[g] for g in self.units]
        self.order = np.concatenate(members)
        self.edge = np.concatenate([[0], np.cumsum([len(m) for m in members])]).astype(np.int64)
        exponents = exact.balance(gram)[self.order]
        self.gram = np.ldexp(gram[np.ix_(self.order, self.order)], exponents[:, None] + exponents[None, :])
        b = np.ldexp(selection.b[self.order], exponents[:, None])
        counts = np.bincount(structure.group, minlength=len(structure.capacity))
        first = np.cumsum(counts) - counts
        slots = [(first[g], j, counts[g], c) for g, c in enumerate(structure.capacity.tolist()) for j in range(c)]
        self.begin = np.array([f + j for f, j, _, _ in slots], dtype=np.int64)
        self.last = np.array([f + m - c + j for f, j, m, c in slots], dtype=np.int64)
        diagonal = np.diag(self.gram)
        #: An energy that bounds ‖b_i‖²/h_ii, too, though H is rounded.
        self.energy = max(selection.energy, float(np.max(np.sum(b**2, axis=1) / diagonal)) * (1.0 + 1e-9))
        width = np.sort(np.diff(self.edge))[::-1]
        size = int(width[: len(self.begin)].sum())
        self.size = size
        many = b.shape[1]
        needed = UNIT * self.energy * size * (32 * (size + 2) + 3 * (3 * size + 8) + 2 * (many + 16))
        self.addition = 2.0 * (needed + size * selection.rounding)
        self.moments = b @ b.T + np.diag(self.addition * diagonal)

    def threshold(self, cut: float) -> float:
        """What a choice whose error is below a cut saves at least, as computed."""
        selection = self.selection
        return (selection.energy - cut - 2.0 * selection.rounding) - 4.0 * gamma(self.size + 16) * self.energy

    def run(self, cut: float, control: Control) -> Enumerated | None:
        """Try all choices; None where the time or the room for what is met is used up."""
        given_up = threading.Event()
        threshold = self.threshold(cut)
        floor = LEAST * np.diag(self.gram)
        n, size = len(self.gram), len(self.begin)

        def work(fixed: Int) -> tuple[int, float, float, Int, Flags] | None:
            if given_up.is_set() or control.remaining() <= 0:
                return None
            found, apart = np.empty((FOUND, size), np.int64), np.empty((APART, n), np.int8)
            peak, lowest = np.zeros(n), np.ones(1)
            visited, many, circuits = every_set(
                self.gram, self.moments, self.edge, self.begin, self.last, fixed, floor, threshold, found, apart, peak,
                lowest,
            )  # fmt: skip
            if visited < 0:
                given_up.set()
                return None
            highest = float(np.max(peak / np.diag(self.gram)))
            return visited, float(lowest[0]), highest, found[:many].copy(), apart[:circuits].copy()

        result, highest = Enumerated(), 0.0
        with ThreadPoolExecutor(max_workers=max(control.threads, 1)) as pool:
            # Threads only return what they found: sums and minima are taken here.
            for part in pool.map(work, self._prefixes()):
                if part is None:
                    given_up.set()
                    continue
                result.visited += part[0]
                result.lowest, highest = min(result.lowest, part[1]), max(highest, part[2])
                result.found += [self._flags(row) for row in part[3]]
                result.circuits.update(self._circuit(row) for row in part[4])
                if len(result.circuits) > MOST_APART or len(result.found) > FOUND:
                    given_up.set()
        # The addition to M covers moments up to twice the energy.
        return None if given_up.is_set() or highest > 2.0 * self.energy else result

    def _prefixes(self) -> list[Int]:
        """The first unit of a set, for every choice of it."""
        if len(self.begin) < 2:
            return [np.zeros(0, dtype=np.int64)]
        return [np.array([t], dtype=np.int64) for t in range(int(self.begin[0]), int(self.last[0]) + 1)]

    def _flags(self, row: Int) -> Bool:
        kept = np.zeros(len(self.units), dtype=bool)
        kept[self.units[row]] = True
        return kept

    def _circuit(self, row: Flags) -> tuple[int, ...]:
        return (*self.order[row == COUNTS].tolist(), int(self.order[row == PASSED][0]))

    def hidden(self, result: Enumerated) -> float:
        """What the inputs that were passed over can save; infinite where that is unknown."""
        if not result.circuits:
            return 0.0
        selection, gram = self.selection, self.selection.gram
        if len(gram) > MOST_EXACT or not exact.is_positive_semidefinite(gram):
            return math.inf
        rows, _ = exact.balanced_integers(gram, exact.balance(gram))
        ambiguous = [c for c in sorted(result.circuits) if not is_dependent(rows, c[:-1], c[-1])]
        if not ambiguous:
            return 0.0
        share = share_below(gram)
        if share is None:
            return math.inf
        norm = np.sqrt(np.diag(gram))
        size = math.sqrt(float(np.sum((np.abs(selection.rows) @ norm) ** 2)))
        size += math.sqrt(self.size * self.energy * 3.0 / result.lowest)
        try:
            steepest = max(slope(gram, c[:-1], c[-1]) for c in ambiguous) * size
        except np.linalg.LinAlgError:
            return math.inf
        return self.size * steepest**2 / share * (1.0 + 1e-9)
