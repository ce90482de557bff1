"""A stronger root bound of masks that rows share: every choice in clusters of a few units (docs/shared-bounds.md)."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import scipy.linalg

from layerbounds.arrays import Float, Int
from layerbounds.bounds.minorants.blocks import BlockMinorant, improve_blocks, make_minorant
from layerbounds.bounds.minorants.centre import Centre
from layerbounds.bounds.minorants.clusters import make_clusters
from layerbounds.bounds.pruning.dual import shared_bound
from layerbounds.bounds.pruning.savings import Block, best_of_blocks, lay_out
from layerbounds.kernels.factorization import cholesky
from layerbounds.problems.patterns import Structure
from layerbounds.proofs import Control, SharedDual
from layerbounds.search.shared.cluster_choices import Choices
from layerbounds.search.shared.selection import Selection

#: Clusters are for more units and fewer inputs than these.
FEW, CLUSTERED = 12, 800
#: Units of a cluster, and entries of the inverses for all choices in all clusters, at most.
MOST_UNITS, MOST_ENTRIES = 10, 1.5e6
#: Moves towards the centre and towards what the points ask for, first share of the way, least weight of a cluster.
CENTRE_MOVES, MOVES, SHARE, FLOOR = 6, 10, 0.3, 0.01
#: Improvements of the blocks, and the sweeps of each.
STEPS, SWEEPS = 30, 3
#: Barrier weights: at first, factor and least, of the moves and of the improvements.
MOVE_MU, STEP_MU = (1.0, 0.9, 0.02), (0.03, 0.9, 0.006)
#: Width of the smoothed maximum relative to the mean saving of a kept unit: at first, factor and least.
TAU = (0.3, 0.85, 0.02)
#: Rounds of the weights at first, and between two steps.
FIRST_ROUNDS, ROUNDS = 30, 6
#: Gain, relative to the gap, that counts as none, and after how many of those the improvements end.
PROGRESS, PATIENCE = 5e-3, 5
#: Steps below the best bound before the ascent goes back to that.
LOSSES = 4


@dataclass(frozen=True, eq=False)
class Relaxed:
    """The best round of a minorant: its value as computed, point, system, logits, and the clusters' supergradients."""

    value: float
    point: Float
    system: Float
    logit: Float
    gradient: Float


