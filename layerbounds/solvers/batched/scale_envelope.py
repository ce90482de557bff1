"""Dual points for all scales of many rows: an envelope that is raised where it is lowest, in all rows at once.

Scales are divided into cells by the same factors of every row's best known scale. Each cell keeps the dual point that
bounds it best, by the chord of r(s) between its ends (`layerbounds.kernels.batched.profiles`). A round solves for new
points at the weakest cells of all rows: they are more rows for `find_points`, whose products they share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from layerbounds.arrays import Bool, Float, Int
from layerbounds.kernels.arithmetic import Arithmetic, Single
from layerbounds.kernels.batched.profiles import least_between, ratios
from layerbounds.proofs import ScaleDual, ScaleMinorant, ScalePoint
from layerbounds.solvers.batched.group import in_chunks
from layerbounds.solvers.batched.lattice import LevelRows
from layerbounds.solvers.batched.points import Penalty, find_points
from layerbounds.solvers.batched.scale_rounding import Grids, is_uniform

#: Cells are so wide in logarithm where weights matter most, between these factors of the best scale; and elsewhere.
NARROW, NEAR = 0.005, (0.4, 2.5)
WIDE, FAR = 0.03, (0.08, 20.0)
COARSE, ALL = 0.15, (1e-3, 1e5)
#: First points: their distance in logarithm, near and far, and how far from their own scale they are tried.
STEP_NEAR, STEP_FAR, REACH_NEAR, REACH_FAR = 0.05, 0.25, 0.25, 0.6
#: Rounds, new points of a row in one, how far apart they are in cells, and how far they are tried.
ROUNDS, PER_ROUND, APART, REACH = 16, 3, 2, 0.1
#: Cells that are lower than the weakest dual point by no more than this are good enough.
TOLERANCE = 0.005
#: Iterations for a point.
ITERATIONS = 30


@dataclass(frozen=True, eq=False)
class Lines:
    """Rows with one list of codes each, in units in which the error of the best weights known is about 1.

    Attributes
    ----------
    target : ndarray of shape (lines, n)
    scale : ndarray of shape (lines,)
        Of the best weights known of the row.
    row : ndarray of int64, shape (lines,)
        Numbers from 0; the lines of a row follow one another.
    which : ndarray of int64, shape (lines,)
        The list of codes.
    codes : ndarray of shape (lists, levels)
    """

    target: Float
    scale: Float
    row: Int
    which: Int
    codes: Float

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return int(self.row.max(initial=-1)) + 1

    @property
    def uniform(self) -> bool:
        """Whether all lists are consecutive integers."""
        return is_uniform(self.codes)

    def levels(self, line: Int, scale: Float) -> LevelRows:
        """The levels of some lines at scales of their own."""
        group = np.zeros(self.target.shape[1], dtype=np.int64)
        return Grids(self.codes, group, scale[:, None], self.which[line][:, None]).levels(self.target[line])


def cell_factors() -> Float:
    """The ends of the cells, as factors of the best scale."""
    (low, high), (first, last), (least, most) = np.log(NEAR), np.log(FAR), np.log(ALL)
    pieces = (
        np.arange(least, first, COARSE),
        np.arange(first, low, WIDE),
        np.arange(low, high, NARROW),
        np.arange(high, last, WIDE),
        np.arange(last, most, COARSE),
    )
    return np.asarray(np.exp(np.concatenate(pieces)))


def first_cells(factors: Float) -> Int:
    """The cells of the first points."""
    (low, high), (first, last) = np.log((0.6, 1.7)), np.log(FAR)
    spread = np.concatenate(
        [np.arange(first, low, STEP_FAR), np.arange(low, high, STEP_NEAR), np.arange(high, last, STEP_FAR)]
    )
    return np.unique(np.clip(np.searchsorted(factors, np.exp(spread)), 1, len(factors) - 1))


@dataclass(eq=False)
class Envelope:
    """The envelope of some lines.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    d : ndarray of shape (n,)
        A positive diagonal below it.
    setting : Penalty
    lines : Lines
    arithmetic : Arithmetic
    threads : int
    stop : callable
        Asked between products.
    """

    gram: Float
    d: Float
    setting: Penalty
    lines: Lines
    arithmetic: Arithmetic
    threads: int
    stop: Callable[[], bool]
    #: The points so far.
    z: Single = field(init=False)
    #: Of each line and cell the best bound, the point that gives it, and whether a point was made for it.
    value: Float = field(init=False)
    point: Int = field(init=False)
    visited: Bool = field(init=False)

    def __post_init__(self) -> None:
        n = len(self.d)
        self.factors = cell_factors()
        cells = len(self.factors) + 1
        self.z = np.zeros((0, n), dtype=np.float32)
        self.value = np.full((len(self.lines.target), cells), -np.inf)
        self.point = np.zeros((len(self.lines.target), cells), dtype=np.int64)
        self.visited = np.zeros((len(self.lines.target), cells), dtype=bool)

    def grow(self) -> None:
        """The first points, and rounds until no row gains."""
        every = np.arange(len(self.lines.target))
        # Zero is exact at s = 0 and beyond all scales at which a weight is not 0, the target is never below 0.
        target, none = self.lines.target.astype(np.float32), np.zeros_like(every)
        for z in (np.zeros_like(target), target):
            self._keep(every, none, none + len(self.factors), z)
        cells = first_cells(self.factors)
        near = (self.factors[cells] > NEAR[0]) & (self.factors[cells] < NEAR[1])
        for chosen, reach in ((near, REACH_NEAR), (~near, REACH_FAR)):
            self._solve(np.repeat(every, int(np.sum(chosen))), np.tile(cells[chosen], len(every)), reach)
        for _ in range(ROUNDS):
            line, cell = self._weakest(PER_ROUND, APART, open_only=True)
            if not len(line) or self.stop():
                break
            self._solve(line, cell, REACH)

    def least(self) -> Float:
        """The bound of each row."""
        least = np.full(self.lines.rows, np.inf)
        np.minimum.at(least, self.lines.row, self.value.min(axis=1))
        return least

    def weakest_scales(self, count: int) -> tuple[Int, Float]:
        """Lines and scales of the lowest cells of each row, far from one another."""
        line, cell = self._weakest(count, 10 * APART, open_only=False)
        return line, self._middle(cell) * self.lines.scale[line]

    def duals(self, unit: Float, minorants: tuple[ScaleMinorant, ...], dropped: tuple[int, ...]) -> list[ScaleDual]:
        """What certification takes, of each row; ``unit`` is that of its weights."""
        result = []
        of_row = np.searchsorted(self.lines.row, np.arange(self.lines.rows + 1))
        for r in range(self.lines.rows):
            numbers: dict[int, int] = {}
            axis: list[int] = []
            at: list[float] = []
            child: list[int] = []
            roots = []
            for line in range(of_row[r], of_row[r + 1]):
                roots.append(len(axis))
                owner = self.point[line]
                last = np.flatnonzero(np.diff(owner))
                ends = self.factors[last] * self.lines.scale[line] * unit[r]
                for cell, end in zip(last.tolist(), ends.tolist(), strict=True):
                    number = numbers.setdefault(int(owner[cell]), len(numbers))
                    axis += [0, -1]
                    at += [end, 0.0]
                    child += [len(child) + 1, number]
                axis.append(-1)
                at.append(0.0)
                child.append(numbers.setdefault(int(owner[-1]), len(numbers)))
            points = tuple(
                ScalePoint((self.z[k] * np.float32(unit[r]))[None], 0, np.zeros((1, 0))) for k in numbers
            )  # fmt: skip
            result.append(
                ScaleDual(minorants, points, np.array(axis), np.array(at), np.array(child), np.array(roots), dropped)
            )
        return result

    def _middle(self, cell: Int) -> Float:
        return np.sqrt(self.factors[cell - 1] * self.factors[cell])

    def _weakest(self, count: int, apart: int, open_only: bool) -> tuple[Int, Int]:
        """Lines and cells of the lowest bounds of each row.

        Those that are open have no point of their own, and are lower than the lowest cell with one: no more can be
        reached with this minorant.
        """
        # The cells at both ends have no scale of their own.
        value = self.value[:, 1:-1].copy()
        of_row = np.searchsorted(self.lines.row, np.arange(self.lines.rows + 1))
        if open_only:
            visited = np.where(self.visited[:, 1:-1], value, np.inf)
            ceiling = np.minimum(np.minimum.reduceat(visited.min(axis=1), of_row[:-1]), 1.0)
            ceiling -= TOLERANCE * np.abs(ceiling)
            value[self.visited[:, 1:-1] | (value >= ceiling[self.lines.row][:, None])] = np.inf
        lines, cells = [], []
        for r in range(self.lines.rows):
            part = value[of_row[r] : of_row[r + 1]]
            for _ in range(count):
                line, cell = np.unravel_index(int(np.argmin(part)), part.shape)
                if part[line, cell] == np.inf:
                    break
                lines.append(of_row[r] + int(line))
                cells.append(int(cell) + 1)
                part[line, max(cell - apart, 0) : cell + apart + 1] = np.inf
        return np.array(lines, dtype=np.int64), np.array(cells, dtype=np.int64)

    def _solve(self, line: Int, cell: Int, reach: float) -> None:
        """Points for the middles of cells, which are tried so far around them in logarithm."""
        if self.stop() or not len(line):
            return
        factor = self._middle(cell)
        levels = self.lines.levels(line, self.lines.scale[line] * factor)
        found = find_points(
            levels, self.d, self.setting, self.arithmetic, ITERATIONS, self.threads, stop=lambda iteration: self.stop()
        )  # fmt: skip
        self.visited[line, cell] = True
        ends = np.searchsorted(self.factors, [factor * np.exp(-reach), factor * np.exp(reach)])
        # The outermost ones bound whatever lies beyond.
        ends[0][factor < FAR[0] * np.exp(STEP_FAR)] = 0
        ends[1][factor > FAR[1] * np.exp(-STEP_FAR)] = len(self.factors)
        self._keep(line, ends[0], ends[1], (self.lines.target[line] + found.e).astype(np.float32))

    def _keep(self, line: Int, first: Int, last: Int, z: Single) -> None:
        """Add points, and give them the cells that they bound best, between the ends from first to before last."""
        lines, d = self.lines, self.d
        target = lines.target[line]
        point = z.astype(np.float64)
        h = (point - target) @ self.gram
        b = d * point - h
        constant = np.einsum("j,ij,ij->i", d, point, point) - np.einsum("ij,ij->i", h, point + target)
        nodes = len(self.factors)
        scales = lines.scale[line][:, None] * self.factors
        out = np.full((len(line), nodes), np.nan)
        which = lines.which[line]

        def work(rows: slice) -> None:
            ratios(
                d, b[rows], lines.codes, which[rows], lines.uniform, scales[rows], first[rows], last[rows], out[rows]
            )  # fmt: skip

        in_chunks(len(line), self.threads, work, 4)
        value = np.full((len(line), nodes + 1), -np.inf)
        value[:, 1:-1] = chord_values(scales, out)
        self._ends(value, b, which, first, last, scales)
        value += constant[:, None]
        begin = len(self.z)
        for k in range(len(line)):
            span = slice(first[k], last[k] + 1)
            better = value[k, span] > self.value[line[k], span]
            self.value[line[k], span][better] = value[k, span][better]
            self.point[line[k], span][better] = begin + k
        # Points without a cell are forgotten.
        used, place = np.unique(self.point, return_inverse=True)
        self.point = place.reshape(self.point.shape)
        self.z = np.concatenate([self.z, z])[used]

    def _ends(self, value: Float, b: Float, which: Int, first: Int, last: Int, scales: Float) -> None:
        """The first and the last cell of points that reach them."""
        for cell, reaches, low, high in (
            (0, first == 0, np.zeros(len(b)), scales[:, 0]),
            (value.shape[1] - 1, last == len(self.factors), scales[:, -1], np.full(len(b), np.inf)),
        ):
            chosen = np.flatnonzero(reaches)
            found, met = np.empty((2, len(chosen)))
            place = np.stack([chosen, np.zeros_like(chosen)], axis=1)
            least_between(
                self.d[None], b, place, self.lines.codes, which[chosen], self.lines.uniform, low[chosen], high[chosen],
                np.full(len(chosen), np.inf), np.full(len(chosen), 0.01), 40, found, met,
            )  # fmt: skip
            value[chosen, cell] = found


def chord_values(scales: Float, ratio: Float) -> Float:
    """The least of s·r(s) between neighbouring scales, r their chord; shape (points, scales − 1), −∞ where unknown."""
    a, b = scales[:, :-1], scales[:, 1:]
    at_a, at_b = ratio[:, :-1], ratio[:, 1:]
    width, rise = b - a, at_b - at_a
    low, high = a * at_a, b * at_b
    linear = a * rise + width * at_a
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        square = width * rise
        place = np.clip(np.nan_to_num(-linear / (2.0 * square)), 0.0, 1.0)
        inner = np.where(rise > 0, low + (linear + square * place) * place, np.inf)
    value = np.minimum(np.minimum(low, high), inner)
    return np.where(np.isnan(value), -np.inf, value)
