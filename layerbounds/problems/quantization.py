"""Problems: a layer plus the set of weights that are allowed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from layerbounds.arrays import Bool, Float, Int, as_float64
from layerbounds.exceptions import InputError
from layerbounds.layers.bias import Bias, apply_bias
from layerbounds.layers.layer import Layer
from layerbounds.problems.gram_range import fitted_grid
from layerbounds.problems.grids import Granularity, Grid, Range, nearest_levels, symmetric_grid
from layerbounds.problems.pruning import PruningProblem


@dataclass(frozen=True, eq=False)
class QuantizationProblem:
    """Every weight of every output channel must be a level of its grid.

    Attributes
    ----------
    layer : Layer
    grid : Grid
    """

    layer: Layer
    grid: Grid

    def __post_init__(self) -> None:
        want = (self.layer.out_features, self.layer.in_features)
        have = (self.grid.out_features, self.grid.in_features)
        if want != have:
            raise InputError(
                f"the grid is for weights of shape {have} but layer {self.layer.name!r} has {want}; "
                "build the grid from this layer's weight."
            )

    @property
    def label(self) -> str:
        """One line that says what is allowed."""
        return self.grid.label + (", bias re-fitted" if self.layer.bias == "refit" else "")

    @property
    def requirement(self) -> str:
        """What a backend or heuristic must be able to treat."""
        return "uniform grids" if self.grid.uniform else "codebook grids"

    def violation(self, matrix: Float, channels: Sequence[int]) -> Float:
        """Largest distance of a weight to its nearest level, per channel, in units of the weights."""
        return np.asarray(np.abs(matrix - self.grid.nearest(matrix, channels)).max(axis=1))

    def off_grid(self, matrix: Float, channels: Sequence[int]) -> tuple[Int, Float]:
        """How many weights of each channel are no level, and how far the worst is from one, in gaps between levels."""
        count = np.zeros(len(channels), dtype=np.int64)
        steps = np.zeros(len(channels))
        for row, channel in enumerate(channels):
            levels = self.grid.levels(channel)
            distance = np.abs(matrix[row] - nearest_levels(levels, matrix[row]))
            off = distance > 0.0
            count[row] = np.count_nonzero(off)
            if count[row] and levels.shape[1] > 1:
                above = np.sum(levels <= matrix[row][:, None], axis=1).clip(1, levels.shape[1] - 1)
                inputs = np.arange(len(levels))
                gap = levels[inputs, above] - levels[inputs, above - 1]
                steps[row] = float(np.max(distance[off] / gap[off]))
        return count, steps

    def project(self, matrix: Float, channels: Sequence[int]) -> Float:
        """The nearest levels of given weights, shape (channels, n)."""
        return self.grid.nearest(matrix, channels)

    def row_template(self, channel: int) -> Float:
        """Weights of the channel's dead inputs (and others to be overwritten): the levels nearest to the original."""
        return nearest_levels(self.grid.levels(channel), self.layer.matrix[channel])

    def fingerprint(self) -> str:
        """SHA-256 of everything that the optimum depends on."""
        digest = hashlib.sha256()
        for array in (self.layer.gram, self.layer.target, self.layer.constant, self.layer.matrix):
            digest.update(np.ascontiguousarray(array).tobytes())
        for array in (self.grid.codes, self.grid.scale, self.grid.zero_point):
            digest.update(np.ascontiguousarray(array).tobytes())
        digest.update(f"quantization/{self.layer.gram.shape}/{self.grid.group_size}".encode())
        return digest.hexdigest()


Problem = QuantizationProblem | PruningProblem


