"""Pruning of whole blocks with refit, by branch and bound with the block dual; see docs/pruning-bounds.md."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.linalg

from layerbounds.arrays import Bool, Float
from layerbounds.bounds.minorants.blocks import BlockMinorant, improve_blocks, start_blocks
from layerbounds.kernels.factorization import UNIT, cholesky
from layerbounds.problems.support import Support
from layerbounds.problems.tasks import Task
from layerbounds.proofs import BlockDual, Control, RawSolve, SearchProof
from layerbounds.search.frontier import Forkable, Frontier, Incumbent
from layerbounds.search.pruning.refit import refit
from layerbounds.search.pruning.subset_search import AT_ONCE, FIRST, ROOT_CUBIC, set_bound

Flags = npt.NDArray[np.int8]

#: Relaxation rounds at a node and at the root; alternations of relaxation and block ascent at the root.
ROUNDS, ROOT_ROUNDS, ALTERNATIONS = 4, 8, 10
#: Kept blocks count with this fraction of their minorant.
KEPT = 1e-6


@dataclass(eq=False)
class BlockNode:
    """A subproblem over units: 1 kept, −1 dropped, 0 free; units that may still be kept; relaxed z."""

    status: Flags
    free: int
    z: Float


class BlockSearch(Forkable):
    """Expander for one group of units of several inputs, with refit.

    Parameters
    ----------
    task : Task
    control : Control
    """

    def __init__(self, task: Task[Support], control: Control) -> None:
        self.task, self.control = task, control
        self.gram, self.target = task.gram, task.target
        wide = task.gram.astype(np.longdouble) @ task.target.astype(np.longdouble)
        self.b = wide.astype(np.float64)
        self.energy = max(float(task.target.astype(np.longdouble) @ wide), 0.0)
        self.unit = task.allowed.structure.unit
        self.members = [np.flatnonzero(self.unit == g) for g in range(len(task.allowed.structure.group))]
        self.capacity = int(task.allowed.structure.capacity[0])
        norm = np.sqrt(np.diag(task.gram))
        skew = float(np.max(np.abs(task.gram) / np.outer(norm, norm)))
        self.norm = norm * np.sqrt(max(skew, 1.0)) * (1.0 + 1e-9)
        # Hw and wᵀHw are rounded too: the energy is lowered, and charges begin with a reach (docs/pruning-bounds.md).
        extended = float(np.finfo(np.longdouble).eps)
        size = float(self.norm @ np.abs(self.target))
        self.reach = 2.0 * extended / UNIT * size
        self.low_energy = self.energy - 2.0 * (len(self.b) + 8) * extended * size**2
        self.incumbent = Incumbent(self.energy, np.zeros(len(self.b)))
        self.excluded = math.inf
        self.minorant: BlockMinorant | None = None
        self.root_bound = 0.0
        self.root_dual: Float | None = None
        self.point = np.zeros(len(self.b))
        self.saving = np.zeros(len(self.members))

    def offer(self, kept: Bool) -> float:
        """Refit a choice of units; returns its error."""
        s = np.flatnonzero(kept[self.unit])
        weights = np.zeros(len(self.b))
        if len(s) == len(self.b):
            weights = self.target.copy()
        elif len(s):
            weights[s] = refit(self.gram, self.b, s)
        deviation = weights - self.target
        value = max(float(deviation @ (self.gram @ deviation)), 0.0)
        self.incumbent.offer(value, weights)
        return value

    def descend(self, kept: Bool) -> None:
        """Exchange one kept unit for the one that saves most in its place, while that helps and time allows."""
        kept = kept.copy()
        # A node limit has to give the same result on every machine.
        spared = (1.0 - FIRST) * self.control.time_limit if self.control.node_limit is None else 0.0
        while kept.sum() < self.capacity and self.control.remaining() > spared:
            kept[self._best_addition(kept)] = True
        value = self.offer(kept)
        improved = True
        while improved:
            improved = False
            for g in np.flatnonzero(kept):
                if self.control.remaining() <= spared:
                    return
                kept[g] = False
                other = self._best_addition(kept)
                kept[other] = True
                new = self.offer(kept) if other != g else value
                if new < value * (1.0 - 1e-9):
                    value, improved = new, True
                else:
                    kept[other] = False
                    kept[g] = True

    def _best_addition(self, kept: Bool) -> int:
        """The dropped unit whose addition saves most: rᵀQ⁻¹r with its residual and Schur complement."""
        s = np.flatnonzero(kept[self.unit])
        residual, schur = self.b, self.gram
        if len(s):
            factor = cholesky(np.ascontiguousarray(self.gram[np.ix_(s, s)]))
            if factor is None:
                return int(np.flatnonzero(~kept)[0])
            half = scipy.linalg.solve_triangular(factor, self.gram[s], lower=True, check_finite=False)
            inner = scipy.linalg.solve_triangular(factor, self.b[s], lower=True, check_finite=False)
            residual = self.b - half.T @ inner
        best, arg = -1.0, -1
        for g in np.flatnonzero(~kept):
            m = self.members[g]
            q = schur[np.ix_(m, m)] - (half[:, m].T @ half[:, m] if len(s) else 0.0)
            saving = float(residual[m] @ np.linalg.lstsq(q, residual[m], rcond=1e-9)[0])
            if saving > best or arg < 0:
                best, arg = saving, int(g)
        return arg

    def first_incumbents(self) -> None:
        """Magnitude, energy and the warm start, each with exchanges."""
        units = len(self.members)
        for score in (np.abs(self.target), np.abs(self.target) * np.sqrt(np.diag(self.gram))):
            total = np.bincount(self.unit, weights=score**2, minlength=units)
            kept = np.zeros(units, dtype=bool)
            kept[np.argsort(-total, kind="stable")[: self.capacity]] = True
            self.descend(kept)
        if self.task.warm_start is not None:
            self.descend(self.task.allowed.structure.kept_units(self.task.warm_start[None])[0])

    def root(self) -> BlockNode:
        """The whole problem, with a block-diagonal minorant that was improved for it."""
        units = len(self.members)
        node = BlockNode(np.zeros(units, dtype=np.int8), self.capacity, np.full(units, self.capacity / units))
        self._settle(node)
        first = ROOT_CUBIC * len(self.b) ** 3
        late = first > AT_ONCE and self.control.remaining() <= first and self.control.node_limit is None
        minorant = None if late else start_blocks(self.gram, self.members)
        best = minorant
        began, spent = self.control.elapsed(), 0.0
        for step in range(ALTERNATIONS + 1 if minorant is not None and np.any(node.status == 0) else 0):
            assert minorant is not None
            self.minorant = minorant
            value = self.relax(node, np.inf, ROOT_ROUNDS)
            if value > self.root_bound:
                self.root_bound, best, self.root_dual = value, minorant, self.point.copy()
            now = self.control.elapsed()
            began, spent = now, now - began
            # Another step would take as long as this one.
            if step == ALTERNATIONS or self.control.remaining() <= (spent if spent > AT_ONCE else 0.0):
                break
            z = np.clip(node.z, 1e-3, 1.0)
            spread = [
                (1.0 / z[g] - 1.0 + 1e-3) * np.outer(self.point[m], self.point[m]) for g, m in enumerate(self.members)
            ]
            improved = improve_blocks(self.gram, self.members, minorant, spread, 0.3 if step < 4 else 0.05)
            if improved is None:
                break
            minorant = improved
        self.minorant = best
        return node

    def relax(self, node: BlockNode, cut: float, rounds: int) -> float:
        """Proven bound of a node: z ← min(1, θ z s^¾), v = (H + B(1/z − 1))⁻¹ b."""
        minorant = self.minorant
        if minorant is None:
            return 0.0
        inside = node.status >= 0
        index = np.flatnonzero(inside[self.unit])
        z = np.where(node.status == 0, np.clip(node.z, 0.02, 1.0), 1.0)
        if not len(index):
            return self.low_energy * (1.0 - 8.0 * UNIT)
        block = np.ascontiguousarray(self.gram[np.ix_(index, index)])
        penalty = minorant.matrix[np.ix_(index, index)]
        best = -np.inf
        for done in range(rounds):
            if done and self.control.remaining() <= 0:
                break
            factor = cholesky(block + penalty * (1.0 / z - 1.0)[self.unit[index]][:, None])
            if factor is None:
                break
            u = np.zeros(len(self.b))
            u[index] = scipy.linalg.cho_solve((factor, True), self.b[index], check_finite=False)
            value, saving = self._bound(node, u)
            if value > best:
                best, self.point, self.saving, node.z = value, u, saving, z.copy()
            if value >= cut:
                break
            free = node.status == 0
            if not np.any(free):
                break
            grown = np.clip(z[free] * np.maximum(saving[free], 1e-300) ** 0.75, 1e-300, None)
            z[free] = _scaled(grown, node.free)
        return best

    def _bound(self, node: BlockNode, u: Float) -> tuple[float, Float]:
        """Bound at a point, rounding charged, and what keeping each unit saves, rounded up."""
        assert self.minorant is not None
        n = len(u)
        gamma = 4.0 * (n + 16) * UNIT
        product = self.gram @ u
        size = float(self.norm @ np.abs(u)) + self.reach
        error = gamma * (self.norm * size + np.abs(self.b))
        value = self.low_energy - float(u @ product)
        charge = self.energy + size**2
        saving = np.zeros(len(self.members))
        for g, m in enumerate(self.members):
            if node.status[g] < 0:
                continue
            part = KEPT if node.status[g] == 1 else 1.0
            block = self.minorant.blocks[g] * part
            pull = block @ u[m]
            c = self.b[m] - product[m] + pull
            value += float(u[m] @ pull)
            charge += float(np.abs(u[m]) @ np.abs(block) @ np.abs(u[m]))
            t = self.minorant.inverses[g] @ c / part
            t += self.minorant.inverses[g] @ (c - block @ t) / part
            off = error[m] + gamma * (np.abs(block) @ (np.abs(u[m]) + np.abs(t)) + np.abs(c))
            rest = np.abs(c - block @ t) + off
            saving[g] = (
                2.0 * float(c @ t) - float(t @ block @ t) + 2.0 * float(off @ np.abs(t))
                + float(rest @ rest) / (self.minorant.smallest[g] * part)
                + gamma * (2.0 * float(np.abs(c) @ np.abs(t)) + float(np.abs(t) @ np.abs(block) @ np.abs(t)))
            )  # fmt: skip
        always = float(saving[node.status == 1].sum())
        ranked = np.sort(saving[node.status == 0])[::-1]
        total = always + float(ranked[: node.free].sum())
        return value - total - 2.0 * gamma * (charge + total), saving

    def expand(self, node: BlockNode, bound: float, cut: float) -> tuple[float, list[BlockNode]]:
        """Bound, fix, round, branch."""
        now = self.relax(node, cut, ROUNDS)
        value = max(bound, now)
        if value >= cut:
            return value, []
        free = np.flatnonzero(node.status == 0)
        if not len(free):
            self.offer(node.status == 1)
            return max(value, set_bound(self.gram, self.target, (node.status == 1)[self.unit])), []
        ranked = free[np.argsort(-self.saving[free], kind="stable")]
        kept = node.status == 1
        kept[ranked[: node.free]] = True
        self.offer(kept)
        if self.minorant is not None:
            last, first = self.saving[ranked[node.free - 1]], self.saving[ranked[node.free]]
            # What another choice costs adds to the bound that the savings belong to, which an inherited one may exceed.
            keep = [g for g in ranked[: node.free] if now + (self.saving[g] - first) * (1.0 - 1e-12) >= cut]
            drop = [g for g in ranked[node.free :] if now + (last - self.saving[g]) * (1.0 - 1e-12) >= cut]
            node.status[keep], node.status[drop] = 1, -1
            if keep or drop:
                self.excluded = min(self.excluded, cut)
            node.free -= len(keep)
            self._settle(node)
        free = np.flatnonzero(node.status == 0)
        if not len(free):
            return value, [node]
        weight = self.saving[free] * node.z[free] * (1.0 - node.z[free]) + 1e-9 * self.saving[free]
        branch = int(free[np.argmax(weight)])
        children = []
        for choice in (-1, 1):
            child = BlockNode(node.status.copy(), node.free - (choice == 1), node.z.copy())
            child.status[branch] = choice
            self._settle(child)
            children.append(child)
        return value, children

    def _settle(self, node: BlockNode) -> None:
        free = node.status == 0
        if node.free <= 0:
            node.status[free] = -1
        elif np.count_nonzero(free) <= node.free:
            node.free -= int(np.count_nonzero(free))
            node.status[free] = 1


def _scaled(z: Float, total: int) -> Float:
    """Multiply by a factor such that Σ min(1, z) is the total."""
    order = np.sort(z)[::-1]
    rest = float(order.sum())
    whole = 0
    while whole < total and order[whole] * (total - whole) >= rest:
        rest -= float(order[whole])
        whole += 1
    factor = (total - whole) / rest if rest > 0 and whole < total else 1.0 / max(float(order[-1]), 1e-300)
    return np.clip(z * factor, 1e-3, 1.0)


def search_blocks(task: Task[Support], control: Control) -> RawSolve:
    """Solve one channel of at least one live input."""
    search = BlockSearch(task, control)
    search.first_incumbents()
    root = search.root()
    frontier: Frontier[BlockNode] = Frontier(
        search, control, search.energy, root, search.root_bound, 1.0, task.constant
    )
    termination = frontier.run()
    dual = None
    if search.root_dual is not None and search.minorant is not None:
        dual = BlockDual(search.root_dual, search.unit, search.minorant.matrix)
    return RawSolve(
        weights=search.incumbent.weights,
        termination=termination,
        proof=SearchProof(frontier.lower, 32 * UNIT * search.energy) if frontier.lower > 0 else None,
        dual=dual,
        nodes=frontier.nodes,
        trace=tuple(frontier.trace),
    )
