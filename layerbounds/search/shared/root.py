"""The root bound of masks that rows share: points and a block-diagonal minorant in turns (docs/shared-bounds.md)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.linalg import lapack

from layerbounds.arrays import Float, Int
from layerbounds.bounds.minorants.blocks import BlockMinorant, improve_blocks, make_minorant
from layerbounds.bounds.minorants.centre import Centre
from layerbounds.bounds.pruning.dual import shared_bound
from layerbounds.cancellation import checkpoint
from layerbounds.kernels.factorization import cholesky, is_finite_factor
from layerbounds.kernels.shared import relaxation
from layerbounds.problems.patterns import Structure
from layerbounds.proofs import Control, SharedDual
from layerbounds.search.shared.selection import Selection
from layerbounds.search.shared.unit_blocks import UnitBlocks

#: Moves towards the centre from which all sets of rows start.
CENTRE_MOVES = 6
#: Moves towards what the points ask for: how many, barrier weight at first, its factor and its least, first share of
#: the way, and the least weight of a unit relative to the mean.
MOVES, MOVE_MU, MOVE_FACTOR, MOVE_LEAST, SHARE, FLOOR = 40, 1.0, 0.9, 0.02, 0.3, 0.01
#: Improvements of whole blocks: how many, barrier weight of the first and the last one, sweeps of each.
STEPS, MU_FIRST, MU_LAST, SWEEPS = 10, 0.05, 0.008, 3
#: Rounds of the weights of units: at first, between moves, between improvements.
FIRST_ROUNDS, MOVE_ROUNDS, ROUNDS = 20, 3, 4
#: A round that changes the bound by less than this share of it is the last one.
STALL = 1e-3
#: Power of the savings in a round's weights, least weight, and weight of directions at the ends of the range.
POWER, LEAST, SIDE = 0.75, 1e-3, 1e-3
#: Gain, relative to the gap, that counts as none, and after how many of those moves and improvements end.
PROGRESS, PATIENCE = (2e-3, 1e-2), (6, 2)
#: Blocks are improved up to so many inputs: above, moves gain more in the time.
WIDE = 1200
#: With more multiplications than this for a round, rows are replaced by so many random combinations of all of them
#: until the end: with them, too, W counts through WᵀW.
SKETCH_WORK, SKETCHED = 8e9, 256
#: Inputs of a factorization by which the time of the proof is estimated, which is made in any case where it takes less
#: than these seconds.
SAMPLE, AT_ONCE = 1024, 0.2


@dataclass(frozen=True, eq=False)
class Root:
    """A bound of the whole problem and what it came from.

    Attributes
    ----------
    bound : float
        Proven, in the units of the search; 0 where nothing is.
    dual : SharedDual or None
        What certification derives it from, for the rows of the task.
    minorant : UnitBlocks or None
        Blocks of the units, each with its inputs in their order.
    z, saving : ndarray of shape (units,)
        Weights of the units, and what keeping each one saves.
    """

    bound: float
    dual: SharedDual | None
    minorant: UnitBlocks | None
    z: Float
    saving: Float


@dataclass(eq=False)
class Relaxed:
    """The best of some rounds: its value as computed, point, weights and savings."""

    value: float
    point: Float
    z: Float
    saving: Float


@dataclass(frozen=True, eq=False)
class Layout:
    """Inputs by units and units by groups, as kernels take them.

    Attributes
    ----------
    units : ndarray of int64, shape (units,)
        Units of the pattern, in the order of the search.
    order : ndarray of int64, shape (n,)
        Inputs in that order.
    size, first : ndarray of int64
        Inputs of each unit, and where it begins, with the end.
    """

    units: Int
    order: Int
    size: Int
    first: Int

    @staticmethod
    def of(structure: Structure) -> Layout:
        """That of a pattern."""
        units = np.argsort(structure.group, kind="stable")
        place = np.argsort(units)
        order = np.argsort(place[structure.unit], kind="stable")
        size = np.bincount(structure.unit, minlength=len(units))[units].astype(np.int64)
        return Layout(units, order, size, np.concatenate([[0], np.cumsum(size)]).astype(np.int64))

    def by_unit(self, values: Float) -> Float:
        """Numbers of the search's units in the order of the pattern."""
        result = np.empty_like(values)
        result[self.units] = values
        return result


def prepare_root(gram: Float, structure: Structure) -> Centre | None:
    """The minorant from which all sets of rows with one Gram matrix and pattern start; None for a singular matrix."""
    layout = Layout.of(structure)
    unit = np.repeat(np.arange(len(layout.size)), layout.size)
    centre = Centre(np.ascontiguousarray(gram[np.ix_(layout.order, layout.order)]), unit)
    try:
        for _ in range(CENTRE_MOVES):
            checkpoint()
            if not centre.usable or not centre.move():
                break
    except np.linalg.LinAlgError:
        return None
    return centre if centre.usable else None


