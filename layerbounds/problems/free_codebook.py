"""Free codebooks: every output channel has levels of its own, which are chosen together with its weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from layerbounds.arguments import shown, whole_number
from layerbounds.arrays import Bool, Float, Int
from layerbounds.exceptions import InputError, NotAllowedError
from layerbounds.kernels.free_codebook.segments import least_segments
from layerbounds.layers.layer import Layer, as_layer
from layerbounds.problems.allowed import AllowedSet
from layerbounds.problems.grids import MAX_BITS
from layerbounds.problems.levels import TOLERANCE
from layerbounds.problems.problem import Problem

#: What ``codebook`` is called where the levels are free.
FREE = "free"


def best_levels(points: Float, weights: Float, most: int) -> Float:
    """The sorted levels of least Σ weights·(points − nearest level)², at most so many.

    Parameters
    ----------
    points, weights : ndarray of shape (n,)
        At least one point; weights are not negative.
    most : int
    """
    order = np.argsort(points, kind="stable")
    # Squares of huge and of tiny numbers leave the range of float64.
    unit, heaviest = float(np.max(np.abs(points))) or 1.0, float(np.max(weights)) or 1.0
    means = np.empty(min(most, len(points)))
    scaled = np.ascontiguousarray(points[order] / unit), np.ascontiguousarray(weights[order] / heaviest)
    _, count = least_segments(*scaled, len(means), means)
    return np.unique(means[:count] * unit)


def nearest_of(levels: Float, points: Float) -> Int:
    """Index of the nearest of sorted levels for each point; the lower one of equals."""
    return np.searchsorted(levels[:-1] + 0.5 * np.diff(levels), points, side="left")


def covering(points: Float, most: int) -> Float:
    """The sorted ends of at most ``most`` intervals that cover sorted points, the longest one as short as possible.

    Parameters
    ----------
    points : ndarray of shape (n,)
        Sorted, without repetitions, more than ``most``.
    most : int

    Returns
    -------
    ndarray of shape (intervals, 2)
    """
    low, high = 0.0, float(points[-1] - points[0])
    while True:
        # No width below ``low`` is enough.
        found, _, low = _cover(points, most, low)
        if found is not None:
            return found
        found, longest, beyond = _cover(points, most, low + 0.5 * (high - low))
        if found is None:
            low = beyond
        else:
            high = longest


def _cover(points: Float, most: int, width: float) -> tuple[Float | None, float, float]:
    """Intervals of a width: their ends or None, the longest one, and the least width that would cover more."""
    ends = []
    longest, beyond, first = 0.0, np.inf, 0
    for _ in range(most):
        reach = points[first:] - points[first]
        inside = int(np.searchsorted(reach, width, side="right"))
        ends.append([points[first], points[first + inside - 1]])
        longest = max(longest, float(reach[inside - 1]))
        first += inside
        if first == len(points):
            return np.array(ends), longest, beyond
        beyond = min(beyond, float(reach[inside]))
    return None, longest, beyond


@dataclass(frozen=True, eq=False)
class FreeLevels(AllowedSet):
    """The weights take at most ``count`` different values, whichever they are.

    Attributes
    ----------
    count : int
    inputs : int
        n.
    """

    count: int
    inputs: int

    @property
    def requirement(self) -> str:
        """Free codebooks."""
        return "free codebooks"

    @property
    def free(self) -> bool:
        """The levels may take any value."""
        return True

    def nearest(self, point: Float) -> Float:
        """The point with the least sum of squared changes."""
        if len(np.unique(point)) <= self.count:
            return np.array(point)
        levels = best_levels(point, np.ones(len(point)), self.count)
        return np.asarray(levels[nearest_of(levels, point)])

    def violation(self, weights: Float) -> float:
        """The least largest change that leaves so few values."""
        values = np.unique(weights)
        if len(values) <= self.count:
            return 0.0
        ends = covering(values, self.count)
        longest = float(np.max(ends[:, 1] - ends[:, 0]))
        return max(0.5 * longest, float(np.finfo(np.float64).smallest_subnormal))

    def exact(self, weights: Float) -> Float:
        """The weights themselves, or with values that differ by rounding made one."""
        values = np.unique(weights)
        if len(values) <= self.count:
            return weights
        ends = covering(values, self.count)
        if np.max(ends[:, 1] - ends[:, 0]) > 2 * TOLERANCE * np.max(np.abs(values)):
            raise NotAllowedError(f"weights of more than {self.count} values")
        levels = ends[:, 0] + 0.5 * (ends[:, 1] - ends[:, 0])
        return np.asarray(levels[nearest_of(levels, weights)])

    def restrict(self, live: Bool) -> FreeLevels:
        """As many values for fewer inputs."""
        return FreeLevels(self.count, int(np.count_nonzero(live)))

    def pieces(self) -> Iterator[tuple[Float, Float, bool]]:
        """Every division of the inputs into so many blocks, each with a value of its own."""
        for labels in divisions(self.inputs, min(self.count, self.inputs)):
            yield np.zeros(self.inputs), np.eye(max(labels, default=-1) + 1)[list(labels)], False


def divisions(size: int, blocks: int) -> Iterator[tuple[int, ...]]:
    """The divisions of so many things into exactly so many blocks, as the number of each one's block."""

    def grow(labels: tuple[int, ...], used: int) -> Iterator[tuple[int, ...]]:
        if len(labels) == size:
            yield labels
            return
        missing = blocks - used
        if missing < size - len(labels):
            for label in range(used):
                yield from grow((*labels, label), used)
        if missing:
            yield from grow((*labels, used), used + 1)

    if blocks or not size:
        yield from grow((), 0)


