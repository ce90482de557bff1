"""Best subset selection of one channel by branch and bound with the diagonal perspective dual.

The mathematics and the rounding are in docs/pruning-bounds.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import scipy.linalg

from layerbounds.arrays import Bool, Float, Int
from layerbounds.bounds.minorants.diagonal import certified_minorant, interior_start, is_minorant
from layerbounds.bounds.objective import entry_sizes
from layerbounds.bounds.pruning.perspective import CENTRE_STEPS, centre, newton_step, schur_complement
from layerbounds.kernels.factorization import UNIT, cholesky, gamma, smallest_eigenvalues, symmetric_inverse
from layerbounds.kernels.pruning import subset, subset_diagonal, subset_relaxation, subset_sets, subset_tree
from layerbounds.problems.support import Support
from layerbounds.problems.tasks import Task
from layerbounds.proofs import Control
from layerbounds.search.frontier import Forkable, Incumbent
from layerbounds.search.pruning.correlated_inputs import nearest_inputs
from layerbounds.search.pruning.exchanges import improved
from layerbounds.search.pruning.refit import refit

Flags = npt.NDArray[np.int8]

#: Levels of the tree between two improvements of the diagonal, and the least emphasis.
EVERY, FLOOR = 3, 0.05
#: Barrier weights: the last one at the root, and those of one improvement in the tree.
MU, TREE_MU = 0.02, (0.07, 0.03, 0.03)
#: Factors tried where a diagonal is too close to the boundary of the cone for its proof.
SHRINKS = (1.0, 0.97, 0.8)
#: Kicks of an incumbent's set at a time.
KICKS = 64
#: Rounds of the active-set method at a node.
ROUNDS = 8
#: Relaxations and Newton steps at the root, and after how many the diagonal may be given up.
ROOT_STEPS, FEW_STEPS = 25, 8
#: Share of the time limit in which the first incumbents are kicked.
FIRST = 0.25
#: Seconds per cubed number of inputs: the set-up of a search, a backward elimination, a local search, and of the root
#: its first diagonal and each Newton step.
SET_UP_CUBIC, ELIMINATE_CUBIC, IMPROVE_CUBIC, ROOT_CUBIC, CENTRE_CUBIC = 6e-10, 1.2e-9, 6e-10, 1.5e-9, 3e-10
#: What takes no longer than this is done in any case.
AT_ONCE = 0.2
#: Inputs whose exclusion cost is estimated before branching.
CANDIDATES = 8
#: Nodes with at most so many sets are enumerated, unless more of them than this come near the cut.
ENUMERATED, EXACT = 20000, 64
#: Multiplications that the enumeration of a node may take.
MOST_WORK = 10**7


@dataclass(eq=False)
class Node:
    """A subproblem.

    Attributes
    ----------
    status : ndarray of int8, shape (n,)
        1 kept, −1 dropped, 0 free.
    state : ndarray of int8, shape (n,)
        Active set of the parent's relaxation.
    free : ndarray of int64, shape (groups,)
        Inputs that may still be kept.
    d : ndarray of shape (n,) or None
        A proven minorant on the inputs that are not dropped; None where there is none.
    age : int
        Levels since ``d`` was computed.
    """

    status: Flags
    state: Flags
    free: Int
    d: Float | None
    age: int


class SubsetSearch(Forkable):
    """Expander for patterns of single inputs with refit.

    Parameters
    ----------
    task : Task
    control : Control
    """

    def __init__(self, task: Task[Support], control: Control) -> None:
        self.task, self.control = task, control
        self.gram = np.ascontiguousarray(task.gram)
        wide, target = task.gram.astype(np.longdouble), task.target.astype(np.longdouble)
        product = wide @ target
        energy = max(float(target @ product), 0.0)
        # A power of 4 brings the energy near 1 and rounds nothing.
        exponent = -math.frexp(energy)[1] // 2 if energy > 0 else 0
        self.factor = math.ldexp(1.0, exponent)
        self.target = task.target * self.factor
        self.b = product.astype(np.float64) * self.factor
        self.energy = energy * self.factor**2
        self.group = task.allowed.structure.group[task.allowed.structure.unit]
        self.capacity = task.allowed.structure.capacity.copy()
        n = len(self.b)
        self.size = n
        self.norm = entry_sizes(self.gram) * (1.0 + 1e-9)
        # Hw and wᵀHw are rounded too: the energy is lowered, and charges begin with a reach (docs/pruning-bounds.md).
        extended = float(np.finfo(np.longdouble).eps)
        size = float(self.norm @ np.abs(self.target))
        self.reach = 2.0 * extended / UNIT * size
        self.low_energy = self.energy - 2.0 * (n + 8) * extended * size**2
        self.random = self._generator(0)
        self.point, self.saving, self.work, self.other = np.zeros(n), np.zeros(n), np.empty((n, n)), np.empty((n, n))
        self.edge = np.zeros((len(self.capacity), 2))
        self.solution, self.scores, self.alpha, self.tuned = np.zeros(n), np.zeros(n), np.zeros(n), np.zeros(n)
        self.index, self.inputs = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
        self.reduced, self.residual = np.empty((n, n)), np.empty(n)
        self.out = np.zeros(1)
        self.nearest = nearest_inputs(self.gram)
        self.twins = self._twins()
        self.root_bound = 0.0
        self.root_dual: tuple[Float, Float] | None = None
        self.incumbent = Incumbent(self.energy, np.zeros(n))
        self.expanded = 0
        self.excluded = math.inf
        #: Nodes with at most so many sets are enumerated.
        self.enumerated = ENUMERATED
        #: A proven lower bound of the smallest eigenvalue, 0 where there is none.
        self.smallest = 0.5 * float(smallest_eigenvalues(self.gram))
        if self.smallest <= 0.0 or not is_minorant(self.gram, np.full(n, self.smallest)):
            self.smallest = 0.0

    def _generator(self, number: int) -> npt.NDArray[np.uint64]:
        """State of the random generator of a thread."""
        entropy = [self.control.seed, self.task.channel] + ([number] if number else [])
        return np.array([np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] | 1])

    def fork(self, number: int) -> Self:
        """The same search with work space and a random generator of its own; the incumbent is shared."""
        other = super().fork(number)
        other.random = self._generator(number)
        return other

    def _twins(self) -> list[Int]:
        """For each input the others with exactly the same row of the Gram matrix."""
        rows: dict[bytes, list[int]] = {}
        for i in range(self.size):
            rows.setdefault(self.gram[i].tobytes(), []).append(i)
        return [np.array([j for j in rows[self.gram[i].tobytes()] if j != i], dtype=np.int64) for i in range(self.size)]

    # Incumbents

    def offer(self, chosen: Bool) -> None:
        """Refit a set and keep it where it is the best one so far."""
        weights = np.zeros(self.size)
        s = np.flatnonzero(chosen)
        if len(s) == self.size:
            weights = self.target.copy()
        elif len(s):
            weights[s] = refit(self.gram, self.b, s)
        deviation = weights - self.target
        value = max(float(deviation @ (self.gram @ deviation)), 0.0)
        self.incumbent.offer(value, weights)

    def affords(self, cubic: float, share: float = 1.0) -> bool:
        """Whether a share of the time that is left allows some seconds per cubed number of inputs.

        A node limit has to give the same result on every machine.
        """
        seconds = cubic * self.size**3
        return self.control.node_limit is not None or seconds <= max(share * self.control.remaining(), AT_ONCE)

    def polish(self, chosen: Bool, kicks: int) -> None:
        """Local search from a set, if there is time for it."""
        if self.affords(IMPROVE_CUBIC, 0.5):
            chosen = improved(
                self.gram, self.b, self.energy, self.group, self.capacity, chosen, kicks, self.nearest, self.random
            )
        self.offer(chosen)

    def first_incumbents(self, kicks: bool = True) -> None:
        """Backward greedy, magnitude and the warm start, each with local search; kicks for the best of them."""
        n = self.size
        eliminated = self.affords(ELIMINATE_CUBIC, FIRST)
        if eliminated:
            a, r = np.empty((n, n)), np.empty(n)
            kept, slack = np.zeros(n, dtype=bool), np.zeros(len(self.capacity), dtype=np.int64)
            subset.eliminate(self.gram, self.b, self.group, self.capacity, a, r, kept, slack)
            self.polish(kept.copy(), 0)
        if not eliminated or self.control.remaining() > 0:
            self.polish(self.task.allowed.structure.keep_largest(np.abs(self.target) * np.sqrt(np.diag(self.gram))), 0)
        if self.task.warm_start is not None:
            self.polish(self.task.warm_start != 0.0, 0)
        # A node limit has to give the same result on every machine.
        share = FIRST if self.control.node_limit is None else 1.0
        for _ in range((2 if n <= 80 else 6) if kicks else 0):
            if self.control.remaining() <= (1.0 - share) * self.control.time_limit:
                break
            self.polish(self.incumbent.weights != 0.0, KICKS)

    # Small subproblems

    def enumerate(self, status: Flags, room_left: Int, cut: float) -> float | None:
        """Proven bound of a node of one group by trying all its sets; None where they are too many or too close.

        Sets whose computed error is below the cut, up to what rounding may hide, are evaluated exactly.
        """
        free = np.flatnonzero(status == 0)
        room = min(int(room_left[0]), len(free))
        if len(self.capacity) > 1 or math.comb(len(free), room) > self.enumerated:
            return None
        kept = np.flatnonzero(status == 1)
        margin = 2.0 * self.saving_error(len(kept) + room)
        if not margin < 0.1 * cut:
            return None
        width = len(free)
        a, r = np.empty((width, width)), np.empty(width)
        base = subset_sets.eliminate(self.gram, self.b, kept, free, a, r)
        # Every input is a cluster of its own whose choices cost nothing.
        found = np.empty((EXACT, room), np.int64)
        child, best, root = np.empty((3 * width, 2), np.int64), np.empty(3 * width), np.empty(width, np.int64)
        subset_sets.free_tries(np.zeros(width), child, best, root)
        count = subset_sets.near_sets(
            a, r, room, child, best, root, np.arange(width), np.ones(width, np.int64), 0.0,
            self.low_energy - base - cut - margin, MOST_WORK, found,
        )  # fmt: skip
        if math.isnan(base) or count < 0:
            return None
        return self.evaluate(status, free, found[:count], cut)

    def evaluate(self, status: Flags, free: Int, found: Int, cut: float) -> float:
        """Proven bound of a node whose other sets reach the cut, from those at the positions ``found`` in ``free``."""
        value = cut
        for positions in found:
            chosen = status == 1
            chosen[free[positions]] = True
            self.offer(chosen)
            value = min(value, set_bound(self.task.gram, self.target, chosen))
        return value

    def saving_error(self, size: int, smallest: float | None = None) -> float:
        """How far the computed saving of a set of so many inputs can lie below the exact one (docs).

        ``smallest`` is a lower bound of the smallest eigenvalue on the inputs that count, all of them by default.
        """
        smallest = self.smallest if smallest is None else smallest
        if smallest <= 0.0:
            return math.inf
        loss = 5.0 * (size + 1) * gamma(3 * size + 16) * float(np.max(np.diag(self.gram))) / smallest
        error = 4.0 * (self.size + 16) * UNIT * (self.norm * self.reach + np.abs(self.b))
        eta = math.sqrt(float(error @ error) / smallest)
        return 2.0 * loss * self.energy + 2.0 * math.sqrt(self.energy) * eta + eta * eta if loss < 1e-3 else math.inf

    # Bounds

    def root_status(self) -> tuple[Flags, Int]:
        """What is fixed from the start, and what each group may still keep."""
        status = np.zeros(self.size, dtype=np.int8)
        free = self.capacity.copy()
        for i in range(self.size):
            # Of exact copies in one group, keeping one is as good as keeping several.
            if status[i] == 0:
                same = self.twins[i]
                status[same[self.group[same] == self.group[i]]] = -1
        subset_tree.settle(self.group, free, status)
        self._drop_twins(status, np.flatnonzero(status == 1))
        return status, free

    def root(self, least: float = 0.0) -> Node:
        """The whole problem, with a diagonal that was improved for it.

        Below the bound ``least`` the improvement ends after a few steps.
        """
        status, free = self.root_status()
        state = np.where(self.target > 0, 1, -1).astype(np.int8)
        node = Node(status, state, free, None, 0)
        if self.affords(ROOT_CUBIC):
            node.d = self.diagonal(node)
        if node.d is not None:
            self.root_bound = max(self.sharpen(node, least), 0.0)
            if np.any(node.status == 0):
                # Kept inputs count with a millionth of their entry, here as in the proof.
                self.root_dual = (self.point.copy(), np.where(node.status == 1, 1e-6 * node.d, node.d))
        return node

    def diagonal(self, node: Node) -> Float | None:
        """Some proven positive minorant of a node, None where its Gram matrix is numerically singular."""
        free, kept = np.flatnonzero(node.status == 0), np.flatnonzero(node.status == 1)
        both = np.concatenate([kept, free])
        block = np.ascontiguousarray(self.gram[np.ix_(both, both)])
        start = centre(block, self._centre_steps()) if node.age == 0 and len(free) else 0.5 * interior_start(block)
        if not np.all(start > 0):
            return None
        d = np.ones(self.size)
        d[both] = start
        return d if self.proven(node, d) else None

    def _centre_steps(self) -> int:
        """Newton steps to the centre that half of the time that is left allows."""
        if self.control.node_limit is not None:
            return CENTRE_STEPS
        return int(min(0.5 * max(self.control.remaining(), AT_ONCE) / (CENTRE_CUBIC * self.size**3), CENTRE_STEPS))

    def proven(self, node: Node, d: Float) -> bool:
        """Prove that a diagonal is a minorant on the inputs of a node."""
        free, kept = np.flatnonzero(node.status == 0), np.flatnonzero(node.status == 1)
        index = np.concatenate([kept, free])
        return bool(subset_diagonal.prove(self.gram, d, index, len(index), len(kept), self.other))

    def sharpen(self, node: Node, least: float) -> float:
        """Improve the diagonal of the root by alternating relaxations and Newton steps; returns its bound."""
        free, kept = np.flatnonzero(node.status == 0), np.flatnonzero(node.status == 1)
        assert node.d is not None
        d, best, mu = node.d.copy(), -math.inf, 0.3
        reduced = schur_complement(self.gram, kept, free) if len(free) else None
        state = node.state.copy()
        began, spent = self.control.elapsed(), 0.0
        for step in range(ROOT_STEPS + 1):
            value = self.relax(node, d, state, math.inf, 30)
            if value > best and (step == 0 or self.proven(node, d)):
                best, node.d, node.state = value, d.copy(), state.copy()
            now = self.control.elapsed()
            began, spent = now, now - began
            # Another step would take as long as this one.
            if step == ROOT_STEPS or reduced is None or self.control.remaining() <= (spent if spent > AT_ONCE else 0.0):
                break
            if step == FEW_STEPS and best < least:
                break
            mean = subset_diagonal.emphasis(
                self.group, node.free, node.status, self.point, d, self.saving, self.edge, FLOOR, self.alpha
            )
            if mean <= 0:
                break
            d[free] = newton_step(reduced, d[free], self.alpha[free] / mean, mu)
            mu = max(0.7 * mu, MU)
        return self.relax(node, node.d, node.state, math.inf, 30)

    def relax(self, node: Node, d: Float, state: Flags, cut: float, rounds: int = ROUNDS) -> float:
        """Proven bound of a node with a given diagonal."""
        kept, count = subset_relaxation.alive(node.status, self.inputs)
        subset_relaxation.reduce(self.gram, self.b, self.inputs, kept, count, self.reduced, self.residual)
        value = subset_relaxation.relax(
            self.gram, self.norm, self.b, self.low_energy,
            self.reach, d, self.group, node.free, node.status, state, rounds, cut,
            self.inputs, kept, count, self.reduced, self.residual,
            self.point, self.saving, self.edge, self.work, self.solution, self.index, self.scores, self.out,
        )  # fmt: skip
        return float(value)

    def retune(self, node: Node, value: float, cut: float) -> float:
        """Improve the diagonal of a node; ``value`` is the bound with the present one."""
        assert node.d is not None
        for mu in TREE_MU:
            mean = subset_diagonal.emphasis(
                self.group, node.free, node.status, self.point, node.d, self.saving, self.edge, FLOOR, self.alpha
            )
            if mean <= 0 or not self._ascend(node, mu * mean):
                break
            state = node.state.copy()
            new = self.relax(node, self.tuned, state, cut)
            if new <= value:
                # Work arrays and bound belong to the last relaxation: back to the better one.
                value = self.relax(node, node.d, node.state, cut)
                break
            gain, value = new - value, new
            node.d, node.state = self.tuned.copy(), state
            if value >= cut or gain < 0.01 * cut:
                break
        return value

    def _ascend(self, node: Node, mu: float) -> bool:
        """A sweep of coordinate ascent on the diagonal, into ``tuned``; False where its proof fails."""
        assert node.d is not None
        free, kept = np.flatnonzero(node.status == 0), np.flatnonzero(node.status == 1)
        both = np.concatenate([kept, free])
        block = self.gram.take(both, 0).take(both, 1)
        difference = block.copy()
        inside = np.arange(len(kept), len(both))
        difference[inside, inside] -= node.d[free]
        factor = cholesky(difference)
        if factor is None:
            return False
        # (H/kept − D)⁻¹ is the free block of the inverse.
        inverse = symmetric_inverse(np.asfortranarray(factor[len(kept) :, len(kept) :]))
        d = node.d[free]
        ascend = subset_diagonal.ascend if len(d) <= subset_diagonal.CACHED else subset_diagonal.ascend_wide
        ascend(np.ascontiguousarray(inverse), self.alpha[free], mu, d)
        if not np.all(d > 0):
            return False
        self.tuned[:] = node.d
        for shrink in SHRINKS:
            self.tuned[free] = shrink * d
            if is_minorant(block, np.concatenate([1e-6 * node.d[kept], self.tuned[free]])):
                return True
        return False

    def expand(self, node: Node, bound: float, cut: float) -> tuple[float, list[Node]]:
        """Bound, fix, round, branch."""
        self.expanded += 1
        value, now = bound, -math.inf
        if np.any(node.status == 0):
            closed = self.enumerate(node.status, node.free, cut)
            if closed is not None:
                return max(bound, closed), []
        if node.d is None:
            node.d, node.age = self.diagonal(node), 0
        if node.d is not None:
            now = self.relax(node, node.d, node.state, cut)
            if node.age >= EVERY and now < cut and np.any(node.status == 0):
                now = self.retune(node, now, cut)
                node.age = 0
            value = max(value, now)
            if value >= cut:
                return value, []
        free = np.flatnonzero(node.status == 0)
        if not len(free):
            self.offer(node.status == 1)
            return max(value, set_bound(self.task.gram, self.target, node.status == 1)), []
        branch = self._choose(node, now, cut, free)
        free = np.flatnonzero(node.status == 0)
        if not len(free):
            # Everything else was fixed: the one set that is left becomes a child of its own.
            return value, [Node(node.status, node.state, node.free, node.d, 0)]
        if branch < 0:
            branch = int(free[np.argmax(self.saving[free])] if node.d is not None else free[0])
        return value, [self.child(node, branch, keep) for keep in (False, True)]

    def _choose(self, node: Node, value: float, cut: float, free: Int) -> int:
        """Fix what can be fixed, try the rounded set, and name an input to branch on (−1: none stands out).

        ``value`` is the bound that belongs to the savings; one inherited from the parent may exceed it.
        """
        if node.d is None:
            return -1
        if self.expanded % 64 == 1 or self.size <= 24:
            chosen = (node.status == 1) | ((node.status == 0) & (self.saving >= self.edge[self.group, 1]))
            self.polish(chosen, 0)
        if self.expanded % 512 == 0:
            self.polish(self.incumbent.weights != 0.0, KICKS)
        before = node.status.copy()
        active = int(self.out[0])
        if subset_tree.fix(value, cut, self.group, node.free, node.status, self.saving, self.edge):
            self.excluded = min(self.excluded, cut)
            self.settle(node, before)
        return int(
            subset_tree.pick(
                node.d, node.status, self.point, self.work, active, self.index, self.solution, CANDIDATES
            )
        )  # fmt: skip

    def settle(self, node: Node, before: Flags) -> None:
        """Apply capacities and copies where the status was another one before."""
        subset_tree.settle(self.group, node.free, node.status)
        self._drop_twins(node.status, np.flatnonzero((node.status == 1) & (before != 1)))

    def child(self, node: Node, branch: int, keep: bool) -> Node:
        """A node at which one more input is kept or dropped."""
        status, free = node.status.copy(), node.free.copy()
        status[branch] = 1 if keep else -1
        child = Node(status, node.state.copy(), free, node.d, node.age + 1)
        if keep:
            free[self.group[branch]] -= 1
        subset_tree.settle(self.group, free, status)
        self._drop_twins(status, np.flatnonzero((status == 1) & (node.status != 1)))
        return child

    def _drop_twins(self, status: Flags, kept: Int) -> None:
        """Beside a kept input its exact copies save nothing."""
        for i in kept:
            if status[i] == 1:
                status[self.twins[i]] = -1


def set_bound(gram: Float, target: Float, kept: Bool) -> float:
    """Lower bound on (v − w)ᵀH(v − w) over the weights on one set, in extended precision; 0 if it is dependent.

    For any v on S, the minimum is f(v) − rᵀ(H_SS)⁻¹r with r = (H(v − w))_S, and rᵀ(H_SS)⁻¹r ≤ Σ r_i²/δ_i for a diagonal
    δ ⪯ H_SS.
    """
    wide, deviation = gram.astype(np.longdouble), -target.astype(np.longdouble)
    s = np.flatnonzero(kept)
    charge = 0.0
    if len(s):
        block = np.ascontiguousarray(gram[np.ix_(s, s)])
        factor = cholesky(block)
        if factor is None:
            return 0.0
        delta = certified_minorant(block, 0.5 * interior_start(block))
        if not np.all(delta > 0):
            return 0.0
        for _ in range(3):
            residual = (wide[s] @ deviation).astype(np.float64)
            deviation[s] -= scipy.linalg.cho_solve((factor, True), residual, check_finite=False)
        unit = float(np.finfo(np.longdouble).eps)
        error = 2.0 * (len(gram) + 4) * unit * (np.abs(wide[s]) @ np.abs(deviation))
        charge = float(np.sum((np.abs(wide[s] @ deviation) + error) ** 2 / delta)) * (1.0 + 1e-9)
    size = np.abs(deviation)
    rounding = 2.0 * (len(gram) + 4) * float(np.finfo(np.longdouble).eps) * float(size @ (np.abs(wide) @ size))
    return (float(deviation @ (wide @ deviation)) - rounding - charge) * (1.0 - 4.0 * UNIT)
