"""N:M pruning with refit, by branch and bound with the block dual, one block per group; see docs/pruning-bounds.md."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import scipy.linalg

from layerbounds.arrays import Bool, Float, Int
from layerbounds.backends.base import BlockDual, Control, PruningTask, RawSolve, SearchProof
from layerbounds.bounds.blocks import BlockMinorant, improve_blocks, start_blocks
from layerbounds.bounds.diagonal import UNIT, cholesky, symmetric_inverse
from layerbounds.search.frontier import Frontier, Incumbent
from layerbounds.search.pruning import SubsetSearch, set_bound

#: Relaxation rounds at a node and at the root; most alternations of relaxation and block ascent at the root.
ROUNDS, ROOT_ROUNDS, ALTERNATIONS = 5, 6, 80
#: Barrier at the first alternation, its factor per alternation, and its least value.
MU_FIRST, MU_FACTOR, MU_LAST = 0.5, 0.75, 0.02


@dataclass(eq=False)
class GroupNode:
    """A subproblem: which choices of each group are left, and their weights in the parent's relaxation."""

    valid: Bool
    weight: Float


@dataclass(eq=False)
class Choices:
    """A minorant with what belongs to it, padded to one block size.

    Attributes
    ----------
    minorant : BlockMinorant
    block : ndarray of shape (groups, m, m)
    inverse : ndarray of shape (groups, choices, m, m)
        Inverses of the sub-blocks of each choice, zero elsewhere.
    """

    minorant: BlockMinorant
    block: Float
    inverse: Float


