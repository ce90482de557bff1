"""How the interval of a band is narrowed: incumbents, relaxations with prices, rows with prices, enumeration."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np

from layerbounds.arrays import Bool, Float
from layerbounds.certify.interval import certify
from layerbounds.kernels import exact
from layerbounds.kernels.pruning.subset_diagonal import CACHED
from layerbounds.kernels.tiles.relaxation import FEW
from layerbounds.problems.tasks import Task
from layerbounds.problems.tiled_support import TiledSupport
from layerbounds.proofs import Control, RawSolve, Status
from layerbounds.search.pruning.dispatch import search_pruning
from layerbounds.search.pruning.exact_sets import nearly_singular
from layerbounds.search.tiles.band import Band, Row, make_band
from layerbounds.search.tiles.closing import close
from layerbounds.search.tiles.exact import row_task, search_exactly
from layerbounds.search.tiles.incumbents import scores
from layerbounds.search.tiles.movers import mover_of
from layerbounds.search.tiles.polish import Polish
from layerbounds.search.tiles.preparation import gram_data
from layerbounds.search.tiles.row import FIRST_STEPS, MOST_TREE, RowMinimum

#: Kicks of the first incumbents at a time, how often, and the share of the time limit for them.
KICKS, TURNS, FIRST = 100, 4, 0.1
#: Steps of the prices with relaxations, alternations with improvements of the diagonals, and rounds at each.
RELAXED, ALTERNATIONS, FEW_ROUNDS = 60, 3, 20
#: Length of the first step, and of the last one.
FIRST_SHARE, LEAST_SHARE = 0.3, 1e-3
#: Share of the time limit in which no diagonal is improved any more.
LATE = 0.05
#: Share of the time that is left for an improvement of all diagonals.
SHARPENED = 0.4
#: Nodes of a row at most, in one solve; steps of prices with solved rows.
MOST_NODES, STEPS = 20000, 200
#: How far prices move at first, in shares of the error an input; growth and shrinkage of that.
REACH, GROWTH, SHRINKAGE = 0.1, 1.5, 0.6
#: Steps end where programs promise less, or may move prices by less, than this share of the error.
ENOUGH = 1e-6
#: Prices that are moved by linear programs, and sets of a row in these, at most.
MOST_PRICES, MOST_SETS = 3000, 200
#: A gap from which on what is left is enumerated; the next trial asks for so much less.
NEAR, NEARER = 0.03, 0.3


def search_tiles(task: Task[TiledSupport], control: Control) -> RawSolve:
    """Solve a band of at least one live input."""
    singular = nearly_singular(task.gram)
    if singular:
        found = search_exactly(task, control)
        if found is not None:
            return found
    data = gram_data(task)
    band = make_band(task, control, data)
    polish = Polish(band)
    first_incumbents(band, polish)
    if task.allowed.refit and (singular or data.diagonal is None):
        return _rows_alone(band)
    move_relaxed(band)
    status = band.spent
    if status is None and len(task.gram) <= MOST_TREE and all(row.bounded for row in band.rows):
        status = move_solved(band, polish)
    if status is None:
        # Nothing is left to do within reach, and what is proven leaves the interval open.
        status = search_status(band)
    raw = band.result(status)
    if status is Status.UNRESOLVED:
        closed = search_exactly(task, control)
        return raw if closed is None else closed
    return raw


def search_status(band: Band) -> Status:
    """What it means that a search has ended by itself."""
    if band.lower < band.goal:
        return Status.UNRESOLVED
    return Status.GAP_REACHED if band.control.gap > 0 else Status.OPTIMAL


def first_incumbents(band: Band, polish: Polish) -> None:
    """The warm start and masks of several scores, each with the best masks of its groups, and kicks for the best."""
    task, allowed = band.task, band.task.allowed
    starts: list[Bool] = []
    if task.warm_start is not None:
        starts.append(np.atleast_2d(task.warm_start) != 0.0)
    own = task.targets if allowed.refit else allowed.original
    starts += [allowed.best_mask(score) for score in scores(task.gram, own)]
    # The best one first: of large bands no other one is improved.
    starts = [starts[i] for i in np.argsort([band.offer(start) for start in starts], kind="stable")]
    best, least = starts[0], math.inf
    for number, start in enumerate(starts):
        if number and not polish.affords(FIRST):
            break
        start = polish.improve(start, 0)
        value = band.offer(start)
        if value < least:
            best, least = start, value
    for _ in range(TURNS if polish.descent is not None else 0):
        if not polish.affords(FIRST):
            break
        best = polish.improve(best, KICKS)


def move_relaxed(band: Band) -> None:
    """Steps of the prices with relaxations of the rows, in turn with improvements of the rows' diagonals."""
    control, x = band.control, np.zeros(band.prices.size)
    mover = mover_of(band.prices)
    sharpen(band, x, FIRST_STEPS)
    band.keep_dual(x)
    rounds = FEW_ROUNDS if len(band.task.gram) <= CACHED else FEW
    for _ in range(ALTERNATIONS):
        if control.remaining() <= LATE * control.time_limit:
            break
        best, weight = relaxed(band, x, rounds)
        band.keep_dual(x)
        share = FIRST_SHARE
        for _ in range(RELAXED):
            if share < LEAST_SHARE or control.remaining() <= 0:
                break
            trial = mover.propose(weight, max(band.upper - best, 0.0), share)
            for row, z in zip(band.rows, weight, strict=True):
                row.restart(z)
            value, following = relaxed(band, trial, rounds)
            if value > best:
                x, best, weight, share = trial, value, following, 1.1 * share
                mover.accept()
                band.keep_dual(x)
            else:
                share *= 0.7
        if control.remaining() <= LATE * control.time_limit:
            break
        for row, z in zip(band.rows, weight, strict=True):
            row.restart(z)
        sharpen(band, x, 2 * ALTERNATIONS)
        band.keep_dual(x)
    band.best = x


