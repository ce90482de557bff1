"""How far the next of several rising targets may be: the nodes of a search grow about exponentially with its target."""

from __future__ import annotations

import math

#: Logarithm of the nodes over the target's share of the upper bound: first guess, before it is measured.
SLOPE = 45.0
#: A search may cost at most so many times the last one, and is given up at so many times the estimate.
MOST_GROWTH, OVERRUN = 6.0, 3.0
#: Longest step of the target while searches are cheap, as a share of the upper bound.
LONGEST_STEP = 0.05


class Rising:
    """The step to the next target, as a share of the upper bound, by the growth seen in the last two searches.

    Parameters
    ----------
    step : float
        First step.
    cheap : float
        Searches of fewer nodes tell nothing about the growth.

    Attributes
    ----------
    step : float
    """

    def __init__(self, step: float, cheap: float) -> None:
        self.step = step
        self._cheap = cheap
        self._history: list[tuple[float, float]] = []
        self._growth = 1.0

    @property
    def measured(self) -> bool:
        """Whether a search was more than cheap."""
        return bool(self._history)

    def budget(self, first: float) -> float:
        """Nodes at which the next search is given up; ``first`` as long as nothing is measured."""
        return OVERRUN * self._history[-1][1] * self._growth if self._history else first

    def missed(self) -> None:
        """The last search was too expensive: aim between what is proven and what was tried."""
        self.step *= 0.5

    def reached(self, target: float, spent: float, available: float) -> None:
        """The last search ended.

        Parameters
        ----------
        target : float
            As a share of the upper bound.
        spent : float
            Its nodes.
        available : float
            What is left of the limits, in units of what it took: the next one may take most of that.
        """
        if spent < self._cheap:
            self.step = min(1.5 * self.step, LONGEST_STEP)
            return
        self._history.append((target, spent))
        slope = SLOPE
        if len(self._history) > 1 and self._history[-1][1] > self._history[-2][1]:
            (t0, n0), (t1, n1) = self._history[-2:]
            slope = min(max(math.log(n1 / n0) / max(t1 - t0, 1e-6), 0.7 * SLOPE), 3.0 * SLOPE)
        self._growth = min(max(0.5 * available, 1.3), MOST_GROWTH)
        self.step = math.log(self._growth) / slope
