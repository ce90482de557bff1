"""Best subset selection of one channel by branch and bound with the block dual; see docs/pruning-bounds.md.

The inputs are partitioned into clusters of strongly correlated ones. The block of a cluster is minimised over its kept
inputs by enumeration, and the dual point by Newton's method on a smoothed maximum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from layerbounds.arrays import Float, Int
from layerbounds.bounds.minorants.clusters import (
    ClusterMinorant,
    make_clusters,
    partial_correlations,
    prove_clusters,
    start_clusters,
)
from layerbounds.kernels.factorization import UNIT, cholesky, symmetric_inverse
from layerbounds.kernels.pruning import (
    cluster_codes,
    cluster_minorant,
    cluster_relaxation,
    cluster_tree,
    subset_sets,
    subset_tree,
)
from layerbounds.problems.support import Support
from layerbounds.problems.tasks import Task
from layerbounds.proofs import BlockDual, Control, RawSolve, SearchProof
from layerbounds.search.frontier import Frontier, Incumbent
from layerbounds.search.pruning.cluster_codes import Codes, every_code, merge
from layerbounds.search.pruning.subset_run import run_subset
from layerbounds.search.pruning.subset_search import (
    AT_ONCE,
    EXACT,
    KICKS,
    MOST_WORK,
    Flags,
    SubsetSearch,
    set_bound,
)

#: Width of the smoothed maximum, relative to the incumbent: times the number of inputs at the end of the root, and at
#: most. In the tree, times the number of clusters and relative to what separates bound and cut, but at least to a share
#: of the cut: each cluster's smoothing costs some of the bound. The pairs here and below: for a number of inputs that
#: all clusters share, and for patterns whose groups lie in one cluster each.
ROOT_TAU, WIDE, TAU, LEAST = 0.25, 0.1, (0.16, 0.25), 0.05
#: Newton steps at a node and at the root, and the least gain of a step: at the root, relative to the incumbent, and in
#: the tree, relative to what separates bound and cut.
ROUNDS, ROOT_ROUNDS, ROOT_GAIN, GAIN = 8, 8, 1e-4, 0.01
#: Barrier weights of the minorant's ascent: first, factor, last.
MU_FIRST, MU_FACTOR, MU_LAST = 0.5, 0.7, 0.03
#: Width of the smoothing for the first point, and its narrowing at each improvement.
WIDEST, NARROWING = 3.0, 0.75
#: Where the minorant was improved for another channel: narrowing, barrier weight and the share of the improvements.
NARROWING_STARTED, MU_STARTED, STARTED_SHARE = 0.3, 0.1, 0.5
#: The same in the tree.
MU_TREE = 0.03
#: A fall of the root's bound, relative to the incumbent, after which the ascent goes back.
BACK = 0.1
#: Up to so many inputs the diagonal dual is used if its root bound reaches a fraction of the incumbent: the first
#: number plus the second one times the density, as bounds are better where more is kept.
SMALL, FAIR = 80, (0.25, 0.8)
#: Inputs looked at for branching, and the exponent of how much they are left out already.
CANDIDATES, POWER = 16, 3.0

#: Where the time is out at the root, a block bound below this share of the incumbent is not kept.
LATE = 0.5
#: Nodes between two rounds of kicks up to and above so many inputs: about a fortieth of the time.
KICK_EVERY, LARGE = (32, 128), 200

#: Nodes with about so many sets within the gap are enumerated, before and after their minorant is improved.
EARLY_SETS, MOST_SETS = 2e4, 1e5
#: Seconds per cubed number of inputs that clusters, their first blocks and a bound take.
CLUSTER_CUBIC = 5e-9
#: Clusters are merged as long as all together have no more codes than this.
MERGED = (8000, 1500)


@dataclass(eq=False)
class ClusterNode:
    """A subproblem.

    Attributes
    ----------
    status : ndarray of int8, shape (n,)
        1 kept, −1 dropped, 0 free.
    free : ndarray of int64, shape (groups,)
        Inputs that may still be kept.
    point : ndarray of shape (n,)
        Where the dual point starts.
    price : float
        What one more kept input has to save.
    minorant : ClusterMinorant
        Proven on all inputs that are not dropped.
    codes : Codes or None
        What its clusters may keep, or those of an ancestor with the same clusters; None for all that fits the pattern.
    """

    status: Flags
    free: Int
    point: Float
    price: float
    minorant: ClusterMinorant
    codes: Codes | None = None


class ClusterSearch(SubsetSearch):
    """Expander for patterns of single inputs with refit, with the block dual. Incumbents come from `SubsetSearch`.

    Parameters
    ----------
    task : Task
    control : Control
    most : int
        Largest number of inputs in a cluster.
    steps : int
        Most improvements of the minorant at the root.
    start : ClusterMinorant, optional
        Of all inputs, improved for another channel: few improvements remain.
    """

    def __init__(
        self,
        task: Task[Support],
        control: Control,
        most: int = 3,
        steps: int = 2,
        start: ClusterMinorant | None = None,
    ) -> None:
        super().__init__(task, control)
        self.start = start
        #: Whether all inputs share one capacity, which a price splits over the clusters.
        self.shared = len(self.capacity) == 1
        self.most, self.steps = most, steps
        # Grouped problems need more weight on directions without a gradient, or the ascent overshoots.
        self.side = 0.1 if self.shared else 0.2
        n = self.size
        self.place, self.savings_at, self.column = np.zeros(n, np.int64), np.zeros(n), np.zeros(n)
        self.result = np.zeros(7)
        self.savings, self.number, self.cost = np.zeros(0), np.zeros(0, np.int64), np.zeros(0)
        self.covariance = self.curve = np.zeros((0, 0, 0))
        self.share = np.zeros((0, 0))
        self.kept_in = self.free_in = np.zeros(0, np.int64)
        #: Those of the last relaxation.
        self.codes: Codes | None = None
        #: Clusters are merged up to so many codes, 0 for never: certification knows nothing of codes.
        self.merged = 0 if control.node_limit == 0 else MERGED[0 if self.shared else 1]
        self.link: Float | None = None

    # Bounds

    def relax_clusters(
        self, node: ClusterNode, tau: float, rounds: int, stop: float, gain: float, expected: float = -math.inf
    ) -> float:
        """Proven bound of a node; moves its point and price. Infinite where no code is left."""
        m = node.minorant
        if self.covariance.shape != m.block.shape:
            groups = len(m.block)
            self.covariance, self.curve = np.zeros(m.block.shape), np.zeros(m.block.shape)
            self.share = np.zeros(m.block.shape[:2])
            self.kept_in, self.free_in = np.zeros(groups, np.int64), np.zeros(groups, np.int64)
        if node.codes is None:
            codes = every_code(m, node.status, self.group, node.free)
        else:
            left = node.codes.restrict(m, node.status)
            if left is None:
                return math.inf
            codes = left
        self.codes = node.codes = codes
        if len(self.savings) < len(codes.code):
            size = 2 * len(codes.code)
            self.savings, self.number, self.cost = np.zeros(size), np.zeros(size, np.int64), np.zeros(size)
        if self.shared:
            cluster_codes.count_inputs(codes.code, self.number)
        self.result[2] = node.price
        value = cluster_relaxation.relax(
            self.gram, self.norm, self.b, self.low_energy, self.reach, m.block, m.loss, m.smallest, m.first, m.member,
            self.shared, node.free[0], node.status, tau, WIDE * self.incumbent.value, expected, rounds, stop, gain,
            codes.base, codes.code, self.number, node.point, self.place, self.kept_in, self.free_in, self.savings,
            self.savings_at, self.work, self.covariance, self.curve, self.share, self.result,
        )  # fmt: skip
        node.price = float(self.result[2])
        if math.isnan(value) or np.isnan(self.savings[: len(codes.code)]).any():
            # A saving that is no number exceeds none, and would count as none.
            self.result[3] = math.nan
            return -math.inf
        return float(value)

    def ascend(self, node: ClusterNode, mu: float) -> ClusterMinorant | None:
        """A better minorant for a node, from the moments of its last relaxation; None where its proof fails."""
        m = node.minorant
        active = np.flatnonzero(node.status >= 0)
        position = np.full(self.size, -1)
        position[active] = np.arange(len(active))
        factor = cholesky(self.gram.take(active, 0).take(active, 1) - m.matrix(position, len(active)))
        if factor is None:
            return None
        inverse = np.ascontiguousarray(symmetric_inverse(factor))
        block = m.block.copy()
        try:
            done = cluster_minorant.ascend(
                inverse, position, block, m.first, m.member, self.place, self.kept_in + self.free_in, self.covariance,
                mu, self.side,
            )  # fmt: skip
        except np.linalg.LinAlgError:
            return None
        return prove_clusters(self.gram, m.first, m.member, block, active, position) if done else None

    def cluster_root(self) -> ClusterNode | None:
        """The whole problem with a minorant improved for it; None if the Gram matrix is singular or all is fixed."""
        status, free = self.root_status()
        active = np.flatnonzero(status >= 0)
        if not np.any(status == 0):
            return None
        minorant = self.start if len(active) == self.size else None
        mu, narrowing, steps = MU_FIRST, NARROWING, self.steps
        if minorant is not None:
            mu, narrowing, steps = MU_STARTED, NARROWING_STARTED, int(self.steps * STARTED_SHARE)
        else:
            parts = make_clusters(self.gram, self.most, self.group, active)
            small = parts is not None and max(len(p) for p in parts) <= cluster_codes.MOST
            minorant = start_clusters(self.gram, parts, active) if parts is not None and small else None
        if minorant is None:
            return None
        share = free.sum() / max(np.count_nonzero(status == 0), 1)
        point = np.where(status == 1, 1.0, np.where(status == 0, share, 0.0)) * self.target
        node = ClusterNode(status, free, point, 0.0, minorant)
        upper = self.incumbent.value
        gain = ROOT_GAIN * upper
        tau = WIDEST * upper
        while tau > WIDE * upper and self.control.remaining() > 0:
            self.relax_clusters(node, tau, ROOT_ROUNDS, math.inf, 100.0 * gain)
            tau *= 0.3
        tau, best = WIDE * upper, -math.inf
        value = self.relax_clusters(node, tau, ROOT_ROUNDS, upper, gain)
        keep = (node.minorant, node.codes, node.point.copy(), node.price)
        began = self.control.elapsed()
        for _ in range(steps):
            if value > best:
                best = value
                done = best >= upper or self.near(node, upper) <= EARLY_SETS
                if not done and self.merged and self.tighten(node, upper):
                    if np.any(node.free < 0):
                        best = max(best, upper)
                    else:
                        best = max(best, self.relax_clusters(node, tau, 0, upper, gain))
                    done = best >= upper
                keep = (node.minorant, node.codes, node.point.copy(), node.price)
                if done:
                    break
            elif value < best - BACK * upper:
                # The ascent overshot: back to the best one, with a wider smoothing.
                mu, tau = min(2.0 * mu, MU_FIRST), min(2.0 * tau, WIDE * upper)
                node.minorant, node.codes, node.point, node.price = keep[0], keep[1], keep[2].copy(), keep[3]
                self.relax_clusters(node, tau, ROOT_ROUNDS, math.inf, gain)
            now = self.control.elapsed()
            began, spent = now, now - began
            # Another step would take as long as this one.
            if self.control.remaining() <= (spent if spent > AT_ONCE else 0.0):
                break
            improved = self.ascend(node, mu)
            mu, tau = max(MU_FACTOR * mu, MU_LAST), max(narrowing * tau, ROOT_TAU / self.size * upper)
            if improved is None:
                value = -math.inf
                continue
            node.minorant = improved
            value = self.relax_clusters(node, tau, ROOT_ROUNDS, upper, gain)
        if value > best:
            best, keep = value, (node.minorant, node.codes, node.point.copy(), node.price)
        node.minorant, node.codes, node.point, node.price = keep
        self.root_bound = max(best, 0.0)
        return node

    def certifiable(self, root: ClusterNode) -> BlockDual | None:
        """What certification can derive the root's bound from; None where inputs were dropped from the start."""
        m = root.minorant
        if np.any(root.status < 0):
            return None
        block = np.zeros(self.size, dtype=np.int64)
        block[m.member] = np.repeat(np.arange(len(m.block)), np.diff(m.first))
        return BlockDual(root.point / self.factor, block, m.matrix(np.arange(self.size), self.size))

    # The tree

    def gap(self, cut: float) -> float:
        """What a set's costs may add up to if its bound is to stay below the cut; costs are rounded differences."""
        return (cut - float(self.result[3])) * (1.0 + 1e-12) + 32.0 * UNIT * self.energy

    def tighten(self, node: ClusterNode, cut: float) -> bool:
        """Drop codes that reach the cut, fix the inputs that are the same in all others, and merge clusters.

        The node has to be the one that was relaxed last. Returns whether more than the lists of codes has changed;
        ``node.free`` is negative where nothing is left.
        """
        codes, m = self.codes, node.minorant
        assert codes is not None
        if not math.isfinite(self.result[3]):
            return False
        before, gap = codes.status, self.gap(cut)
        fixed = cluster_tree.survivors(
            m.first, m.member, self.place, self.kept_in, self.free_in, codes.base, codes.code, self.number,
            self.savings, node.price, gap, node.status, self.cost,
        )  # fmt: skip
        cost = self.cost[: len(codes.code)]
        alive = cost <= gap
        if not alive.all():
            self.excluded = min(self.excluded, cut)
        if fixed:
            np.subtract.at(node.free, self.group[(node.status == 1) & (before == 0)], 1)
            if np.any(node.free < 0):
                # More inputs than the pattern allows would have to be kept: every other choice reaches the cut.
                return True
            subset_tree.settle(self.group, node.free, node.status)
            self._drop_twins(node.status, np.flatnonzero((node.status == 1) & (before != 1)))
        own = np.repeat(np.arange(len(codes.base) - 1), np.diff(codes.base))[alive]
        base = np.concatenate([[0], np.cumsum(np.bincount(own, minlength=len(codes.base) - 1))])
        node.codes = Codes(before, base, codes.code[alive])
        if not self.merged or len(m.block) < 2:
            return bool(fixed)
        if self.link is None:
            every = np.flatnonzero(self.root_status()[0] >= 0)
            self.link = np.zeros((self.size, self.size))
            link = partial_correlations(self.gram, every)
            if link is not None:
                self.link[np.ix_(every, every)] = link
        node.minorant, node.codes = merge(m, node.codes, cost[alive], self.link, gap, self.merged)
        return bool(fixed) or node.minorant is not m

    def expand_clusters(self, node: ClusterNode, bound: float, cut: float) -> tuple[float, list[ClusterNode]]:
        """Bound, improve the minorant, fix, round, branch."""
        self.expanded += 1
        free = np.flatnonzero(node.status == 0)
        if not len(free):
            self.offer(node.status == 1)
            return max(bound, set_bound(self.task.gram, self.target, node.status == 1)), []
        closed = self.enumerate(node.status, node.free, cut)
        if closed is not None:
            return max(bound, closed), []
        tau, gain = self.widths(node, bound, cut)
        now = self.relax_clusters(node, tau, ROUNDS, cut, gain, bound)
        closed = self.enumerate_near(node, cut, EARLY_SETS) if now < cut else cut
        if closed is None:
            now = self.improve(node, now, bound, cut)
            closed = self.enumerate_near(node, cut, MOST_SETS) if now < cut else cut
        value = max(bound, now)
        if closed is not None:
            return max(value, closed), []
        if value >= cut:
            return value, []
        m = node.minorant
        if self.expanded % 16 == 1:
            chosen = np.zeros(self.size, dtype=bool)
            assert self.codes is not None
            cluster_tree.best_codes(
                m.first, m.member, self.place, self.kept_in, self.free_in, self.codes.base, self.codes.code,
                self.number, self.savings, node.price, chosen,
            )  # fmt: skip
            self.polish(chosen, 0)
        if self.expanded % KICK_EVERY[self.size > LARGE] == 0:
            self.polish(self.incumbent.weights != 0.0, KICKS)
        branch = int(
            cluster_tree.pick(
                self.gram, m.block, m.first, m.member, self.place, self.kept_in, self.free_in, self.curve, self.share,
                node.point, node.status, CANDIDATES, POWER, self.work, self.column,
            )
        )  # fmt: skip
        self.tighten(node, cut)
        if np.any(node.free < 0):
            return max(value, cut), []
        free = np.flatnonzero(node.status == 0)
        if not len(free):
            return value, [ClusterNode(node.status, node.free, node.point, node.price, node.minorant)]
        if branch >= 0 and node.status[branch] != 0:
            branch = -1
        return value, self._branch(node, branch, free)

    def widths(self, node: ClusterNode, bound: float, cut: float) -> tuple[float, float]:
        """Width of the smoothed maximum at a node of the tree, and the least gain of a Newton step."""
        gap = max(cut - bound, LEAST * cut)
        return TAU[0 if self.shared else 1] * gap / len(node.minorant.block), GAIN * gap

    def improve(self, node: ClusterNode, value: float, bound: float, cut: float) -> float:
        """Improve the minorant of a relaxed node and relax it again; the codes are those of the better minorant."""
        tau, gain = self.widths(node, bound, cut)
        improved = self.ascend(node, MU_TREE)
        if improved is None:
            return value
        trial = ClusterNode(node.status, node.free, node.point.copy(), node.price, improved, node.codes)
        now = self.relax_clusters(trial, tau, ROUNDS, cut, gain, value)
        if now >= value:
            node.minorant, node.point, node.price = improved, trial.point, trial.price
            return now
        # The work arrays belong to the last relaxation: back to the better one.
        return max(value, self.relax_clusters(node, tau, 0, cut, gain))

    def near(self, node: ClusterNode, cut: float) -> float:
        """About how many sets of a relaxed node have a bound below the cut; infinite where that is unknown."""
        bound = float(self.result[3])
        if not self.shared or not bound < cut:
            return math.inf
        assert self.codes is not None
        return float(
            subset_sets.estimate(self.codes.base, self.number, self.savings, node.price, (cut - bound) * (1.0 + 1e-12))
        )

    def enumerate_near(self, node: ClusterNode, cut: float, most: float) -> float | None:
        """Proven bound of a node by trying the sets whose savings leave the bound below the cut; None if too many."""
        kept = np.flatnonzero(node.status == 1)
        room = int(node.free[0])
        margin = 2.0 * self.saving_error(len(kept) + room)
        if not margin < 0.1 * cut or not self.near(node, cut) <= most:
            return None
        gap, codes, m = self.gap(cut), self.codes, node.minorant
        assert codes is not None
        groups = len(m.block)
        root, order = np.empty(groups, np.int64), np.empty(groups, np.int64)
        size = groups + int(np.diff(codes.base) @ self.free_in)
        child, best = np.empty((size, 2), np.int64), np.empty(size)
        subset_sets.make_tries(
            codes.base, self.free_in, codes.code, self.number, self.savings, node.price, gap, child, best, root, order
        )
        free = np.concatenate(
            [
                m.member[
                    m.first[g]
                    + self.place[m.first[g] + self.kept_in[g] : m.first[g] + self.kept_in[g] + self.free_in[g]]
                ]
                for g in order
            ]
        )
        width = len(free)
        a, r = np.empty((width, width)), np.empty(width)
        base = subset_sets.eliminate(self.gram, self.b, kept, free, a, r)
        found = np.empty((EXACT, room), np.int64)
        count = subset_sets.near_sets(
            a, r, room, child, best, root, order, self.free_in, gap, self.low_energy - base - cut - margin, MOST_WORK,
            found,
        )  # fmt: skip
        if count < 0 or math.isnan(base):
            return None
        return self.evaluate(node.status, free, found[:count], cut)

    def _branch(self, node: ClusterNode, branch: int, free: Int) -> list[ClusterNode]:
        estimated = branch >= 0
        if not estimated:
            branch = int(free[np.argmax(np.abs(node.point[free]) * self.norm[free])])
        children = []
        for keep in (False, True):
            status, room, point = node.status.copy(), node.free.copy(), node.point.copy()
            status[branch] = 1 if keep else -1
            if keep:
                room[self.group[branch]] -= 1
            elif estimated:
                point -= point[branch] * self.column
            subset_tree.settle(self.group, room, status)
            self._drop_twins(status, np.flatnonzero((status == 1) & (node.status != 1)))
            children.append(ClusterNode(status, room, point, node.price, node.minorant, node.codes))
        return children


