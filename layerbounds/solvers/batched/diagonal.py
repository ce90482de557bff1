"""One diagonal minorant for all rows of a layer, fitted to some of them, and points for all."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Float, Int
from layerbounds.bounds.minorants.newton import ascend_newton
from layerbounds.solvers.batched.group import Group
from layerbounds.solvers.batched.lattice import LevelRows
from layerbounds.solvers.batched.points import Points, find_points, mean_spread, penalty
from layerbounds.solvers.batched.preparation import PreparedGram

#: Rows that the minorant is fitted to, and iterations after each fit.
SAMPLE, SAMPLE_ITERATIONS = 64, 20
#: Fits of the minorant to the rows, Newton steps of each, and iterations for all rows: up to so many inputs.
EFFORT = ((1024, (3, 20, 200)), (2048, (2, 6, 40)))
#: And beyond, where time counts more than the last per cent.
LEAST_EFFORT = (1, 5, 25)
#: Floors of the spreads and of what they add to the bound, relative to the mean, weight of new spreads, and the least
#: gain of a fit.
FLOOR, SIDE, NEW, GAIN = 0.02, 0.05, 0.5, 3e-3
#: Shares of the time that are left when the work on the minorant ends, and that on the points.
MINORANT_LATE, POINTS_LATE = 0.7, 0.5


def fit_diagonal(group: Group, prepared: PreparedGram, levels: LevelRows) -> tuple[Float, Points] | None:
    """A diagonal below ``prepared.gram`` that serves a sample of the rows, and points for all of them.

    The bound of a row gains (y − a)(b − y) from a unit of d_i, y the point's copy between the levels a and b: with the
    mean of that over the sample as the objective, the ascent goes on from the diagonal before.
    """
    sample = levels.part(sample_of(levels.rows))
    gram, d = prepared.gram, prepared.d
    a = np.zeros(len(gram))
    best: tuple[Float, float] | None = None
    fits, steps, iterations = next((effort for most, effort in EFFORT if len(gram) <= most), LEAST_EFFORT)
    for fit in range(fits + 1):
        setting = penalty(gram, d, group.arithmetic) if np.all(d > 0) else None
        if setting is None:
            break
        points = find_points(sample, d, setting, group.arithmetic, SAMPLE_ITERATIONS, group.threads)
        value = float(points.value @ sample.share)
        gain = np.inf if best is None else value - best[1]
        if gain > 0:
            best = d, value
        if gain <= GAIN * abs(value) or fit == fits or group.late(MINORANT_LATE):
            break
        group.report(f"minorant, fit {fit + 1} of {fits}")
        spread = lifted(mean_spread(points, sample), np.diag(gram))
        a = spread if fit == 0 else (1 - NEW) * a + NEW * spread
        d = ascend_newton(gram, a, d, steps=steps, arithmetic=group.arithmetic, stop=lambda: group.late(MINORANT_LATE))
    if best is None:
        return None
    if best[0] is not d or setting is None:
        d = best[0]
        setting = penalty(gram, d, group.arithmetic)
    if setting is None:
        return None

    def stop(iteration: int) -> bool:
        group.report(f"points {iteration} of {iterations}")
        return group.late(POINTS_LATE)

    return d, find_points(levels, d, setting, group.arithmetic, iterations, group.threads, stop=stop)


def sample_of(rows: int) -> Int:
    """Some of the rows, evenly spread."""
    return np.unique(np.linspace(0, rows - 1, min(SAMPLE, rows)).astype(np.int64))


def lifted(spread: Float, energy: Float) -> Float:
    """Every input counts a little, those of little energy included.

    Parameters
    ----------
    spread : ndarray of shape (n,)
    energy : ndarray of shape (n,)
        The diagonal of the Gram matrix.
    """
    side = SIDE * float(np.mean(spread * energy)) / energy
    return np.asarray(spread + FLOOR * float(np.mean(spread)) + side + np.finfo(np.float64).tiny)
