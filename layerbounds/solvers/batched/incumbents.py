"""Weights for all rows from their allowed sets: rows with the same codes are rounded together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from layerbounds.arrays import Float
from layerbounds.problems.levels import Levels
from layerbounds.solvers.batched.rounding import round_rows


def round_allowed(
    gram: Float,
    targets: Float,
    allowed: Sequence[Levels],
    *,
    points: Float | None = None,
    warm_starts: Float | None = None,
    threads: int = 1,
    seed: int = 0,
    effort: float = 1.0,
    remaining: Callable[[], float] = lambda: math.inf,
    report: Callable[[str], None] | None = None,
) -> Float:
    """Find allowed weights of small error; arguments as in `round_rows`.

    Rows whose inputs have different lists of codes, as codebooks with scales of both signs have, are rounded to the
    nearest levels.

    Parameters
    ----------
    allowed : sequence of Levels
        Of each row; asked for twice.

    Returns
    -------
    ndarray of shape (rows, n)
        Entries of the rows' ``values``, exactly.
    """
    rows, n = targets.shape
    weights = np.empty((rows, n))
    scale, zero, fixed = np.empty((rows, n)), np.empty((rows, n)), np.zeros((rows, n), dtype=bool)
    alike: dict[bytes, list[int]] = {}
    for r in range(rows):
        levels = allowed[r]
        scale[r], zero[r] = levels.scale, levels.zero_point
        fixed[r] = single = levels.count < levels.codes.shape[1]
        free = levels.codes[~single]
        if len(free) and np.all(free == free[:1]):
            alike.setdefault(free[0].tobytes(), []).append(r)
        else:
            weights[r] = levels.nearest(targets[r] if points is None else np.asarray(points[r], dtype=np.float64))
    if not fixed.any() and np.all(scale == scale[:, :1]) and np.all(zero == zero[:, :1]):
        scale, zero = scale[:, :1], zero[:, :1]
    for key, members in alike.items():
        choice = round_rows(
            gram,
            targets[members],
            np.frombuffer(key),
            scale[members],
            zero[members],
            fixed=fixed[members] if fixed.any() else None,
            points=None if points is None else points[members],
            warm_starts=None if warm_starts is None else warm_starts[members],
            threads=threads,
            seed=seed,
            effort=effort,
            remaining=remaining,
            report=report,
        )
        for r, picked in zip(members, choice, strict=True):
            weights[r] = allowed[r].values[np.arange(n), picked]
    return weights