class GroupSearch(SubsetSearch):
    """Expander for N:M patterns with refit. Incumbents come from `SubsetSearch`.

    Parameters
    ----------
    task : PruningTask
    control : Control
    """

    def __init__(self, task: PruningTask, control: Control) -> None:
        super().__init__(task, control)
        groups = len(self.capacity)
        self.members = [np.flatnonzero(self.group == g) for g in range(groups)]
        most = max(len(m) for m in self.members)
        # Keeping more never costs anything: only the largest choices count.
        lists = [list(combinations(range(len(m)), int(c))) for m, c in zip(self.members, self.capacity, strict=True)]
        self.many = max(len(choices) for choices in lists)
        self.inside = np.zeros((groups, self.many, most), dtype=bool)
        self.exists = np.zeros((groups, self.many), dtype=bool)
        for g, choices in enumerate(lists):
            for r, choice in enumerate(choices):
                self.exists[g, r] = True
                self.inside[g, r, list(choice)] = True
        #: Position of each input in the padded blocks.
        self.place = np.zeros((groups, most), dtype=np.int64)
        self.real = np.zeros((groups, most), dtype=bool)
        for g, m in enumerate(self.members):
            self.place[g, : len(m)], self.real[g, : len(m)] = m, True
        self.choices: Choices | None = None
        self.saved = np.zeros((groups, self.many))
        self.trial = np.zeros((groups, self.many, most))
        self.factor_of = np.zeros((0, 0))
        self.index_of = np.zeros(0, dtype=np.int64)
        self.block_dual: tuple[Float, Float] | None = None

    def choices_of(self, minorant: BlockMinorant) -> Choices:
        """Invert the sub-blocks of every choice."""
        groups, _, most = self.inside.shape
        block = np.zeros((groups, most, most))
        for g, b in enumerate(minorant.blocks):
            block[g, : len(b), : len(b)] = b
        both = self.inside[:, :, :, None] & self.inside[:, :, None, :]
        padded = np.where(both, block[:, None], np.eye(most))
        inverse = np.where(both, np.linalg.inv(padded), 0.0)
        return Choices(minorant, block, inverse)

    def group_root(self) -> GroupNode:
        """The whole problem, with a block-diagonal minorant that was improved for it."""
        weight = np.where(self.exists, 1.0, 0.0)
        node = GroupNode(self.exists.copy(), weight / weight.sum(axis=1, keepdims=True))
        self.root_bound = 0.0
        minorant = start_blocks(self.gram, self.members)
        if minorant is None:
            return node
        best: Choices | None = None
        idle, mu = 0, MU_FIRST
        for _ in range(ALTERNATIONS):
            self.choices = self.choices_of(minorant)
            value = self.relax_groups(node, math.inf, ROOT_ROUNDS)
            idle += 1
            if value > self.root_bound:
                idle = 0 if value > self.root_bound + 1e-3 * self.incumbent.value else idle
                self.root_bound, best = value, self.choices
                self.block_dual = (self.point.copy(), minorant.matrix)
            # The alternation oscillates: give it time.
            if idle >= 15 or self.control.remaining() <= 0 or value >= self.incumbent.value:
                break
            improved = improve_blocks(self.gram, self.members, minorant, self.spread(node), mu)
            if improved is None:
                break
            minorant, mu = improved, max(mu * MU_FACTOR, MU_LAST)
        self.choices = best
        return node

    def spread(self, node: GroupNode) -> list[Float]:
        """Supergradients of the bound: the covariance of the choices' weights within each group."""
        centred = self.trial - self.point[self.place][:, None, :]
        covariance = np.einsum("gr,gri,grj->gij", node.weight, centred, centred)
        return [covariance[g, : len(m), : len(m)] for g, m in enumerate(self.members)]

    def relax_groups(self, node: GroupNode, cut: float, rounds: int) -> float:
        """Proven bound of a node: weights λ of the choices, K = Σ λ_S (B_SS)⁻¹, v = (H − B + K⁻¹)⁻¹ b."""
        choices = self.choices
        if choices is None:
            return 0.0
        most = self.inside.shape[2]
        weight = np.where(node.valid, np.maximum(node.weight, 1e-3), 0.0)
        weight /= weight.sum(axis=1, keepdims=True)
        active = np.any(self.inside & node.valid[:, :, None], axis=1) & self.real
        index = np.sort(self.place[active])
        position = np.zeros(self.size, dtype=np.int64)
        position[index] = np.arange(len(index))
        rows = position[self.place]
        base = self.gram.take(index, 0).take(index, 1)
        eye = np.eye(most)
        pair = active[:, :, None] & active[:, None, :]
        at_row = np.broadcast_to(rows[:, :, None], pair.shape)[pair]
        at_column = np.broadcast_to(rows[:, None, :], pair.shape)[pair]
        best = -math.inf
        for _ in range(rounds):
            middle = np.einsum("gr,grij->gij", weight, choices.inverse)
            middle = np.where(pair, middle, eye)
            penalty = np.linalg.inv(middle) - choices.block
            system = base.copy()
            system[at_row, at_column] += penalty[pair]
            factor = cholesky(system)
            if factor is None:
                break
            u = np.zeros(self.size)
            u[index] = scipy.linalg.cho_solve((factor, True), self.b[index], check_finite=False)
            value, saved, trial = self._group_bound(node, choices, u, active)
            if value > best:
                best, self.point, self.saved, self.trial, node.weight = value, u, saved, trial, weight
                self.factor_of, self.index_of = factor, index
            if value >= cut:
                break
            top = np.where(node.valid, saved, 0.0).max(axis=1, keepdims=True)
            ratio = np.divide(saved, top, out=np.zeros_like(saved), where=top > 0)
            weight = np.where(node.valid, np.maximum(weight * ratio**0.75, 1e-9), 0.0)
            weight = weight / weight.sum(axis=1, keepdims=True)
        return best

    def _group_bound(self, node: GroupNode, choices: Choices, u: Float, active: Bool) -> tuple[float, Float, Float]:
        """Bound at a point with its rounding charged; savings of the choices, rounded up, and their weights."""
        gamma = 4.0 * (self.size + 16) * UNIT
        product = self.gram @ u
        size = float(self.norm @ np.abs(u)) + self.reach
        error = gamma * (self.norm * size + np.abs(self.b))
        local = np.where(active, u[self.place], 0.0)
        block = choices.block
        pull = np.einsum("gij,gj->gi", block, local)
        c = np.where(active, (self.b - product)[self.place] + pull, 0.0)
        t = np.einsum("grij,gj->gri", choices.inverse, c)
        rest = np.where(self.inside, c[:, None, :] - np.einsum("gij,grj->gri", block, t), 0.0)
        t += np.einsum("grij,grj->gri", choices.inverse, rest)
        large = np.abs(t)
        image = np.einsum("gij,grj->gri", block, t)
        heavy = np.einsum("gij,grj->gri", np.abs(block), large)
        weight = np.einsum("gij,gj->gi", np.abs(block), np.abs(local))
        off = np.where(
            self.inside,
            error[self.place][:, None, :] + gamma * (weight[:, None, :] + heavy + np.abs(c)[:, None, :]),
            0.0,
        )
        rest = np.where(self.inside, np.abs(c[:, None, :] - image), 0.0) + off
        saved = (
            2.0 * np.einsum("gi,gri->gr", c, t) - np.einsum("gri,gri->gr", t, image)
            + 2.0 * np.einsum("gri,gri->gr", off, large)
            + np.einsum("gri,gri->gr", rest, rest) / choices.minorant.smallest[:, None]
            + gamma * (2.0 * np.einsum("gi,gri->gr", np.abs(c), large) + np.einsum("gri,gri->gr", large, heavy))
        )  # fmt: skip
        saved = np.where(node.valid, np.maximum(saved, 0.0), 0.0)
        total = float(saved.max(axis=1).sum())
        value = self.low_energy - float(u @ product) + float(np.sum(local * pull))
        charge = self.energy + size**2 + float(np.sum(np.abs(local) * weight))
        return value - total - 2.0 * gamma * (charge + total), saved, t

    def expand_groups(self, node: GroupNode, bound: float, cut: float) -> tuple[float, list[GroupNode]]:
        """Bound, drop choices, round, branch."""
        self.expanded += 1
        value = max(bound, self.relax_groups(node, cut, ROUNDS))
        if value >= cut:
            return value, []
        left = node.valid.sum(axis=1)
        if np.all(left == 1):
            chosen = np.zeros(self.size, dtype=bool)
            chosen[self.place[np.any(self.inside & node.valid[:, :, None], axis=1) & self.real]] = True
            self.offer(chosen)
            return max(value, set_bound(self.task.gram, self.target, chosen)), []
        groups = np.arange(len(left))
        if self.choices is not None:
            best = np.where(node.valid, self.saved, -1.0).argmax(axis=1)
            if self.expanded % 8 == 1:
                chosen = np.zeros(self.size, dtype=bool)
                chosen[self.place[self.inside[groups, best] & self.real]] = True
                self.polish(chosen, 0)
            top = self.saved[groups, best][:, None]
            # A choice whose saving is that much below the best one of its group cannot lead below the cut.
            node.valid &= ~(value + (top - self.saved) * (1.0 - 1e-12) >= cut)
            left = node.valid.sum(axis=1)
            if np.all(left == 1):
                return value, [GroupNode(node.valid, node.weight)]
        return value, self._branch(node, left)

    def _branch(self, node: GroupNode, left: Int) -> list[GroupNode]:
        """Split on the input of largest estimated exclusion cost: u²/(M⁻¹)_ii, M the relaxation's matrix."""
        if self.choices is None:
            group = int(np.argmax(left))
            inside = self.inside[group, int(np.flatnonzero(node.valid[group])[0])]
            column = int(
                next(
                j for j in np.flatnonzero(inside)
                if 0 < np.count_nonzero(node.valid[group] & self.inside[group, :, j]) < left[group]
            ))  # fmt: skip
        else:
            inverse = np.diag(symmetric_inverse(self.factor_of)) if self.size <= 200 else None
            cost = np.zeros(self.size)
            if inverse is not None:
                cost[self.index_of] = self.point[self.index_of] ** 2 / inverse
            else:
                cost = self.point**2 * np.diag(self.choices.minorant.matrix)
            held = np.einsum("gr,gri->gi", node.valid.astype(np.int64), self.inside.astype(np.int64))
            undecided = (held > 0) & (held < left[:, None]) & self.real
            score = np.where(undecided, cost[self.place], -1.0)
            group, column = (int(k) for k in np.unravel_index(int(np.argmax(score)), score.shape))
        children = []
        for keep in (False, True):
            valid = node.valid.copy()
            valid[group] &= self.inside[group, :, column] == keep
            children.append(GroupNode(valid, node.weight.copy()))
        return children