def sharpen(band: Band, x: Float, steps: int) -> None:
    """Improve the diagonals of all rows for some prices, in a share of the time that is left."""
    control = band.control
    until = control.elapsed() + SHARPENED * control.remaining()
    for number, (row, price) in enumerate(zip(band.rows, band.prices.spread(x), strict=True)):
        now = control.elapsed()
        row.sharpen(price, steps, now + (until - now) / (len(band.rows) - number))


def relaxed(band: Band, x: Float, rounds: int) -> tuple[float, Float]:
    """What relaxations of the rows give with some prices, and how much of each input they keep, shape (rows, n)."""
    total, weights = 0.0, []
    for row, price in zip(band.rows, band.prices.spread(x), strict=True):
        total += row.relax(price, rounds)
        weights.append(row.z.copy())
    return total - band.prices.largest(x)[0], np.array(weights)


def move_solved(band: Band, polish: Polish) -> Status | None:
    """Prices from linear programs, rows solved with them, and the enumeration of what is left."""
    control, prices = band.control, band.prices
    # A node limit has to give the same result on every machine.
    seconds = max(0.3 * control.time_limit, 1.0) if control.node_limit is None else math.inf
    x = band.best
    value, minima = band.solve_rows(x, MOST_NODES, seconds)
    band.raise_to(value, x, ends(minima))
    polish.repair(np.array([minimum.kept for minimum in minima]))
    if np.any(x) and band.lower < band.goal and band.spent is None:
        nothing = np.zeros(prices.size)
        alone, minima = band.solve_rows(nothing, MOST_NODES, seconds)
        if band.raise_to(alone, nothing, ends(minima)):
            value, x = alone, nothing
    reach = np.full(prices.size, REACH * max(band.upper, 0.0) / max(prices.n, 1))
    ready = NEAR
    for _ in range(STEPS):
        if not band.lower < band.goal:
            return None
        status = band.spent
        if status is not None:
            return status
        gap = 1.0 - band.lower / band.upper
        if gap <= ready:
            if close(band, x):
                return None
            ready = NEARER * gap
            continue
        proposed = _proposed(band, x, reach)
        if proposed is None:
            break
        trial, promised = proposed
        found, minima = band.solve_rows(trial, MOST_NODES, seconds)
        polish.repair(np.array([minimum.kept for minimum in minima]))
        if found > value + 0.1 * (promised - value):
            reach *= GROWTH
        else:
            reach *= SHRINKAGE
        if found > value:
            value, x = found, trial
        band.raise_to(found, trial, ends(minima))
        if promised - value < ENOUGH * band.upper or np.max(reach) < ENOUGH * band.upper:
            break
    return None if close(band, band.best) else band.spent


def ends(minima: list[RowMinimum]) -> list[float]:
    """Their lower ends."""
    return [minimum.lower for minimum in minima]


def _proposed(band: Band, x: Float, reach: Float) -> tuple[Float, float] | None:
    """The next prices and what they would prove; None where they are too many for a program."""
    if band.prices.size > MOST_PRICES:
        return None
    pools = [pool(row, price) for row, price in zip(band.rows, band.prices.spread(x), strict=True)]
    return band.prices.propose(pools, x, reach)


def pool(row: Row, price: Float) -> list[tuple[Bool, float]]:
    """The sets that were met and are best with some prices, and their errors."""
    found = [(np.frombuffer(key, dtype=bool), error) for key, error in row.known.items() if math.isfinite(error)]
    if len(found) <= MOST_SETS:
        return found
    total = np.array([error for _, error in found]) + np.array([kept for kept, _ in found]) @ price
    return [found[i] for i in np.argsort(total, kind="stable")[:MOST_SETS]]


def _rows_alone(band: Band) -> RawSolve:
    """Rows without the limits: where the Gram matrix is singular, and prices have nothing to work with."""
    task, control = band.task, band.control
    rows, masks = len(task.targets), []
    least: list[float] = []
    for row in range(rows):
        share = control.elapsed() + control.remaining() / (rows - row)
        one = row_task(task, row)
        raw = search_pruning(one, replace(control, time_limit=share))
        certified = certify(one, raw, 0.0)
        band.nodes += raw.nodes
        least.append(certified.lower)
        masks.append(certified.weights != 0.0)
    band.raise_to(exact.float_below(sum(map(Fraction, least), Fraction(0))), band.best, least)
    kept = np.array(masks)
    if not task.allowed.limits.excess(kept):
        band.offer(kept)
    return band.result(band.spent or search_status(band))
