"""Local search of a band: how much of it there is time for."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Bool
from layerbounds.search.tiles.band import Band
from layerbounds.search.tiles.incumbents import TileDescent, scores

#: Kicks after each step of the prices, for masks made of the rows' sets and for the best ones.
REPAIRED = 30
#: Share of the time that is left for the kicks of one call; a kick in local searches without one.
SHARE, KICK = 0.05, 0.5
#: Share of the time that is left that a local search may take; seconds of it for an entry of a row's tableau and sweep.
MOST, SWEEP = 0.4, 3e-9


class Polish:
    """Local search of a band from masks near allowed ones.

    Parameters
    ----------
    band : Band
    """

    def __init__(self, band: Band) -> None:
        self.band, self.descent = band, TileDescent.of(band.task.allowed)
        entropy = [band.control.seed, band.task.channel]
        self.state = np.array([np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] | 1])
        own = band.task.targets if band.task.allowed.refit else band.task.allowed.original
        score = next(scores(band.task.gram, own))
        self.score = score / max(float(score.max(initial=0.0)), 1e-300)
        #: Seconds of the fastest local search without kicks; before there was one, what it should take.
        rows, n = band.task.targets.shape
        self.searched = False
        self.once = SWEEP * float(np.minimum(band.task.allowed.structure.capacity, n).sum()) * rows * n * n

    def affords(self, share: float) -> bool:
        """Whether one more local search ends in a share of the time limit, or limits are others."""
        control = self.band.control
        return control.node_limit is not None or control.elapsed() + self.once <= share * control.time_limit

    def improve(self, mask: Bool, kicks: int) -> Bool:
        """Better masks, which are offered."""
        control = self.band.control
        timed = control.node_limit is None
        if (
            self.descent is not None
            and control.time_limit > 0
            and not (timed and self.once >= MOST * control.remaining())
        ):
            if timed:
                kicks = min(kicks, int(SHARE * control.remaining() / (KICK * self.once)))
            began = control.elapsed()
            mask = self.descent.improve(self.band.task, mask, kicks, self.state)
            spent = (control.elapsed() - began) / (1.0 + KICK * kicks)
            self.once = min(self.once, spent) if self.searched else spent
            self.searched = True
        self.band.offer(mask)
        return mask

    def repair(self, wanted: Bool) -> None:
        """Allowed masks with as much as possible of some that need not be allowed, and local search from there."""
        if self.band.control.node_limit is None and self.band.control.remaining() <= 0:
            return
        self.improve(self.band.task.allowed.best_mask(wanted + 0.1 * self.score), REPAIRED)
        kept = self.band.incumbent.weights != 0.0
        self.improve(kept, REPAIRED)