class ClusterRoot:
    """Weights of the choices and a minorant of clusters, in turns.

    Parameters
    ----------
    selection : Selection
    control : Control
    blocks : list of Block
        The clusters.
    """

    def __init__(self, selection: Selection, control: Control, blocks: list[Block]) -> None:
        self.selection, self.control, self.blocks = selection, control, blocks
        self.order = np.concatenate([b.members for b in blocks])
        size = np.array([len(b.members) for b in blocks])
        first = np.concatenate([[0], np.cumsum(size)])
        self.members = [np.arange(a, b) for a, b in pairwise(first)]
        self.gram = np.ascontiguousarray(selection.gram[np.ix_(self.order, self.order)])
        self.b = np.ascontiguousarray(selection.b[self.order])
        self.centre = Centre(self.gram, np.repeat(np.arange(len(blocks)), size))
        self.choices = Choices(blocks, selection.structure.capacity)
        self.tau = TAU[0]
        self.best: tuple[Relaxed, Float] | None = None

    def run(self) -> None:
        """Improve weights and minorant in turns while that helps and time allows."""
        for _ in range(CENTRE_MOVES):
            if not self.centre.usable or not self.centre.move():
                break
        if self.centre.usable:
            self.move()
            self.improve()

    def _affords(self, began: float) -> bool:
        return self.control.remaining() > self.control.elapsed() - began

    def move(self) -> None:
        """Steps of all blocks at once, weighted by what each cluster has to gain."""
        self.centre.share = SHARE
        began, mu = self.control.elapsed(), MOVE_MU[0]
        relaxed = self.relax(self.centre.blocks, FIRST_ROUNDS)
        for _ in range(MOVES):
            if relaxed is None or not self._affords(began):
                return
            began = self.control.elapsed()
            weight = np.sum(relaxed.gradient * self.centre.blocks, axis=(1, 2)) / self.choices.size
            weight /= max(float(weight.mean()), np.finfo(np.float64).tiny)
            if not self.centre.move(np.maximum(weight, FLOOR) / mu) and not self.centre.retreat():
                return
            mu, self.tau = max(MOVE_MU[1] * mu, MOVE_MU[2]), max(TAU[1] * self.tau, TAU[2])
            relaxed = self.relax(self.centre.blocks, ROUNDS)

    def improve(self) -> None:
        """Sweeps over the blocks, each with the whole supergradient; from the best ones again after a loss."""
        minorant, mu, stalled, lost = self._proven(), STEP_MU[0], 0, 0
        relaxed = None if self.best is None else self.best[0]
        for _ in range(STEPS):
            if minorant is None or relaxed is None or stalled >= PATIENCE:
                return
            began, before = self.control.elapsed(), self._value
            gradients = [relaxed.gradient[k, : len(m), : len(m)] for k, m in enumerate(self.members)]
            improved = improve_blocks(self.gram, self.members, minorant, gradients, mu, SWEEPS)
            found = None if improved is None else self.relax(self.choices.padded(improved.blocks), ROUNDS)
            if not self._affords(began):
                return
            gap = self.selection.incumbent.value - self._value
            stalled = 0 if self._value - before > PROGRESS * gap else stalled + 1
            lost = 0 if found is not None and found.value >= before else lost + 1
            if found is None or self.best is None or lost >= LOSSES:
                # The ascent overshot.
                mu, self.tau, lost = min(3.0 * mu, STEP_MU[0]), min(2.0 * self.tau, TAU[0]), 0
                minorant, relaxed = self._proven(), None if self.best is None else self.best[0]
                if relaxed is not None:
                    self.choices.logit = relaxed.logit
                continue
            minorant, relaxed = improved, found
            mu, self.tau = max(STEP_MU[1] * mu, STEP_MU[2]), max(TAU[1] * self.tau, TAU[2])

    def relax(self, blocks: Float, rounds: int) -> Relaxed | None:
        """Rounds of U = (H − B + K⁻¹)⁻¹HWᵀ, K = Σ w_A (B_AA)⁻¹, and the weights w; None where the first breaks down.

        With C = HWᵀ − (H − B)U = K⁻¹U a choice A saves tr(C_Aᵀ(B_AA)⁻¹C_A).
        """
        choices = self.choices
        inverses = choices.inverses(blocks)
        rest = self.gram - self._matrix(blocks)
        best: tuple[float, Float, Float, Float, Float, Float] | None = None
        last = -math.inf
        for done in range(rounds):
            if done and self.control.remaining() <= 0:
                break
            weight = choices.weights()
            back = choices.inverse_mean(weight, inverses)
            system = rest + self._matrix(back)
            factor = cholesky(system)
            if factor is None:
                break
            u = scipy.linalg.cho_solve((factor, True), self.b, check_finite=False)
            c = self.b - rest @ u
            inside = choices.gather(c, self.members)
            square = inside @ inside.transpose(0, 2, 1)
            saving = np.einsum("gsij,gij->gs", inverses, square)
            own = [saving[k, : len(b.sets)] for k, b in enumerate(self.blocks)]
            kept = float(best_of_blocks(self.selection.structure, self.blocks, own))
            value = self.selection.energy - float(np.sum(u * (rest @ u))) - kept
            choices.damp(value >= last)
            last = value
            if best is None or value > best[0]:
                best = value, u, system, weight, square, choices.logit.copy()
            choices.update(saving, weight, self.tau)
        if best is None:
            return None
        value, u, system, weight, square, logit = best
        found = Relaxed(value, u, system, logit, self._gradient(weight, inverses, square, u))
        if self.best is None or value > self.best[0].value:
            self.best = found, blocks
        return found

    def _gradient(self, weight: Float, inverses: Float, square: Float, u: Float) -> Float:
        """Σ w_A (t_A − U)(t_A − U)ᵀ of each cluster, t_A = (B_AA)⁻¹C_A.

        As Σ w_A t_A = KC = U it is Σ w_A t_A t_Aᵀ − UUᵀ.
        """
        inside = self.choices.gather(u, self.members)
        gradient = -inside @ inside.transpose(0, 2, 1)
        for s in range(inverses.shape[1]):
            gradient += weight[:, s, None, None] * (inverses[:, s] @ square @ inverses[:, s])
        return np.asarray(0.5 * (gradient + gradient.transpose(0, 2, 1)))

    def _matrix(self, blocks: Float) -> Float:
        matrix = np.zeros_like(self.gram)
        for block, m in zip(blocks, self.members, strict=True):
            matrix[m[0] : m[-1] + 1, m[0] : m[-1] + 1] = block[: len(m), : len(m)]
        return matrix

    @property
    def _value(self) -> float:
        return -math.inf if self.best is None else self.best[0].value

    def _proven(self) -> BlockMinorant | None:
        return None if self.best is None else make_minorant(self.gram, self.members, self._matrix(self.best[1]))

    def root(self) -> tuple[float, SharedDual] | None:
        """The best bound, proven for the rows of the search, and what certification derives it from."""
        minorant = self._proven()
        if minorant is None or self.best is None:
            return None
        selection, relaxed = self.selection, self.best[0]
        task, n = selection.task, len(self.gram)
        matrix, block = np.zeros_like(self.gram), np.empty(n, dtype=np.int64)
        matrix[np.ix_(self.order, self.order)] = minorant.matrix
        block[self.order] = np.repeat(np.arange(len(self.members)), self.choices.size)
        points = np.zeros_like(selection.rows)
        points[:, self.order] = relaxed.point.T
        rows = np.zeros(len(task.targets), dtype=np.int64)
        bound = shared_bound(
            selection.gram, selection.rows, None, selection.structure, points, block, matrix[None], rows[: len(points)]
        )
        if len(points) == len(rows):
            return bound, SharedDual(points / selection.factor, block, matrix[None], rows)
        own = np.zeros_like(task.targets)
        factor = cholesky(relaxed.system)
        if factor is not None:
            b = (task.gram @ task.targets.T)[self.order]
            own[:, self.order] = scipy.linalg.cho_solve((factor, True), b, check_finite=False).T
        # The rows of the search are others with the same WᵀW: that their least errors differ little is charged.
        return bound - 2.0 * selection.rounding, SharedDual(own, block, matrix[None], rows)


