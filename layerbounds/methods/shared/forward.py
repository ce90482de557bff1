"""Forward selection of units."""

from __future__ import annotations

from layerbounds.arrays import Float
from layerbounds.methods.pruning import PruningView, finish
from layerbounds.methods.shared.units import Units


def forward(view: PruningView, exchanges: bool = True) -> Float:
    """Keep one more unit, the one that takes most from the error after all are re-optimised, until the pattern is full.

    Natarajan, "Sparse approximate solutions to linear systems" (SIAM J. Comput. 1995), with several right-hand sides
    Tropp, Gilbert & Strauss, "Algorithms for simultaneous sparse approximation" (Signal Processing 2006), here with
    exact gains.

    Parameters
    ----------
    view : PruningView
    exchanges : bool
        Whether a kept unit makes room for a dropped one afterwards, while that helps.
    """
    units = Units(view)
    kept = units.forward()
    return finish(view, (units.exchanged(kept) if exchanges else kept)[view.structure.unit])
