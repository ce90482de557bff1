"""Good weights for all rows that share a Gram matrix: GPTQ in several orders, then pools of roundings that evolve."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerbounds.arrays import Bool, Float, Int
from layerbounds.kernels.batched.evolution import evolve
from layerbounds.kernels.batched.levels import deviations, round_nearest
from layerbounds.solvers.batched.successive import Choice, Shifts, round_in_order, shifts_in_order

#: Rows that are treated at a time, whatever the number of threads: products of other sizes round differently.
CHUNK = 64
#: Up to so many inputs errors are compared in double precision.
DOUBLE = 1024
#: Up to so many inputs factorizations are in double precision; beyond them memory and time count.
FACTOR_DOUBLE = 2048
#: Members of a row's pool for up to so many inputs; fewer beyond the last.
MEMBERS = ((448, 8), (1024, 4), (2048, 3))
FEWEST = 2
#: Moves of a tabu search after its last improvement.
PATIENCE = 60
#: Children of a row's pool, in multiples of its members, at an effort of 1, for up to so many inputs.
CHILDREN = ((448, 8), (1024, 3), (2048, 1))
FEW_CHILDREN = 0.25
#: Up to so many inputs all members are improved for themselves; beyond them only the best one.
DESCEND_ALL = 2048
#: Share of the mean diagonal that is added for each order's factorization: where a few inputs have most of the energy,
#: the usual 0.01 drowns all others.
DAMPS = (1e-3, 1e-3, 1e-3, 1e-4)
#: Steps of weights that have a single level, in units of the others.
VANISHING = 1e-60
#: How far random orders stray from that of the diagonal, in standard deviations of its logarithm.
STRAY = 0.5


@dataclass(frozen=True, eq=False)
class _Rows:
    """All rows, in units that suit single precision."""

    gram: NDArray[Any]
    single: NDArray[np.float32]
    targets: Float
    codes: Float
    scale: Float
    zero: Float
    group: Int
    uniform: bool

    def part(self, rows: slice) -> _Rows:
        return _Rows(
            self.gram, self.single, self.targets[rows], self.codes, self.scale[rows], self.zero[rows], self.group,
            self.uniform,
        )  # fmt: skip

    def nearest(self, points: Float) -> Choice:
        """The codes nearest to points in these units."""
        choice = np.empty(points.shape, dtype=np.int16)
        round_nearest(points, self.codes, self.scale, self.zero, self.group, self.uniform, choice)
        return choice

    def in_order(self, shifts: Shifts) -> Choice:
        """GPTQ."""
        choice = np.empty(self.targets.shape, dtype=np.int16)
        round_in_order(shifts, self.targets, self.codes, self.scale, self.zero, self.group, self.uniform, choice)
        return choice

    def assess(self, pool: Choice) -> tuple[Float, NDArray[np.float32]]:
        """Errors and half their derivatives, shapes (rows, members) and (rows, members, n)."""
        double = len(self.gram) <= DOUBLE
        matrix: Any = self.gram if double else self.single
        values, gradients = np.empty(pool.shape[:2]), np.empty(pool.shape, dtype=np.float32)
        error = np.empty(self.targets.shape, dtype=matrix.dtype)
        for k in range(pool.shape[1]):
            deviations(pool[:, k], self.targets, self.codes, self.scale, self.zero, self.group, error)
            gradient = error @ matrix
            values[:, k] = np.einsum("ri,ri->r", error, gradient, dtype=np.float64)
            gradients[:, k] = gradient
        return values, gradients


def round_rows(
    gram: Float,
    targets: Float,
    codes: Float,
    scale: Float,
    zero_point: Float,
    *,
    group: Int | None = None,
    fixed: Bool | None = None,
    points: Float | None = None,
    warm_starts: Float | None = None,
    threads: int = 1,
    seed: int = 0,
    effort: float = 1.0,
    remaining: Callable[[], float] = lambda: math.inf,
    report: Callable[[str], None] | None = None,
) -> Choice:
    """Find levels of small error (q − w)ᵀH(q − w) for each row w of ``targets``.

    The result depends on the seed, not on the threads, unless the time runs out. `level_values` gives the weights.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
        H, possibly singular; its diagonal is positive.
    targets : ndarray of shape (rows, n)
    codes : ndarray of shape (levels,)
        Sorted and distinct; the levels are ``scale[r, g] * (codes - zero_point[r, g])`` for row r and group g.
    scale, zero_point : ndarray of shape (rows, 1), (rows, n) or (rows, groups)
        Scales are positive.
    group : ndarray of int, shape (n,), optional
        Scale group of each input; needed unless there are 1 or n.
    fixed : ndarray of bool, shape of ``scale``, optional
        Where the first code is the only one.
    points : ndarray of shape (rows, n), optional
        Solutions of a relaxation; their nearest levels are candidates.
    warm_starts : ndarray of shape (rows, n), optional
        Weights to improve on.
    threads : int
    seed : int
    effort : float
        Multiple of the usual number of recombinations; infinite: until the time is over.
    remaining : callable
        Seconds left.
    report : callable, optional
        Called with what is done at the moment.

    Returns
    -------
    ndarray of int16, shape (rows, n)
        Indices of codes.
    """
    rows, n = targets.shape
    data = _in_units(gram, targets, codes, scale, zero_point, group, fixed)
    if n == 0 or rows == 0 or len(codes) == 1:
        return np.zeros(targets.shape, dtype=np.int16)
    units = data.unit
    work = _Work(data.rows, threads, remaining, report)
    candidates = [data.rows.targets]
    for extra in (points, warm_starts):
        if extra is not None:
            candidates.append(np.asarray(extra, dtype=np.float64) / units)
    pool = work.start(candidates, seed)
    rng = np.random.default_rng([seed, 1])
    states: NDArray[np.uint64] = np.asarray(rng.integers(1, 2**63, rows), dtype=np.uint64)
    first = pool[:, 0].copy()
    members = pool.shape[1]
    work.evolve(pool, states, members if n <= DESCEND_ALL else 1, 0, "descents")
    children = _by_size(CHILDREN, FEW_CHILDREN, n) * members * effort
    children = children if math.isinf(children) else math.floor(children)
    done = 0
    while done < children and remaining() > 0 and min(children, remaining()) < math.inf:
        share = int(min(4 * members, children - done))
        work.evolve(pool, states, 0, share, f"recombination {done:.0f} of {children:.0f}")
        done += share
    return work.best(np.concatenate([pool, first[:, None]], axis=1))


def level_values(choice: Choice, codes: Float, scale: Float, zero_point: Float, group: Int | None = None) -> Float:
    """The levels of indices that `round_rows` returned, exactly as `Grid.levels` computes them."""
    columns = slice(None) if group is None else group
    return np.asarray(scale[:, columns] * (codes[choice] - zero_point[:, columns]) + 0.0)


@dataclass(frozen=True, eq=False)
class _Scaled:
    rows: _Rows
    unit: Float


def _in_units(
    gram: Float,
    targets: Float,
    codes: Float,
    scale: Float,
    zero_point: Float,
    group: Int | None,
    fixed: Bool | None,
) -> _Scaled:
    """A mean of 1 on the diagonal, and steps of at most 1 in each row."""
    rows, n = targets.shape
    groups = np.shape(scale)[1]
    if group is None:
        group = np.arange(n) if groups == n else np.zeros(n, dtype=np.int64)
    scale, zero = (np.array(np.broadcast_to(a, (rows, groups)), dtype=np.float64) for a in (scale, zero_point))
    codes = np.ascontiguousarray(codes, dtype=np.float64)
    gap = float(np.max(np.diff(codes), initial=0.0)) or 1.0
    unit = np.max(scale, axis=1, keepdims=True, initial=0.0) * gap
    if fixed is not None:
        # With steps that vanish in single precision all codes are one level, and none is moved.
        zero = np.where(fixed, (zero - codes[0]) * (scale / unit / VANISHING) + codes[0], zero)
        scale = np.where(fixed, unit * VANISHING, scale)
    single = np.empty((n, n), dtype=np.float32)
    mean = float(np.mean(np.diag(gram))) if n else 1.0
    # In parts, without a second matrix in double precision.
    np.divide(gram, mean or 1.0, out=single, casting="unsafe")
    matrix: NDArray[Any] = gram / (mean or 1.0) if n <= FACTOR_DOUBLE else single
    uniform = bool(np.array_equal(codes - codes[:1], np.arange(len(codes))))
    data = _Rows(
        matrix, single, np.ascontiguousarray(targets / unit), codes, scale / unit, zero,
        np.ascontiguousarray(group, dtype=np.int64), uniform,
    )  # fmt: skip
    return _Scaled(data, unit)


def _by_size(table: Sequence[tuple[int, float]], beyond: float, n: int) -> float:
    return next((value for most, value in table if n <= most), beyond)


class _Work:
    """Stages of the work on all rows, in chunks that threads share."""

    def __init__(
        self,
        data: _Rows,
        threads: int,
        remaining: Callable[[], float],
        report: Callable[[str], None] | None,
    ) -> None:
        self._data, self._threads, self._remaining = data, threads, remaining
        self._report = report or (lambda text: None)

    def _chunks(self, work: Callable[[slice], None]) -> None:
        rows = len(self._data.targets)
        slices = [slice(a, min(a + CHUNK, rows)) for a in range(0, rows, CHUNK)]
        with ThreadPoolExecutor(max_workers=max(self._threads, 1)) as executor:
            for future in [executor.submit(work, part) for part in slices]:
                future.result()

    def start(self, candidates: list[Float], seed: int) -> Choice:
        """Pools of roundings, shape (rows, members, n); the best comes first."""
        data = self._data
        n = len(data.gram)
        members = int(_by_size(MEMBERS, FEWEST, n))
        pool = np.stack([data.nearest(c) for c in candidates], axis=1)
        for k, order in enumerate(_orders(data.gram, members, seed)):
            if self._remaining() <= 0:
                break
            self._report(f"rounding in order {k + 1} of {members}")
            shifts = shifts_in_order(data.gram, order, DAMPS[min(k, len(DAMPS) - 1)])
            found = np.empty(data.targets.shape, dtype=np.int16)

            def work(part: slice, shifts: Shifts = shifts, found: Choice = found) -> None:
                found[part] = data.part(part).in_order(shifts)

            self._chunks(work)
            pool = np.concatenate([pool, found[:, None]], axis=1)
        chosen = np.empty((len(pool), min(members, pool.shape[1]), n), dtype=np.int16)

        def choose(part: slice) -> None:
            values, _ = data.part(part).assess(pool[part])
            best = np.argsort(values, axis=1, kind="stable")[:, : chosen.shape[1], None]
            chosen[part] = np.take_along_axis(pool[part], best, axis=1)

        self._chunks(choose)
        return chosen

    def evolve(self, pool: Choice, states: NDArray[np.uint64], descents: int, children: int, text: str) -> None:
        """Improve the pools in place, as far as time allows."""
        data = self._data
        self._report(text)

        def work(part: slice) -> None:
            if self._remaining() <= 0:
                return
            some = data.part(part)
            values, gradients = some.assess(pool[part])
            evolve(
                data.single, data.codes, some.scale, data.group, pool[part], values, gradients, states[part], descents,
                children, PATIENCE,
            )  # fmt: skip

        self._chunks(work)

    def best(self, pool: Choice) -> Choice:
        """The best member of each pool."""
        best = np.empty(self._data.targets.shape, dtype=np.int16)

        def work(part: slice) -> None:
            values, _ = self._data.part(part).assess(pool[part])
            place = np.argmin(values, axis=1)[:, None, None]
            best[part] = np.take_along_axis(pool[part], place, axis=1)[:, 0]

        self._chunks(work)
        return best


def _orders(gram: NDArray[Any], count: int, seed: int) -> list[Int]:
    """Orders of the inputs: as they are, by falling diagonal, and others near that."""
    logarithms = np.log(np.maximum(np.diag(gram), 1e-30))
    rng = np.random.default_rng([seed, 0])
    spread = STRAY * float(np.std(logarithms))
    orders = [np.arange(len(gram)), np.argsort(-logarithms, kind="stable")]
    while len(orders) < count:
        orders.append(np.argsort(-logarithms + spread * rng.normal(size=len(gram)), kind="stable"))
    return orders[:count]