class _Adapter:
    """Shows the frontier the group form of the search."""

    def __init__(self, search: GroupSearch) -> None:
        self.search = search

    @property
    def incumbent(self) -> Incumbent:
        """The search's own."""
        return self.search.incumbent

    def expand(self, node: GroupNode, bound: float, cut: float) -> tuple[float, list[GroupNode]]:
        """Bound and branch."""
        return self.search.expand_groups(node, bound, cut)


def search_groups(task: PruningTask, control: Control) -> RawSolve:
    """Solve one channel of at least one live input."""
    search = GroupSearch(task, control)
    search.first_incumbents()
    root = search.group_root()
    frontier: Frontier[GroupNode] = Frontier(
        _Adapter(search), control, search.energy, root, search.root_bound, search.factor**-2, task.constant
    )
    termination = frontier.run()
    lower = frontier.lower
    dual = None
    if search.block_dual is not None:
        z, matrix = search.block_dual
        dual = BlockDual(z / search.factor, search.group, matrix)
    return RawSolve(
        weights=search.incumbent.weights / search.factor,
        termination=termination,
        proof=SearchProof(lower * search.factor**-2, 32 * UNIT * search.energy * search.factor**-2)
        if lower > 0
        else None,
        dual=dual,
        nodes=frontier.nodes,
        trace=tuple(frontier.trace),
    )