class _Adapter:
    """Shows the frontier the cluster form of the search."""

    def __init__(self, search: ClusterSearch) -> None:
        self.search = search

    @property
    def incumbent(self) -> Incumbent:
        """The search's own."""
        return self.search.incumbent

    @property
    def excluded(self) -> float:
        """The search's own."""
        return self.search.excluded

    def expand(self, node: ClusterNode, bound: float, cut: float) -> tuple[float, list[ClusterNode]]:
        """Bound and branch."""
        return self.search.expand_clusters(node, bound, cut)

    def fork(self, number: int) -> _Adapter:
        """Of another thread."""
        return _Adapter(self.search.fork(number))


def search_clusters(
    task: Task[Support], control: Control, most: int, steps: int, start: ClusterMinorant | None = None
) -> RawSolve:
    """Solve one channel of at least one live input.

    Parameters
    ----------
    task : Task
    control : Control
    most, steps, start
        See `ClusterSearch`.
    """
    search = ClusterSearch(task, control, most, steps, start)
    search.first_incumbents()
    if search.shared and search.size <= SMALL:
        # Where a diagonal alone gives a fair bound, its cheaper nodes win.
        fair = FAIR[0] + FAIR[1] * float(search.capacity[0]) / search.size
        single = search.root(0.8 * fair * search.incumbent.value)
        if search.root_bound >= fair * search.incumbent.value:
            return run_subset(search, single)
    if not search.affords(CLUSTER_CUBIC):
        # Without time to improve the blocks a diagonal proves more.
        return run_subset(search, search.root())
    root = search.cluster_root()
    late = control.remaining() <= 0
    if root is None or (late and search.root_bound < LATE * search.incumbent.value):
        # Without time to improve the blocks a diagonal proves more.
        return run_subset(search, search.root())
    unit = search.factor**-2
    # Certifying the root's dual point takes longer than many nodes: it is for those who ask for no nodes.
    dual = search.certifiable(root) if control.node_limit == 0 else None
    frontier: Frontier[ClusterNode] = Frontier(
        _Adapter(search), control, search.energy, root, search.root_bound, unit, task.constant
    )
    termination = frontier.run()
    lower = frontier.lower
    # Every bound carries its own rounding; what is left are single additions of values below the energy.
    return RawSolve(
        weights=search.incumbent.weights / search.factor,
        termination=termination,
        proof=SearchProof(lower * unit, 32 * UNIT * search.energy * unit) if lower > 0 else None,
        dual=dual,
        nodes=frontier.nodes,
        trace=tuple(frontier.trace),
    )