class RootSearch:
    """Alternation of weights and minorant.

    Parameters
    ----------
    selection : Selection
    control : Control
    centre : Centre
        What `prepare_root` found.
    """

    def __init__(self, selection: Selection, control: Control, centre: Centre) -> None:
        self.selection, self.control = selection, control
        self.centre = centre.fork()
        self.centre.share = SHARE
        self.layout = Layout.of(selection.structure)
        self.group = selection.structure.group[self.layout.units]
        self.first, self.size = self.layout.first, self.layout.size
        self.members = [np.arange(a, b) for a, b in zip(self.first[:-1], self.first[1:], strict=True)]
        self.every = np.arange(len(self.size))
        self.gram = centre.gram
        self.b, self.energy = np.ascontiguousarray(selection.b[self.layout.order]), selection.energy
        self.sketched = self.gram.size * self.b.shape[1] > SKETCH_WORK and self.b.shape[1] > SKETCHED
        if self.sketched:
            mix = np.random.default_rng(control.seed).normal(size=(SKETCHED, self.b.shape[1])) / math.sqrt(SKETCHED)
            self.b = np.ascontiguousarray(self.b @ mix.T)
            self.energy = float(np.sum((mix @ selection.rows)[:, self.layout.order].T * self.b))
        self.room = selection.structure.capacity
        self.best: tuple[Relaxed, Float] | None = None
        self._work = np.empty_like(self.gram)
        self._second = 0.0
        if len(self.gram) > WIDE:
            sample = np.ascontiguousarray(self.gram[:SAMPLE, :SAMPLE])
            began = control.elapsed()
            cholesky(sample)
            self._second = 3.0 * (control.elapsed() - began) / len(sample) ** 3
        count = np.bincount(self.group, minlength=len(self.room))
        #: Weights of the units, which fill the capacities evenly at first.
        self.z = np.clip((self.room / np.maximum(count, 1))[self.group], LEAST, 1.0)

    def factor(self, block: Float, z: Float) -> Float | None:
        """Cholesky factor of H + B(1/z − 1), transposed; None where it breaks down."""
        relaxation.penalised(self.gram, self.first, self.every, block, z, self._work)
        factor, info = lapack.dpotrf(self._work.T, lower=0, clean=0, overwrite_a=1)
        return factor if info == 0 and is_finite_factor(factor) else None

    def relax(self, block: Float, rounds: int) -> Relaxed | None:
        """Rounds U = (H + B(1/z − 1))⁻¹ HWᵀ, z ← min(1, θ z s^¾); None where the first one breaks down.

        What is best so far is kept with its blocks.
        """
        best: Relaxed | None = None
        z, energy, scratch = self.z.copy(), np.zeros(len(self.z)), np.empty(len(self.z))
        edge, last = np.empty((len(self.room), 2)), math.inf
        for done in range(rounds):
            if done and self.control.remaining() <= 0:
                break
            factor = self.factor(block, z)
            if factor is None:
                break
            u = np.ascontiguousarray(lapack.dpotrs(factor, self.b, lower=0)[0])
            relaxation.energies(u, self.first, self.every, block, energy)
            saving = energy / (z * z)
            kept = relaxation.best_sum(saving, self.group, self.room, scratch, edge)
            value = self.energy - float(np.sum(u * self.b)) + float(np.sum(energy / z)) - kept
            if best is None or value > best.value:
                best = Relaxed(value, u, z.copy(), saving)
            if abs(value - last) <= STALL * abs(value):
                break
            last = value
            z *= np.maximum(saving, 1e-300) ** POWER
            relaxation.rescale(z, self.group, self.room, scratch)
        if best is not None:
            self.z = z
            if self.best is None or best.value > self.best[0].value:
                self.best = best, block
        return best

    def run(self) -> Root:
        """Improve points and minorant in turns while that helps and time allows."""
        if self.control.remaining() < self._ending() > AT_ONCE:
            return self._root()
        self.move()
        if 1 < len(self.gram) <= WIDE and self.size.max() > 1:
            self.improve()
        return self._root()

    def _affords(self, began: float) -> bool:
        """Whether another step that takes as long as the last one, and the proof, would end in time."""
        return self.control.remaining() > self.control.elapsed() - began + self._ending()

    def _ending(self) -> float:
        """About how many seconds the proof takes: two factorizations, and two products with all rows."""
        n, rows = len(self.gram), len(self.selection.rows)
        return self._second * (2.0 / 3.0 * n**3 + 4.0 * n**2 * rows)

    def move(self) -> None:
        """Steps of all blocks at once, weighted by what each unit has to gain."""
        began = self.control.elapsed()
        relaxed = self.relax(self.centre.blocks, FIRST_ROUNDS)
        mu, stalled = MOVE_MU, 0
        for _ in range(MOVES):
            if relaxed is None or stalled >= PATIENCE[0] or not self._affords(began):
                return
            began, before = self.control.elapsed(), self._value
            weight = (1.0 / relaxed.z - 1.0) * relaxed.saving * relaxed.z**2
            weight /= max(float(weight.mean()), np.finfo(np.float64).tiny)
            if not self.centre.move(np.maximum(weight, FLOOR) / mu) and not self.centre.retreat():
                return
            mu = max(MOVE_FACTOR * mu, MOVE_LEAST)
            relaxed = self.relax(self.centre.blocks, MOVE_ROUNDS)
            stalled = 0 if self._gained(before, PROGRESS[0]) else stalled + 1

    def improve(self) -> None:
        """Sweeps over the blocks, each with the whole supergradient."""
        minorant, stalled = self._proven(), 0
        if self.best is None:
            return
        relaxed = self.best[0]
        for step in range(STEPS):
            if minorant is None or stalled >= PATIENCE[1]:
                return
            began, before = self.control.elapsed(), self._value
            weight = 1.0 / np.clip(relaxed.z, LEAST, 1.0) - 1.0 + SIDE
            gradients = [w * (relaxed.point[m] @ relaxed.point[m].T) for w, m in zip(weight, self.members, strict=True)]
            mu = MU_FIRST * (MU_LAST / MU_FIRST) ** (step / (STEPS - 1))
            minorant = improve_blocks(self.gram, self.members, minorant, gradients, mu, SWEEPS)
            blocks = None if minorant is None else UnitBlocks.pack(minorant, self.size)
            found = None if blocks is None else self.relax(blocks.block, ROUNDS)
            if found is None or not self._affords(began):
                return
            relaxed = found
            stalled = 0 if self._gained(before, PROGRESS[1]) else stalled + 1

    def _gained(self, before: float, share: float) -> bool:
        """Whether the bound has closed that share of the gap."""
        upper = self.selection.incumbent.value * self.energy / self.selection.energy
        return self._value - before > share * (upper - self._value)

    @property
    def _value(self) -> float:
        return -math.inf if self.best is None else self.best[0].value

    def _proven(self) -> BlockMinorant | None:
        """The best minorant so far, proven."""
        if self.best is None:
            return None
        matrix = np.zeros_like(self.gram)
        for block, m in zip(self.best[1], self.members, strict=True):
            matrix[m[0] : m[-1] + 1, m[0] : m[-1] + 1] = block[: len(m), : len(m)]
        return make_minorant(self.gram, self.members, matrix)

    def _root(self) -> Root:
        """The best bound, proven for the rows of the search."""
        if self.sketched and self.best is not None:
            blocks = self.best[1]
            self.z, self.best = self.best[0].z, None
            self.b, self.energy = np.ascontiguousarray(self.selection.b[self.layout.order]), self.selection.energy
            self.relax(blocks, MOVE_ROUNDS)
        minorant = self._proven()
        packed = None if minorant is None else UnitBlocks.pack(minorant, self.size)
        if minorant is None or packed is None or self.best is None:
            return Root(0.0, None, None, self.layout.by_unit(self.z), np.zeros(len(self.z)))
        relaxed, selection, order = self.best[0], self.selection, self.layout.order
        task, structure = selection.task, selection.structure
        matrix = np.zeros_like(self.gram)
        matrix[np.ix_(order, order)] = minorant.matrix
        points = np.empty_like(selection.rows)
        points[:, order] = relaxed.point.T
        rows = np.zeros(len(points), dtype=np.int64)
        bound = shared_bound(
            selection.gram, selection.rows, None, structure, points, structure.unit, matrix[None], rows
        )
        if len(selection.rows) == len(task.targets):
            points = points / selection.factor
        else:
            # The rows of the search are others with the same WᵀW: that their least errors differ little is charged.
            bound -= 2.0 * selection.rounding
            points = np.zeros_like(task.targets)
            factor = self.factor(self.best[1], relaxed.z)
            if factor is not None:
                points[:, order] = lapack.dpotrs(factor, (task.gram @ task.targets.T)[order], lower=0)[0].T
        dual = SharedDual(points, structure.unit, matrix[None], np.zeros(len(points), dtype=np.int64))
        back = np.argsort(self.layout.units)
        proven = UnitBlocks(packed.block[back], packed.inverse[back], packed.smallest[back])
        by_unit = self.layout.by_unit
        return Root(max(bound, 0.0), dual, proven, by_unit(relaxed.z), by_unit(relaxed.saving))


def find_root(selection: Selection, control: Control, centre: Centre | None = None) -> Root:
    """Bound of the whole problem from single units, with the minorant that nodes of a tree start from.

    Parameters
    ----------
    selection : Selection
    control : Control
    centre : Centre, optional
        What `prepare_root` found for the Gram matrix and the pattern.
    """
    centre = prepare_root(selection.gram, selection.structure) if centre is None else centre
    if centre is None:
        units = len(selection.structure.group)
        return Root(0.0, None, None, np.ones(units), np.zeros(units))
    return RootSearch(selection, control, centre).run()