def quantization_problem(
    layer: Layer,
    bits: int | None = None,
    *,
    grid: Grid | None = None,
    scale: ArrayLike | None = None,
    symmetric: bool = True,
    granularity: Granularity = "channel",
    range: Range = "mse",
    density: float | None = None,
    bias: Bias = "keep",
) -> QuantizationProblem:
    """Quantize a layer: with a fitted uniform grid (``bits``), a given grid, or given symmetric scales.

    Parameters
    ----------
    layer : Layer
    bits : int, optional
    grid : Grid, optional
        Instead of ``bits``.
    scale : array_like of shape (out,) or (out, scale_groups), optional
        With ``bits``: the step sizes of a symmetric grid.
    symmetric, granularity, range
        As in `uniform_grid`; ``range="gram"`` fits the scales to the layer's output error (`gram_grid`).
    bias : {"keep", "refit"}
        Whether the layer's bias stays as it is or is re-fitted together with the weights.

    Raises
    ------
    InputError
        If the arguments contradict each other.
    """
    if density is not None:
        raise InputError("quantization and pruning together are not available yet; pass either bits or density.")
    if not isinstance(layer, Layer):
        raise InputError(f"layer is a {type(layer).__name__}; pass a layerbounds.Layer.")
    layer = apply_bias(layer, bias)
    if (bits is None) == (grid is None):
        raise InputError("pass either bits or grid, and not both.")
    if grid is not None:
        if scale is not None:
            raise InputError("a grid has its own scales; pass scale together with bits instead.")
        return QuantizationProblem(layer, grid)
    assert bits is not None
    if scale is not None:
        return QuantizationProblem(layer, symmetric_grid(scale, bits, layer.in_features, granularity))
    return QuantizationProblem(
        layer, fitted_grid(layer, bits, symmetric=symmetric, granularity=granularity, range=range)
    )


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Error and feasibility of given weights.

    Attributes
    ----------
    error : ndarray of shape (channels,)
        f, the mean squared output error per calibration position.
    relative_error : ndarray of shape (channels,)
        f / f(0); NaN where f(0) = 0.
    feasible : ndarray of bool, shape (channels,)
        Whether every weight is allowed exactly.
    violation : ndarray of shape (channels,)
        How far the weights are from being allowed; see the problem's ``violation``.
    off_grid : ndarray of int64, shape (channels,)
        Quantization: how many weights are not exactly a level.
    steps : ndarray of shape (channels,)
        Quantization: the largest distance to a level in units of the gap between the levels around.
    """

    error: Float
    relative_error: Float
    feasible: Bool
    violation: Float
    off_grid: Int
    steps: Float

    def describe(self) -> str:
        """One line that says whether the weights are allowed and, if not, by how much they are off."""
        if self.feasible.all():
            return "all weights are allowed"
        if self.off_grid.any():
            many = int(self.off_grid.sum())
            return (
                f"{many} weight{'' if many == 1 else 's'} off the grid, by at most {self.violation.max():.2g} "
                f"({self.steps.max():.2g} of a step)"
            )
        many = int(np.count_nonzero(~self.feasible))
        return f"{many} channel{'' if many == 1 else 's'} not allowed (violation up to {self.violation.max():.2g})"


def squared_error(gram: Float, deviation: Float) -> float:
    """The quadratic form δᵀHδ, at least 0, in float64."""
    return max(float(deviation @ (gram @ deviation)), 0.0)


def evaluate(problem: Problem, weights: ArrayLike, channels: Sequence[int] | None = None) -> Evaluation:
    """Score anybody's weights on the layer's own, undamped Gram matrix.

    Parameters
    ----------
    problem : QuantizationProblem or PruningProblem
    weights : array_like
        The layer's shape, or (channels, n).
    channels : sequence of int, optional
        The output channels that ``weights`` holds; default: all.
    """
    layer = problem.layer
    rows = list(range(layer.out_features)) if channels is None else check_channels(problem, channels)
    array = as_float64(weights, "weights")
    if array.size != len(rows) * layer.in_features:
        raise InputError(
            f"weights have shape {array.shape}; layer {layer.name!r} needs {len(rows)} channels of "
            f"{layer.in_features} weights."
        )
    matrix = array.reshape(len(rows), layer.in_features)
    error = np.array(
        [
            squared_error(layer.channel_gram(c), matrix[i] - layer.target[c]) + layer.constant[c]
            for i, c in enumerate(rows)
        ]
    )
    energy = layer.energy()[rows]
    relative = np.divide(error, energy, out=np.full(len(rows), np.nan), where=energy > 0)
    violation = problem.violation(matrix, rows)
    off_grid, steps = np.zeros(len(rows), dtype=np.int64), np.zeros(len(rows))
    if isinstance(problem, QuantizationProblem):
        off_grid, steps = problem.off_grid(matrix, rows)
    return Evaluation(error, relative, violation == 0.0, violation, off_grid, steps)


def check_channels(problem: Problem, channels: Sequence[int] | None) -> list[int]:
    """Validate a selection of output channels; None selects all."""
    out = problem.layer.out_features
    if channels is None:
        return list(range(out))
    chosen = [int(c) for c in channels]
    bad = [c for c in chosen if not 0 <= c < out]
    if bad or not chosen or len(set(chosen)) != len(chosen):
        raise InputError(
            f"channels {list(channels)} are not a selection of distinct output channels 0 to {out - 1} of layer "
            f"{problem.layer.name!r}."
        )
    return chosen