def clusters_of(gram: Float, structure: Structure) -> list[Block] | None:
    """Clusters of units with strong partial correlations and all their choices; None where that is too much.

    Of several groups, whole groups are put together where that is possible, and units of one group otherwise.
    """
    every = np.arange(len(gram))
    if np.any(structure.capacity == 0):
        return None
    if len(structure.capacity) > 1:
        group = structure.group[structure.unit]
        for many in range(MOST_UNITS, 0, -1):
            blocks = _laid_out(gram, structure, [every], group, many)
            if blocks is not None:
                return blocks
        groups = [np.flatnonzero(group == g) for g in range(len(structure.capacity))]
    else:
        groups = [every]
    for many in range(MOST_UNITS, 1, -1):
        blocks = _laid_out(gram, structure, groups, structure.unit, many)
        if blocks is not None:
            return blocks
    return None


def _laid_out(gram: Float, structure: Structure, apart: list[Int], part: Int, many: int) -> list[Block] | None:
    """Clusters of so many parts of the inputs, within each of the sets ``apart``; None where that is too much."""
    size = np.bincount(part)
    block = np.empty(len(gram), dtype=np.int64)
    count = 0
    for inputs in apart:
        # A partition into single inputs is written as one group of all.
        single = size[part[inputs]].max() == 1
        clusters = make_clusters(gram, many * int(size.max()), 0 * part if single else part, inputs)
        if clusters is None:
            return None
        for members in clusters:
            block[members] = count
            count += 1
    blocks = lay_out(structure, block, True)
    fits = blocks is not None and sum(len(b.sets) * len(b.members) ** 2 for b in blocks) <= MOST_ENTRIES
    return blocks if fits else None


def find_cluster_root(selection: Selection, control: Control) -> tuple[float, SharedDual] | None:
    """A bound of the whole problem from clusters of units, in the units of the search; None where there is none.

    Few units are tried one set after the other, and many inputs take too long.

    Parameters
    ----------
    selection : Selection
    control : Control
    """
    if len(selection.structure.group) <= FEW or len(selection.gram) > CLUSTERED or control.remaining() <= 0:
        return None
    blocks = clusters_of(selection.gram, selection.structure)
    if blocks is None:
        return None
    search = ClusterRoot(selection, control, blocks)
    # What was found before a block became singular is proven all the same.
    with suppress(np.linalg.LinAlgError):
        search.run()
    return search.root()