@dataclass(frozen=True, eq=False, repr=False)
class FreeCodebookProblem(Problem):
    """The weights of every output channel take at most ``count`` different values, which may be any.

    Attributes
    ----------
    layer : Layer
    count : int
        2^bits.

    Examples
    --------
    >>> lb.quantization_problem(layer, bits=2, codebook="free").count
    4
    """

    count: int

    family = "free codebook"
    adjusted = "moved to the nearest codebook"

    def __post_init__(self) -> None:
        as_layer(self.layer)
        whole_number(self.count, "count", 1, 2**MAX_BITS)

    @property
    def label(self) -> str:
        """One line that says what is allowed."""
        bits = self.bits_per_weight
        size = f"{bits:.0f}-bit free codebook" if bits == int(bits) else f"free codebook of {self.count} levels"
        return f"{size} per channel" + (", bias re-fitted" if self.layer.bias == "refit" else "")

    @property
    def requirement(self) -> str:
        """What a backend or heuristic must be able to treat."""
        return "free codebooks"

    @property
    def bits_per_weight(self) -> float:
        """log₂ of the number of levels."""
        return float(np.log2(self.count))

    def allowed(self, channel: int) -> FreeLevels:
        """The same for every channel."""
        return FreeLevels(self.count, self.layer.in_features)

    def row_template(self, channel: int) -> Float:
        """The nearest weights to the original ones."""
        return self.allowed(channel).nearest(self.layer.matrix[channel])

    def complete(self, channel: int, weights: Float) -> Float:
        """Dead inputs take the nearest level of the others."""
        live = self.layer.live(self.layer.group_of(channel))
        if not live.any():
            return self.row_template(channel)
        levels = np.unique(weights)
        row = levels[nearest_of(levels, self.layer.matrix[channel])]
        row[live] = weights
        return row

    def like(self, layer: Layer) -> FreeCodebookProblem:
        """Two levels."""
        return FreeCodebookProblem(layer, 2)

    def rule(self) -> bytes:
        """The number of levels."""
        return f"free codebook/{self.count}".encode()


def free_codebook_problem(layer: Layer, bits: int | None, **others: Any) -> FreeCodebookProblem:
    """What `quantization_problem` returns for a free codebook.

    Parameters
    ----------
    layer : Layer
    bits : int
    **others
        Arguments of `quantization_problem` that do not go with it; None where they are left out.

    Raises
    ------
    InputError
        If one is given, or ``bits`` is missing.
    """
    if bits is None:
        raise InputError(f"codebook {FREE!r} needs the number of levels; pass bits with it.")
    granularity = others.pop("granularity", None)
    if granularity is not None and not (isinstance(granularity, str) and granularity == "channel"):
        raise InputError(f"granularity is {shown(granularity)}; free codebooks are per channel, leave it out.")
    surplus = [name for name, value in others.items() if value is not None]
    if surplus:
        raise InputError(f"a free codebook has no {surplus[0]}: its levels may take any value; leave it out.")
    return FreeCodebookProblem(layer, 2 ** whole_number(bits, "bits", 1, MAX_BITS))
