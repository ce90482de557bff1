"""First choices of units: greedy selections, best exchanges from them, and kicks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from layerbounds.arrays import Bool, Float, Int
from layerbounds.kernels.factorization import cholesky, symmetric_inverse
from layerbounds.problems.patterns import Structure
from layerbounds.proofs import Control
from layerbounds.search.shared.enumeration import seconds_of
from layerbounds.search.shared.exchanges import Exchanges
from layerbounds.search.shared.selection import Selection

#: A pivot below this is taken for linear dependence; diagonals are 1.
DEPENDENT = 1e-9
#: Shares of the diagonal that are added to a singular matrix.
SHIFTS = (0.0, 1e-12, 1e-9, 1e-6)


@dataclass(frozen=True, eq=False)
class UnitSearch:
    """Matrices of a choice of units, unit after unit, scaled to a unit diagonal.

    Attributes
    ----------
    gram, squares, moments : ndarray of shape (n, n)
        H, WᵀW and HWᵀWH.
    edge : ndarray of int64, shape (units + 1,)
    order : ndarray of int64, shape (n,)
        The inputs.
    structure : Structure
    """

    gram: Float
    squares: Float
    moments: Float
    edge: Int
    order: Int
    structure: Structure

    def slack(self, kept: Bool) -> Int:
        """How many more units each group may keep."""
        used = np.bincount(self.structure.group[kept], minlength=len(self.structure.capacity))
        return np.asarray(self.structure.capacity - used)

    def forward(self) -> Bool:
        """Keep the unit that saves most beside those kept, one after the other."""
        kept = np.zeros(len(self.structure.group), dtype=bool)
        return self._moves(kept, self.gram.copy(), self.moments.copy(), 0.0).fill()

    def backward(self) -> Bool:
        """Drop the unit that costs least beside those kept, one after the other (structured OBS)."""
        kept, inverse = np.ones(len(self.structure.group), dtype=bool), self._inverse()
        return self._moves(kept, -inverse, inverse @ self.moments @ inverse, 0.0).fill()

    def backward_in_parts(self, parts: int) -> Bool:
        """The same in a few parts, each of units that cost little on their own: for many inputs."""
        structure, width = self.structure, np.diff(self.edge)
        kept = np.ones(len(structure.group), dtype=bool)
        for part in range(parts):
            inside = np.flatnonzero(np.repeat(kept, width))
            inverse = self._inverse(inside)
            # What the refitted weights of these inputs are to those of all.
            moments = inverse @ self.moments[np.ix_(inside, inside)] @ inverse
            cost = np.full(len(kept), np.inf)
            at = 0
            for unit in np.flatnonzero(kept):
                rows = slice(at, at + width[unit])
                cost[unit] = float(np.trace(np.linalg.solve(inverse[rows, rows], moments[rows, rows])))
                at += width[unit]
            excess = -self.slack(kept)
            for group, many in enumerate(excess.tolist()):
                units = np.flatnonzero(structure.group == group)
                count = -(-max(many, 0) // (parts - part))
                kept[units[np.argsort(cost[units], kind="stable")[:count]]] = False
        return kept

    def _inverse(self, inputs: Int | None = None) -> Float:
        """Of the matrix or a part of it, with a little added to the diagonal where it is singular."""
        matrix = self.gram if inputs is None else np.ascontiguousarray(self.gram[np.ix_(inputs, inputs)])
        for shift in SHIFTS:
            factor = cholesky(matrix + shift * np.eye(len(matrix)) if shift else matrix)
            if factor is not None:
                break
        else:
            return np.eye(len(matrix))
        return symmetric_inverse(factor)

    def improved(self, kept: Bool, least: float, kicks: int, random: npt.NDArray[np.uint64]) -> Bool:
        """Best exchanges of single units from a choice, then kicks.

        Parameters
        ----------
        kept : ndarray of bool, shape (units,)
        least : float
            What an exchange has to save.
        kicks : int
        random : ndarray of uint64, shape (1,)
            State of the random generator.
        """
        swept = self._swept(kept)
        if swept is None:
            return kept
        return self._moves(kept, *swept, least).improve(kicks, random)

    def _moves(self, kept: Bool, a: Float, m: Float, least: float) -> Exchanges:
        floor = np.full(len(self.gram), DEPENDENT)
        return Exchanges(a, m, self.edge, self.structure.group, kept, self.slack(kept), floor, least)

    def _swept(self, kept: Bool) -> tuple[Float, Float] | None:
        """A and M with the kept units swept in; None where these are dependent."""
        flags = np.repeat(kept, np.diff(self.edge))
        inside, outside = np.flatnonzero(flags), np.flatnonzero(~flags)
        factor = cholesky(np.ascontiguousarray(self.gram[np.ix_(inside, inside)]))
        if factor is None or (len(inside) and float(np.min(np.diag(factor))) ** 2 < DEPENDENT):
            return None
        inverse = symmetric_inverse(factor)
        across = inverse @ self.gram[np.ix_(inside, outside)]
        a, change = np.empty_like(self.gram), np.zeros_like(self.gram)
        a[np.ix_(inside, inside)] = -inverse
        a[np.ix_(inside, outside)] = across
        a[np.ix_(outside, inside)] = across.T
        a[np.ix_(outside, outside)] = self.gram[np.ix_(outside, outside)] - self.gram[np.ix_(outside, inside)] @ across
        # X becomes CX.
        change[np.ix_(inside, inside)] = inverse
        change[np.ix_(outside, inside)] = -across.T
        change[outside, outside] = 1.0
        return a, change @ self.moments @ change.T


def make_unit_search(selection: Selection) -> UnitSearch:
    """Order and scale the matrices of a selection."""
    order = np.concatenate(selection.members)
    edge = np.concatenate([[0], np.cumsum([len(m) for m in selection.members])]).astype(np.int64)
    norm = np.sqrt(np.diag(selection.gram))[order]
    gram = np.ascontiguousarray(selection.gram[np.ix_(order, order)] / norm[:, None] / norm[None, :])
    rows = selection.rows[:, order] * norm
    b = selection.b[order] / norm[:, None]
    return UnitSearch(gram, rows.T @ rows, b @ b.T, edge, order, selection.structure)


#: Seconds per cubed number of inputs, about: a greedy selection, exchanges, and one part of a selection in parts.
GREEDY_CUBIC, DESCENT_CUBIC, PART_CUBIC = 1.2e-9, 1.2e-9, 1e-10
#: Seconds of making the matrices, for inputs squared times rows and inputs, and the share of the time that is left.
SETUP, SETUP_SHARE = 2e-10, 0.2
#: Shares of the time that is left, and what takes no longer than this is done in any case.
GREEDY_SHARE, DESCENT_SHARE, AT_ONCE = 0.15, 0.1, 0.2
#: Parts of a selection in parts; kicks at a time, how often they may be in vain, and their share of the time limit.
PARTS, KICKS, IDLE, KICKS_SHARE = 6, 8, 4, 0.03
#: Where trying all choices takes no longer than this, kicks do not pay.
FEW_SECONDS = 1.0


class FirstIncumbents:
    """Offers choices of units as far as the time allows.

    Parameters
    ----------
    selection : Selection
    control : Control
    """

    def __init__(self, selection: Selection, control: Control) -> None:
        self.selection, self.control = selection, control
        self.units = make_unit_search(selection)
        seed = np.random.SeedSequence([control.seed, selection.task.channel])
        self.random = np.array([seed.generate_state(1, np.uint64)[0] | 1])
        self.best: Bool | None = None
        self.value = math.inf

    def affords(self, cubic: float, share: float) -> bool:
        """Whether a share of the time that is left allows some seconds per cubed number of inputs.

        A node limit has to give the same result on every machine.
        """
        seconds = cubic * float(len(self.units.gram)) ** 3
        control = self.control
        return control.node_limit is not None or seconds <= max(share * control.remaining(), AT_ONCE)

    def offer(self, kept: Bool) -> None:
        """Improve a choice and offer it."""
        if self.affords(DESCENT_CUBIC, DESCENT_SHARE) and self.control.remaining() > 0:
            kept = self.units.improved(kept, 1e-9 * self.selection.energy, 0, self.random)
        value = self.selection.offer(kept)
        if value < self.value:
            self.value, self.best = value, kept

    def greedy(self) -> None:
        """Backward and forward selections."""
        units = self.units
        if self.affords(GREEDY_CUBIC, GREEDY_SHARE):
            self.offer(units.backward())
            if self.control.remaining() > 0:
                self.offer(units.forward())
            return
        parts = [p for p in (PARTS, 3, 1) if self.affords(p * PART_CUBIC, GREEDY_SHARE)]
        if parts:
            self.offer(units.backward_in_parts(parts[0]))

    def kick(self, rounds: int) -> None:
        """Kicks of the best choice, where exchanges are affordable."""
        control = self.control
        end = control.elapsed() + KICKS_SHARE * control.time_limit
        idle = 0
        for _ in range(rounds if self.affords(DESCENT_CUBIC, DESCENT_SHARE) else 0):
            if self.best is None or idle > IDLE or (control.node_limit is None and control.elapsed() >= end):
                break
            kept = self.units.improved(self.best, 1e-9 * self.selection.energy, KICKS, self.random)
            value = self.selection.offer(kept)
            idle += 1
            if value < (1.0 - 1e-9) * self.value:
                self.value, self.best, idle = value, kept, 0


def first_incumbents(selection: Selection, control: Control, rounds: int = 30) -> None:
    """Offer the units of most energy, a warm start, and greedy selections, each with exchanges; then kicks.

    Parameters
    ----------
    selection : Selection
    control : Control
    rounds : int
        Of kicks, at most; none where all choices are soon tried.
    """
    task, structure = selection.task, selection.structure
    energy = np.bincount(
        structure.unit, weights=np.sum(selection.rows**2, axis=0) * np.diag(selection.gram),
        minlength=len(structure.group),
    )  # fmt: skip
    starts = [structure.keep_largest(energy)]
    if task.warm_start is not None:
        starts.insert(0, np.abs(np.atleast_2d(task.warm_start)).max(axis=0) > 0)
    choices = [structure.kept_units(start[None].astype(np.float64))[0] for start in starts]
    for kept in choices:
        # First as they are: there may be no time for more.
        selection.offer(kept)
    n, rows = len(selection.gram), len(selection.rows)
    wanted = SETUP * float(n) ** 2 * (rows + n)
    if control.node_limit is None and wanted > max(SETUP_SHARE * control.remaining(), AT_ONCE):
        return
    if control.remaining() <= 0 or not np.any(structure.capacity):
        return
    search = FirstIncumbents(selection, control)
    search.greedy()
    if task.warm_start is not None or search.best is None:
        search.offer(choices[0])
    if seconds_of(selection) > FEW_SECONDS:
        search.kick(rounds)
