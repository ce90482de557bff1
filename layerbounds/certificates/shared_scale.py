"""One scale for several rows: parts of the scales with what each row reaches there, found anew below a known cut."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np

from layerbounds.arrays import Float
from layerbounds.certificates.dual import Parts
from layerbounds.certificates.rays import LOSS, MARGIN, MOST_PARTS, PRICE, Priced, Trees, small_scales
from layerbounds.problems.scaled import ScaledLevels
from layerbounds.problems.tasks import Task
from layerbounds.proofs import Control, ScaleMinorant
from layerbounds.search.quantization.preparation import order_exponent, prepare
from layerbounds.search.scale.tensor import Interval, TensorSearch

#: Widths of parts, and of those in which choices are listed, in units of those of single rows.
ALONE, LISTED = 1.0, 0.5
#: Choices of rows are not listed up to errors above this share of that without weights: nearly all codes count there.
MOST_ENERGY = 0.5
#: The price of scales outside a part, in units of that of single rows: codes that are good at other scales are many.
DEARER = 5.0
#: Seconds of a search that is repeated, and what is proven beyond the claim.
MOST_SECONDS, BEYOND = 60.0, 4.0 * MARGIN


class _Logged(TensorSearch):
    """A search up to a known lower end, which keeps all intervals that it has not divided."""

    def __init__(self, task: Task[ScaledLevels], lower: float) -> None:
        gram, allowed = task.gram, task.allowed
        prep = prepare(gram, order_exponent(len(gram)))
        control = Control(MOST_SECONDS, 0.0, None, 0, 1, threading.Event())
        self.lower_end, self.intervals = lower, dict[int, Interval]()
        super().__init__(prep, task.targets, allowed.boxes(), allowed.limit, False, task.constant, control)

    @property
    def goal(self) -> float:
        """Just above the claim."""
        return self.lower_end * (1.0 + BEYOND)

    def _push(self, interval: Interval) -> None:
        self.intervals[id(interval)] = interval
        super()._push(interval)

    def _halves(self, interval: Interval) -> Iterator[Interval]:
        del self.intervals[id(interval)]
        return super()._halves(interval)


def shared_scale_search(task: Task[ScaledLevels], lower: float) -> tuple[Parts, ScaleMinorant] | None:
    """As `rays.ray_search`, of rows that share their scale; None where there is none."""
    allowed = task.allowed
    if allowed.groups > 1 or allowed.powers_of_two or np.isfinite(allowed.limit) or not lower > 0.0:
        return None
    search = _Logged(task, lower)
    if search.run().proven < lower * (1.0 + MARGIN):
        return None
    prep, order = search.prep, search.prep.order
    deviation = search.scale * search.codes - search.targets
    # What a row reaches elsewhere is more than its error at the best scale, where that is small.
    errors = np.maximum(np.sum((deviation @ prep.gram) * deviation, axis=1), 0.5 * lower / len(search.targets))
    errors = np.minimum(errors, 0.5 * search.energies)
    rows = [
        Priced(task.gram, target, error, prep, DEARER)
        for target, error in zip(task.targets, errors.tolist(), strict=True)
    ]
    narrowest = float(np.sqrt(LOSS / (PRICE * DEARER * len(order))))
    trees = Trees()
    least: list[Float] = []
    for box, row_trees in enumerate(search.trees):
        own = sorted((i for i in search.intervals.values() if i.box == box), key=lambda i: -i.last)
        upper = own[0].last / search.unit
        tail = np.array([small_scales(tree.ray, upper * search.unit) for tree in row_trees]) * search.unit
        parts, ends = [(-1, tail)], [1.0 / upper]
        least.append(np.zeros(len(rows)))
        pieces = [(i.first / search.unit, i.lower) for i in own]
        # Beyond the largest scale that counts no row has a smaller error than without weights.
        pieces.append((0.0, search.energies))
        for last, reached in pieces:
            reached = np.maximum(reached, 0.0) * (1.0 - MARGIN)
            reached = reached * min(1.0, lower * (1.0 + MARGIN) / max(float(reached.sum()), lower * MARGIN))
            spare = max(lower - float(reached.sum()), 0.0)
            if spare > 0.0 and np.any(reached + spare > MOST_ENERGY * search.energies):
                return None
            while upper > last:
                width = narrowest * (ALONE if float(reached.sum()) >= lower else LISTED)
                step = upper * (1.0 - width) / (1.0 + width)
                middle = last if last == 0.0 or step < last * (1.0 + 0.1 * width) else step
                codes = search.boxes[box]
                tilts = [row.tilt(codes, middle, upper, float(cut))[0] for row, cut in zip(rows, reached, strict=True)]
                parts.append((-2, np.array(tilts)))
                ends.append(1.0 / middle if middle > 0.0 else np.inf)
                least.append(reached)
                upper = middle
            if len(parts) > MOST_PARTS:
                return None
        trees.add(parts, ends[:-1])
    tensors = [row.tensors() for row in rows]
    stacked = {name: np.array([one[name] for one in tensors]) for name in tensors[0]}
    d = np.empty(len(order))
    d[order] = prep.minorants[-1]
    return {**trees.parts(), **stacked, "lower": np.array(least)}, ScaleMinorant(d, np.zeros((len(d), 0)), np.zeros(0))
