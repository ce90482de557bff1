"""Enumerations of the whole problem below rising targets, beside the tree (docs/joint-engine.md)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from layerbounds.arrays import Float
from layerbounds.search.joint.enumeration import Enumeration, EnumerationBasis, NodeLists
from layerbounds.search.rising import Rising

#: Smoothings of the relaxations that are compared for an enumeration, in units of the gap divided by the root of the
#: number of inputs, and what share above the least logarithm of the number of points is near enough.
WIDTHS, NEARLY = (0.1, 0.15, 0.2, 0.3, 0.5, 0.8), 1.12
#: Nodes of the attempt to close the problem at once, with one group and with several, those between two looks at the
#: clock, those below which a search tells nothing, and those after which the first target is given up.
LEAD, LEAD_GROUPS, PART, CHEAP, FIRST = 5_000_000, 300_000, 1 << 15, 50_000.0, 2e6
#: Smoothings are compared at targets that take so many nodes; a better one takes this share of them.
LEARN, SHORTER = (20_000, 500_000), 0.8
#: The next target may take half of so many times what the last one took: the tree has the rest of the time.
PATIENCE = 12.0
#: First step of the target, as a share of what is open.
STEP = 0.1
#: Rounding may hide this share of the incumbent's value.
MOST_HIDDEN = 4e-7
#: The last target is above the goal by this share of the incumbent's value, as rounding is deducted.
ABOVE = 4.5e-7


@dataclass(frozen=True, eq=False)
class Start:
    """Where an enumeration begins: a relaxation's value, point and prices."""

    value: float
    x: Float
    price: Float


@dataclass(frozen=True, eq=False)
class Part:
    """What is left of the whole problem below a target.

    Attributes
    ----------
    lists : NodeLists
    smoothed : callable
        Its relaxation with a smoothing τ and a value that can be reached.
    """

    lists: NodeLists
    smoothed: Callable[[float, float], Start]


class Deep:
    """State of the enumerations; what they have proven.

    Parameters
    ----------
    basis : EnumerationBasis
    d : ndarray of shape (n,)
        The root's minorant.
    bound : float
        The root's.
    shift : ndarray of shape (n,) or None
    groups : int
    below : callable
        What is left of the whole problem below a target.
    """

    def __init__(
        self,
        basis: EnumerationBasis,
        d: Float,
        bound: float,
        shift: Float | None,
        groups: int,
        below: Callable[[float], Part | None],
    ) -> None:
        self._basis, self._d, self._shift, self._below = basis, d, shift, below
        self._bound = bound
        #: Everything below has been searched; rounding is deducted.
        self.proven = 0.0
        self.nodes = 0
        #: Smoothing of the last search, as in ``WIDTHS``.
        self.width, self._index = WIDTHS[0], 0
        self.given_up = False
        self._search: Enumeration | None = None
        #: Nodes of the first attempt.
        self.lead = LEAD if groups == 1 else LEAD_GROUPS
        self._target, self._budget = 0.0, float(self.lead)
        self._rising: Rising | None = None
        #: The smoothing that was best so far, those to compare it with at the last target, and what it took there.
        self._learned: int | None = None
        self._trials: list[int] = []
        self._least = 0

    def begin(self, target: float, index: int | None = None) -> None:
        """Search below a target, with one of ``WIDTHS``.

        A relaxation smoothed with width τ bounds the number of points that cost less than the target in it by
        exp((target − value)/τ). Its point is a better start than the root's: at first the narrowest that nearly
        minimises this. No search is left where reduced costs say that there is nothing below the target.
        """
        self._target = target
        part = self._below(target)
        if part is None:
            return
        scale = (target - self._bound) / math.sqrt(len(self._d))
        if index is None:
            logarithms = []
            for width in WIDTHS:
                value = (target - part.smoothed(width * scale, target).value) / (width * scale)
                logarithms.append(max(value, 0.0) if math.isfinite(value) else math.inf)
            index = next(k for k in range(len(WIDTHS)) if logarithms[k] <= NEARLY * min(logarithms))
        self._index, self.width = index, WIDTHS[index]
        start = part.smoothed(self.width * scale, target)
        self._search = Enumeration(self._basis, part.lists, start.x, self._d, start.price, target, self._shift)

    def advance(
        self,
        due: float,
        lower: float,
        goal: Callable[[], float],
        upper: Callable[[], float],
        offer: Callable[[Float], None],
        remaining: Callable[[], float],
    ) -> None:
        """Go on until so many nodes are spent, everything below the goal is searched, or the time is out.

        Parameters
        ----------
        due : float
        lower : float
            A bound proven otherwise.
        goal : callable
            The bound that ends the work, with the present incumbent.
        upper : callable
            The incumbent's value.
        offer : callable
            Takes better weights.
        remaining : callable
            Seconds left.
        """
        spent = 0
        while not self.given_up and self.nodes < due and self.proven < goal() and remaining() > 0:
            if self._search is None:
                self._next(max(lower, self.proven, self._bound), min(goal() + ABOVE * upper(), upper()))
                spent = 0
                if self._search is None:
                    self.nodes += 1
                    self.proven = max(self.proven, self._target)
                    if self._rising is not None:
                        self._reached(1, upper())
                continue
            search, known, before = self._search, self._search.found, self._search.nodes
            search.lower(upper())
            done = search.run(PART)
            self.nodes += max(search.nodes - before, 1)
            spent = search.nodes
            if search.found > known and (weights := search.weights) is not None:
                offer(weights)
            if not search.allowance <= MOST_HIDDEN * upper():
                self.given_up = True
            elif done:
                self.proven = max(self.proven, search.cut - search.allowance)
                self._search = None
                if self._rising is not None:
                    self._reached(spent, upper())
            elif spent >= self._budget:
                self._search = None
                if self._trials:
                    # The smoothing that is known is better.
                    self._trials.pop()
                elif self._rising is None:
                    open_ = 1.0 - max(lower, self.proven, self._bound) / upper()
                    self._rising = Rising(max(STEP * open_, 1e-3), CHEAP)
                else:
                    self._rising.missed()

    def _reached(self, spent: int, upper: float) -> None:
        """A target is reached: go on, or compare smoothings there."""
        assert self._rising is not None
        if self._trials:
            self._trials.pop()
            if spent < self._least:
                self._least, self._learned = spent, self._index
            return
        self._least, self._learned = spent, self._index
        if LEARN[0] <= spent <= LEARN[1]:
            self._trials = [k for k in (self._index - 1, self._index + 1) if 0 <= k < len(WIDTHS)]
        self._rising.reached(self._target / upper, float(max(spent, 1)), PATIENCE)

    def _next(self, current: float, goal: float) -> None:
        """The next target."""
        if self._rising is None:
            self.begin(goal)
            return
        if self._trials:
            self._budget = SHORTER * self._least
            self.begin(self._target, self._trials[-1])
            return
        self._budget = max(self._rising.budget(FIRST), CHEAP)
        self.begin(min(current + self._rising.step * goal, goal), self._learned)
