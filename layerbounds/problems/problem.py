"""What every problem is: a layer, and the weights that its output channels may take."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from layerbounds.arguments import members, shown
from layerbounds.arrays import Float, Int
from layerbounds.display import Displayed, Summary
from layerbounds.exceptions import InputError
from layerbounds.layers.gram import raise_diagonal
from layerbounds.layers.layer import Layer
from layerbounds.mistaken import instead
from layerbounds.problems.allowed import AllowedSet
from layerbounds.problems.grids import Grid
from layerbounds.problems.judgement import Judgement
from layerbounds.problems.parts import Parts
from layerbounds.problems.storage import Mask, check_mask


@dataclass(frozen=True, eq=False, repr=False)
class Problem(Displayed, ABC):
    """A layer and its allowed weights; a family of problems is a subclass.

    Attributes
    ----------
    layer : Layer
    family : str
        What tables and records call the family.
    adjusted : str
        How they call weights from elsewhere that were moved to the nearest allowed ones.
    """

    layer: Layer

    family: ClassVar[str]
    adjusted: ClassVar[str]

    @property
    @abstractmethod
    def label(self) -> str:
        """One line that says what is allowed."""

    @property
    @abstractmethod
    def requirement(self) -> str:
        """What a backend or heuristic must be able to treat."""

    @property
    def pattern_kind(self) -> str | None:
        """The kind of sparsity pattern, as in `layerbounds.problems.patterns`; None where there is none."""
        return None

    @property
    @abstractmethod
    def bits_per_weight(self) -> float:
        """Bits that a weight takes, scales and masks not counted."""

    def storage(self, mask: Mask = "none") -> float:
        """Bits that a weight takes with its share of the mask, scales not counted.

        Parameters
        ----------
        mask : {"none", "bitmap", "entropy", "metadata"}
            How a pattern's choice is stored, as in `layerbounds.problems.storage`; without a pattern there is none.

        Examples
        --------
        >>> lb.pruning_problem(layer, k=3).storage("bitmap")
        6.333333333333333
        """
        check_mask(mask)
        return self.bits_per_weight

    @property
    def parts(self) -> Parts | None:
        """What is allowed, for the question whether another problem of the layer allows all of it; None if unknown."""
        return None

    @abstractmethod
    def allowed(self, channel: int) -> AllowedSet:
        """The allowed weights of a channel (or of the set of rows that begins with it), dead inputs included.

        Examples
        --------
        >>> problem.allowed(0).violation(layer.matrix[0]) > 0
        True
        """

    def gram(self, channel: int) -> Float:
        """The Gram matrix that counts for a channel, shape (n, n).

        Where weights may take any value, a matrix of few inputs that rounding left indefinite counts with a diagonal
        larger by the share `layerbounds.layers.gram.GramReport.raised`: without it there would be no least error.

        Examples
        --------
        >>> problem.gram(0).shape
        (9, 9)
        """
        stored = self.layer.channel_gram(channel)
        raised = self.layer.gram_reports[self.layer.group_of(channel)].raised
        return raise_diagonal(stored, raised) if raised and self.allowed(channel).free else stored

    def metric(self, channel: int) -> Float | None:
        """Q, with which an error e of the output channels of a set counts eᵀQe; None where each counts alone.

        Parameters
        ----------
        channel : int
            Of the set.

        Returns
        -------
        ndarray of shape (rows, rows) or None

        Examples
        --------
        >>> problem.metric(0) is None
        True
        """
        return None

    def energy(self) -> Float:
        """f(0) of each output channel, shape (out,); of a metric's the sums over sets are what counts.

        Examples
        --------
        >>> problem.energy().shape
        (16,)
        """
        value, layer = self.layer.energy(), self.layer
        for rows in layer.group_rows():
            metric = self.metric(rows.start)
            if metric is not None:
                target = layer.target[rows]
                with np.errstate(over="ignore", invalid="ignore"):
                    value[rows] = np.sum((metric @ target) * (target @ layer.channel_gram(rows.start)), axis=1)
        return value

    @abstractmethod
    def row_template(self, channel: int) -> Float:
        """Weights of the channel's dead inputs (and others to be overwritten), shape (n,).

        Examples
        --------
        >>> problem.row_template(0).shape
        (9,)
        """

    def complete(self, channel: int, weights: Float) -> Float:
        """Weights of all inputs of a channel, shape (n,), from allowed ones of the live inputs.

        Examples
        --------
        >>> row = problem.allowed(0).nearest(layer.matrix[0])
        >>> bool(np.array_equal(problem.complete(0, row[layer.live()]), row))
        True
        """
        row = self.row_template(channel)
        row[self.layer.live(self.layer.group_of(channel))] = weights
        return row

    @abstractmethod
    def like(self, layer: Layer) -> Self:
        """A small problem of the same kind, for another layer: what compiles and refuses the same.

        Examples
        --------
        >>> small = lb.Layer(np.ones((1, 4)), np.eye(4))
        >>> problem.like(small).label
        '2-bit symmetric per channel, mse'
        """

    @abstractmethod
    def rule(self) -> bytes:
        """What is allowed, as bytes: equal for equal sets of weights.

        Examples
        --------
        >>> problem.rule() == lb.quantization_problem(layer, bits=2).rule()
        True
        """

    def sets(self, channels: Sequence[int]) -> list[list[int]]:
        """The sets of output channels whose weights are bound to one another; single ones unless a family says more.

        Raises
        ------
        InputError
            If ``channels`` has some but not all rows of a set.

        Examples
        --------
        >>> problem.sets([0, 1])
        [[0], [1]]
        >>> lb.pruning_problem(layer, k=3, pattern="column").sets(range(16)) == [list(range(16))]
        True
        """
        return [[c] for c in channels]

    def violation(self, matrix: Float, channels: Sequence[int]) -> Float:
        """How far weights, shape (rows, n), are from being allowed, per set of rows; 0 exactly when they are.

        Examples
        --------
        >>> problem.violation(problem.project(layer.matrix[:2], [0, 1]), [0, 1])
        array([0., 0.])
        """
        return np.array([self.allowed(s[0]).violation(w) for s, w in self._per_set(matrix, channels)])

    def project(self, matrix: Float, channels: Sequence[int]) -> Float:
        """Allowed weights near given ones, shape (rows, n).

        Examples
        --------
        >>> near = problem.project(layer.matrix[:2], [0, 1])
        >>> problem.violation(near, [0, 1])
        array([0., 0.])
        """
        result = np.empty_like(matrix)
        position = {channel: i for i, channel in enumerate(channels)}
        for s, weights in self._per_set(matrix, channels):
            result[[position[c] for c in s]] = self.allowed(s[0]).nearest(weights)
        return result

    def complete_set(self, rows: Sequence[int], weights: Float) -> Float:
        """Weights of all inputs of a set of channels, shape (rows, n), from allowed ones of the live inputs.

        Examples
        --------
        >>> row = problem.allowed(0).nearest(layer.matrix[0])
        >>> problem.complete_set([0], row[layer.live()]).shape
        (1, 9)
        """
        return np.stack([self.complete(c, w) for c, w in zip(rows, np.atleast_2d(weights), strict=True)])

    def rounded_to(self, dtype: str) -> Problem:
        """The problem for evaluated weights that were rounded to a floating-point type; most do not ask.

        Examples
        --------
        >>> free = lb.quantization_problem(layer, bits=2, scale="free")
        >>> free.rounded_to("float16").dtype
        'float16'
        """
        return self

    def unrounded(self, matrix: Float, channels: Sequence[int], dtype: str) -> Float:
        """Weights, shape (rows, n), at the levels from which one rounding to a type gives them, where it does.

        Examples
        --------
        >>> free = lb.quantization_problem(layer, bits=2, scale="free")
        >>> near = free.project(layer.matrix[:1], [0])
        >>> free.unrounded(near.astype(np.float16).astype(float), [0], "float16").shape
        (1, 9)
        """
        return matrix

    def judged(self, matrix: Float, channels: Sequence[int]) -> Judgement:
        """Whether weights, shape (rows, n), are allowed, and which allowed ones they stand for.

        Examples
        --------
        >>> problem.judged(layer.matrix[:2], [0, 1]).off_grid
        array([9, 9])
        """
        violation = self.violation(matrix, channels)
        off_grid, steps = self.off_grid(matrix, channels)
        snapped = matrix.copy()
        position = {channel: i for i, channel in enumerate(channels)}
        for index, s in enumerate(self.sets(channels)):
            if violation[index] > 0:
                rows = [position[c] for c in s]
                snapped[rows] = self.project(matrix[rows], s)
        return Judgement(violation, off_grid, steps, snapped, *self.scales(matrix, channels))

    def scales(self, matrix: Float, channels: Sequence[int]) -> tuple[Float, Float] | tuple[None, None]:
        """Scales and zero points of allowed weights, each of shape (rows, scale groups); None where there are none.

        Examples
        --------
        >>> scale, zero_point = problem.scales(problem.project(layer.matrix[:2], [0, 1]), [0, 1])
        >>> scale.shape
        (2, 1)
        """
        return None, None

    def grid_of(self, matrix: Float, channels: Sequence[int]) -> Grid | None:
        """The grid that allowed weights, shape (rows, n), are on; None where there is none.

        Examples
        --------
        >>> problem.grid_of(solution.weights.reshape(2, -1), [0, 1]).codes
        array([-2., -1.,  0.,  1.])
        """
        return None

    def off_grid(self, matrix: Float, channels: Sequence[int]) -> tuple[Int, Float]:
        """How many weights of each set are no level, and how far the worst is from one, in gaps between levels.

        Examples
        --------
        >>> weights_off, distance = problem.off_grid(layer.matrix[:2], [0, 1])
        >>> weights_off
        array([9, 9])
        """
        count = len(self.sets(channels))
        return np.zeros(count, dtype=np.int64), np.zeros(count)

    def excess(self, matrix: Float, channels: Sequence[int]) -> Int:
        """How many units of each set of rows are kept beyond the capacities of a pattern.

        Examples
        --------
        >>> pruned = lb.pruning_problem(layer, k=3)
        >>> pruned.excess(layer.matrix[:2], [0, 1])
        array([6, 6])
        """
        return np.zeros(len(self.sets(channels)), dtype=np.int64)

    def kept_units(self, matrix: Float, channels: Sequence[int]) -> list[list[int]] | None:
        """Which units of a pattern each set of rows keeps, by their numbers; None where rows do not share a mask.

        Examples
        --------
        >>> filters = lb.pruning_problem(layer, k=1, pattern="filter")
        >>> filters.kept_units(filters.project(layer.matrix, range(16)), range(16))
        [[5]]
        """
        return None

    def fingerprint(self) -> str:
        """SHA-256 of everything that the optimum depends on.

        Examples
        --------
        >>> len(problem.fingerprint())
        64
        """
        digest = hashlib.sha256()
        for array in (self.layer.gram, self.layer.target, self.layer.constant, self.layer.matrix):
            digest.update(np.ascontiguousarray(array).reshape(-1).data)
        digest.update(self.rule())
        return digest.hexdigest()

    def _summary(self) -> Summary:
        layer, bits = self.layer, self.storage()
        facts = [
            f"{layer.out_features} channels of {layer.in_features} inputs",
            f"{bits:.4g} bits per weight, scales{' and masks' if self.pattern_kind else ''} not counted",
            f"for solvers that can treat {self.requirement}",
        ]
        return Summary(f"{layer.name} · {self.label}", facts)

    def _per_set(self, matrix: Float, channels: Sequence[int]) -> list[tuple[list[int], Float]]:
        position = {channel: i for i, channel in enumerate(channels)}
        pairs = []
        for s in self.sets(channels):
            rows = matrix[[position[c] for c in s]]
            pairs.append((s, rows[0] if len(s) == 1 else rows))
        return pairs


def whole_sets(set_of: Callable[[int], range], channels: Sequence[int], what: str) -> list[list[int]]:
    """The sets of rows of some channels, in the order of their first mention.

    Parameters
    ----------
    set_of : callable
        From a channel to all rows of its set.
    channels : sequence of int
    what : str
        What the rows of a set share.

    Raises
    ------
    InputError
        If some but not all rows of a set are there.
    """
    chosen, sets = set(channels), {rows.start: rows for rows in map(set_of, channels)}
    for rows in sets.values():
        missing = [row for row in rows if row not in chosen]
        if missing:
            named = ", ".join(map(str, missing[:8])) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
            raise InputError(
                f"output channels {rows[0]} to {rows[-1]} share {what}; "
                f"choose {'channel' if len(missing) == 1 else 'channels'} {named}, too."
            )
    return [list(rows) for rows in sets.values()]


def as_problem(value: Any) -> Problem:
    """The value itself, if it is a problem.

    Raises
    ------
    InputError
        If it is something else.
    """
    if not isinstance(value, Problem):
        usual = f"{shown(value)}; pass what quantization_problem, pruning_problem or joint_problem returns."
        raise InputError(f"problem is {instead('problem', value) or usual}")
    return value


def check_channels(problem: Problem, channels: Sequence[int] | None) -> list[int]:
    """Validate a selection of output channels; None selects all."""
    return check_rows(problem.layer, channels)


def check_rows(layer: Layer, channels: Sequence[int] | None) -> list[int]:
    """Validate a selection of a layer's output channels; None selects all.

    Raises
    ------
    InputError
    """
    if channels is None:
        return list(range(layer.out_features))
    wanted = members(channels, "channels")
    whole = all(isinstance(c, (int, np.integer)) and not isinstance(c, bool) for c in wanted)
    if not whole or not wanted or len(set(wanted)) != len(wanted) or not set(wanted) <= set(range(layer.out_features)):
        raise InputError(
            f"channels {shown(wanted)} are not a selection of distinct output channels 0 to {layer.out_features - 1} "
            f"of layer {layer.name!r}."
        )
    return [int(c) for c in wanted]
